//! Terminals that come back: after a sleep, after a crash, from a damaged journal, and not in maintenance.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use podling_proto::{
    agent::v1::{self as pb, exit::How, from, terminals_client::TerminalsClient},
    control::v1::{self as wire, directive_result::Result as Answer},
    error,
    v1::Reason,
};
use rustix::process::Signal;

use crate::{
    agent::until,
    bed::{Bed, Line, plain},
    client::Client,
};

const DONE: Answer = Answer::Done(wire::Done {});

/// Puts it to sleep and ends its agent in good order.
async fn sleep(bed: &mut Bed) {
    assert_eq!(bed.prepare(true, None).await, DONE);
    assert_eq!(bed.commit().await, DONE);
    bed.agent.signal(Signal::TERM);
    bed.agent.ended().await;
}

async fn says(bed: &mut Bed, line: &mut Line, text: &str) {
    bed.session.beating(line.until(text, |line| line.text().contains(text))).await;
}

fn shelf(bed: &Bed) -> PathBuf {
    bed.agent.path("state/terminals")
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name().to_string_lossy().into_owned(), content)
        })
        .collect()
}

#[tokio::test]
async fn after_a_sleep_the_history_stands_above_a_new_shell_in_the_same_folder() {
    let mut bed = Bed::new(plain).await;
    std::fs::create_dir(bed.agent.path("home/inner")).expect("a folder");
    let shell = bed.create(&[]).await.expect("a shell");
    let mut line = bed.attach(&shell.id).await;
    line.type_in("cd inner; VARIABLE=lost; printf '\\033]0;its title\\007history %s\\n' $((40 + 2))\n").await;
    says(&mut bed, &mut line, "history 42").await;
    let before = bed.session.beating(async { line.output.clone() }).await;
    let job = bed.create(&["sh", "-c", "echo it ran; exec cat"]).await.expect("a job");
    let ended = bed.create(&["sh", "-c", "echo bye; exit 3"]).await.expect("one that ends");
    let closed = bed.create(&[]).await.expect("one that is closed");
    let mut terminals = TerminalsClient::with_origin(bed.client.service(), Client::origin());
    let close = pb::CloseTerminalRequest { terminal_id: closed.id.clone(), ..Default::default() };
    let request = bed.with(close);
    bed.session.beating(terminals.close(request)).await.expect("closed");
    let mut job_line = bed.attach(&job.id).await;
    says(&mut bed, &mut job_line, "it ran").await;
    let mut end = bed.attach(&ended.id).await;
    bed.session.beating(end.until("its end", |line| line.exit.is_some())).await;
    sleep(&mut bed).await;
    let modes = |path: PathBuf| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!((modes(shelf(&bed)), modes(shelf(&bed).join(&shell.id))), (0o700, 0o600));

    bed.again(plain).await;
    let back = bed.list().await;
    let ids: Vec<_> = back.iter().map(|terminal| terminal.id.as_str()).collect();
    assert_eq!(ids, [&shell.id, &job.id, &ended.id], "the closed one is gone");
    assert_eq!((back[0].name.as_str(), back[0].epoch, back[0].title.as_str()), ("mine", 2, "its title"));
    assert!(back[0].exit.is_none() && back[0].pid > 0 && back[0].created == shell.created);
    let mut line = bed.attach(&shell.id).await;
    assert_eq!((line.epoch, line.typed), (2, 0), "a new life of the log");
    line.type_in("pwd; echo now ${VARIABLE-gone}\n").await;
    says(&mut bed, &mut line, "now gone\r\n").await;
    assert!(line.output.starts_with(&before), "the bytes of the history are untouched: {}", line.text());
    let text = line.text();
    let (slept, new) = text.rsplit_once("[podling: slept from ").expect("said");
    assert!(slept.contains("history 42") && new.contains("home/inner\r\n"), "{text}");

    let mut line = bed.attach(&job.id).await;
    bed.session.beating(line.until("its end", |line| line.exit.is_some())).await;
    assert_eq!(line.text().matches("it ran").count(), 1, "it was not run again");
    assert!(line.text().contains("the program ended with the workspace"), "{}", line.text());
    assert_eq!(line.exit.and_then(|exit| exit.how), Some(How::Signal("HUP".into())));
    let mut line = bed.attach(&ended.id).await;
    bed.session.beating(line.until("its end", |line| line.exit.is_some())).await;
    assert_eq!((line.text().as_str(), line.exit.and_then(|exit| exit.how)), ("bye\r\n", Some(How::Code(3))));

    // A second sleep adds to the history of the first.
    sleep(&mut bed).await;
    bed.again(plain).await;
    let mut line = bed.attach(&shell.id).await;
    line.type_in("echo third\n").await;
    says(&mut bed, &mut line, "third\r\n").await;
    let text = line.text();
    assert!(text.contains("history 42") && text.matches("[podling: slept").count() == 2, "{text}");
}

#[tokio::test]
async fn what_belongs_to_an_earlier_life_is_told_so() {
    let mut bed = Bed::new(plain).await;
    let shell = bed.create(&[]).await.expect("a shell");
    let mut line = bed.attach(&shell.id).await;
    line.type_in("echo $((1 + 1))first\n").await;
    says(&mut bed, &mut line, "2first").await;
    let at = line.output.len() as u64;
    sleep(&mut bed).await;
    bed.again(plain).await;
    let old = pb::Position { epoch: 1, offset: at };
    let mut line = bed.attach_from(&shell.id, from::From::Position(old)).await;
    assert_eq!(line.epoch, 2, "told by the first frame");
    says(&mut bed, &mut line, "2first").await;
    line.epoch = 1;
    line.type_in("typed into the shell that was\n").await;
    bed.session.beating(line.until("a refusal", |line| !line.refused.is_empty())).await;
    assert_eq!(line.refused, ["STALE_EPOCH"]);
    let input = pb::Input { epoch: 1, data: "x".into(), ..Default::default() };
    let write = pb::WriteTerminalRequest {
        terminal_id: shell.id.clone(),
        client_id: "other".into(),
        input: Some(input),
    };
    let mut terminals = TerminalsClient::with_origin(bed.client.service(), Client::origin());
    let refused = terminals.write(bed.with(write)).await.expect_err("refused");
    assert_eq!(error::reason(&refused), Some(Reason::StaleEpoch));
    assert_eq!(error::detail(&refused, "epoch").as_deref(), Some("2"));
}

#[tokio::test]
async fn after_a_kill_the_history_is_there_and_what_is_missing_is_said() {
    let mut bed = Bed::new(plain).await;
    let folder = bed.agent.path("home/gone");
    std::fs::create_dir(&folder).expect("a folder");
    let shell = bed.create(&[]).await.expect("a shell");
    let mut line = bed.attach(&shell.id).await;
    line.type_in("cd gone; echo kept$((6 * 7))\n").await;
    says(&mut bed, &mut line, "kept42").await;
    let path = shelf(&bed).join(&shell.id);
    let kept = || std::fs::read(&path).ok().filter(|file| file.windows(6).any(|bytes| bytes == b"kept42"));
    bed.session.beating(until("its journal", kept)).await;
    bed.agent.signal(Signal::KILL);
    bed.agent.ended().await;
    std::fs::remove_dir(&folder).expect("removed");
    bed.again(plain).await;
    let mut line = bed.attach(&shell.id).await;
    line.type_in("pwd; echo new$((6 * 7))\n").await;
    says(&mut bed, &mut line, "new42").await;
    let text = line.text();
    let (before, after) = text.split_once("[podling: restored after the agent was killed").expect("said");
    assert!(before.contains("kept42") && after.contains("may be missing"), "{text}");
    assert!(
        after.contains("is gone, so this is the home directory") && after.contains("/home\r\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_damaged_journal_is_set_aside_and_keeps_nobody_from_coming_back() {
    let mut bed = Bed::new(plain).await;
    let (well, ill) = (bed.create(&[]).await.expect("one"), bed.create(&[]).await.expect("another"));
    sleep(&mut bed).await;
    let path = shelf(&bed);
    let mut content = std::fs::read(path.join(&ill.id)).expect("its journal");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(path.join(&ill.id), &content).expect("written");
    std::fs::write(path.join("newernewerne"), "podling terminal 2\nwhat nobody knows yet").expect("written");
    let huge = std::fs::File::create(path.join("hugehugehuge")).expect("made");
    huge.set_len(1 << 40).expect("sparse");
    std::fs::create_dir(path.join("folderfolder")).expect("made");
    bed.again(plain).await;
    let ids: Vec<_> = bed.list().await.into_iter().map(|terminal| terminal.id).collect();
    assert_eq!(ids, [well.id]);
    for name in [ill.id.as_str(), "newernewerne", "hugehugehuge"] {
        let aside = path.join(name).with_extension("bad");
        assert!(aside.exists() && !path.join(name).exists(), "{name} is set aside");
        assert!(bed.agent.log().contains(name), "and said");
    }
}

#[tokio::test]
async fn in_maintenance_nothing_comes_back_and_the_journal_stays_as_it_is() {
    let mut bed = Bed::new(plain).await;
    let shell = bed.create(&[]).await.expect("a shell");
    sleep(&mut bed).await;
    let path = shelf(&bed);
    std::fs::write(path.join("newernewerne"), "podling terminal 2\n").expect("written");
    let before = files(&path);
    bed.again(|claim| {
        plain(claim);
        claim.maintenance = true;
    })
    .await;
    assert!(bed.list().await.is_empty());
    bed.agent.signal(Signal::TERM);
    bed.agent.ended().await;
    assert_eq!(files(&path), before);
    bed.again(plain).await;
    assert_eq!(bed.list().await[0].id, shell.id);
}

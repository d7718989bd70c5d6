//! Restored terminals: after sleep, after a crash, from a damaged journal, and not in maintenance
//! mode.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use podling_proto::{
    agent::v1::{self as pb, exit::How, from},
    control::v1::{self as wire, directive_result::Result as DirectiveOutcome},
    error,
    v1::Reason,
};
use podling_testkit::wait_for;
use rustix::process::Signal;

use crate::sleep_harness::{SleepHarness, set_plain_shell};

const DONE: DirectiveOutcome = DirectiveOutcome::Done(wire::Done {});

/// Puts the workspace to sleep, and ends its agent with SIGTERM.
async fn put_to_sleep(harness: &mut SleepHarness) {
    assert_eq!(harness.prepare(true, None).await, DONE);
    assert_eq!(harness.commit().await, DONE);
    harness.agent.signal(Signal::TERM);
    harness.agent.wait_exit().await;
}

fn journal_dir(harness: &SleepHarness) -> PathBuf {
    harness.agent.path("state/terminals")
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name().to_string_lossy().into_owned(), content)
        })
        .collect()
}

#[tokio::test]
async fn sleep_restores_history_and_directory_in_a_new_shell() {
    let mut harness = SleepHarness::new(set_plain_shell).await;
    std::fs::create_dir(harness.agent.path("home/inner")).expect("a directory");
    let shell = harness.create(&[]).await.expect("a shell");
    let mut attachment = harness.attach(&shell.id).await;
    attachment
        .type_text("cd inner; VARIABLE=lost; printf '\\033]0;its title\\007history %s\\n' $((40 + 2))\n")
        .await;
    harness.wait_output(&mut attachment, "history 42").await;
    let before = harness.session.with_heartbeats(async { attachment.output.clone() }).await;
    let job = harness.create(&["sh", "-c", "echo it ran; exec cat"]).await.expect("a job");
    let ended = harness.create(&["sh", "-c", "echo bye; exit 3"]).await.expect("a command that ends");
    let closed = harness.create(&[]).await.expect("a shell to close");
    let close = pb::CloseTerminalRequest { terminal_id: closed.id.clone(), ..Default::default() };
    let mut terminals = harness.client.terminals();
    harness.session.with_heartbeats(terminals.close(close)).await.expect("closed");
    let mut job_attachment = harness.attach(&job.id).await;
    harness.wait_output(&mut job_attachment, "it ran").await;
    let mut ended_attachment = harness.attach(&ended.id).await;
    harness.wait_program_exit(&mut ended_attachment).await;
    put_to_sleep(&mut harness).await;
    let modes = |path: PathBuf| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!((modes(journal_dir(&harness)), modes(journal_dir(&harness).join(&shell.id))), (0o700, 0o600));

    harness.restart_agent(set_plain_shell).await;
    let back = harness.list().await;
    let ids: Vec<_> = back.iter().map(|terminal| terminal.id.as_str()).collect();
    assert_eq!(ids, [&shell.id, &job.id, &ended.id], "the closed terminal is not restored");
    assert_eq!((back[0].name.as_str(), back[0].epoch, back[0].title.as_str()), ("mine", 2, "its title"));
    assert!(back[0].exit.is_none() && back[0].pid > 0 && back[0].created == shell.created);
    let mut attachment = harness.attach(&shell.id).await;
    assert_eq!(
        (attachment.stream.epoch, attachment.stream.typed),
        (2, 0),
        "input offsets start at zero in a new epoch"
    );
    attachment.type_text("pwd; echo now ${VARIABLE-gone}\n").await;
    harness.wait_output(&mut attachment, "now gone\r\n").await;
    assert!(attachment.output.starts_with(&before), "the history is unchanged: {}", attachment.text());
    let text = attachment.text();
    let (slept, new) = text.rsplit_once("[podling: slept from ").expect("a notice of the sleep");
    assert!(slept.contains("history 42") && new.contains("home/inner\r\n"), "{text}");

    let mut attachment = harness.attach(&job.id).await;
    harness.wait_program_exit(&mut attachment).await;
    assert_eq!(attachment.text().matches("it ran").count(), 1, "the command was not run again");
    assert!(attachment.text().contains("the program ended and was not restarted"), "{}", attachment.text());
    assert_eq!(attachment.exit.and_then(|exit| exit.how), Some(How::Signal("HUP".into())));
    let mut attachment = harness.attach(&ended.id).await;
    harness.wait_program_exit(&mut attachment).await;
    assert_eq!(
        (attachment.text().as_str(), attachment.exit.and_then(|exit| exit.how)),
        ("bye\r\n", Some(How::Code(3)))
    );

    // A second sleep adds to the history of the first.
    put_to_sleep(&mut harness).await;
    harness.restart_agent(set_plain_shell).await;
    let mut attachment = harness.attach(&shell.id).await;
    attachment.type_text("echo third\n").await;
    harness.wait_output(&mut attachment, "third\r\n").await;
    let text = attachment.text();
    assert!(text.contains("history 42") && text.matches("[podling: slept").count() == 2, "{text}");
}

#[tokio::test]
async fn stale_epoch_input_is_refused_after_sleep() {
    let mut harness = SleepHarness::new(set_plain_shell).await;
    let shell = harness.create(&[]).await.expect("a shell");
    let mut attachment = harness.attach(&shell.id).await;
    attachment.type_text("echo $((1 + 1))first\n").await;
    harness.wait_output(&mut attachment, "2first").await;
    let at = attachment.output.len() as u64;
    put_to_sleep(&mut harness).await;
    harness.restart_agent(set_plain_shell).await;
    let old = pb::Position { epoch: 1, offset: at };
    let mut attachment = harness.attach_from(&shell.id, from::From::Position(old)).await;
    assert_eq!(attachment.stream.epoch, 2, "the first frame has the new epoch");
    harness.wait_output(&mut attachment, "2first").await;
    attachment.stream.epoch = 1;
    attachment.type_text("typed into the previous shell\n").await;
    harness.receive_until(&mut attachment, "a refusal", |attachment| !attachment.refused.is_empty()).await;
    assert_eq!(attachment.refused, ["STALE_EPOCH"]);
    let input = pb::Input { epoch: 1, data: "x".into(), ..Default::default() };
    let write = pb::WriteTerminalRequest {
        terminal_id: shell.id.clone(),
        client_id: "other".into(),
        input: Some(input),
    };
    let refused = harness.client.terminals().write(write).await.expect_err("refused");
    assert_eq!(error::reason(&refused), Some(Reason::StaleEpoch));
    assert_eq!(error::detail(&refused, "epoch").as_deref(), Some("2"));
}

#[tokio::test]
async fn killed_agent_restores_history_and_reports_the_loss() {
    let mut harness = SleepHarness::new(set_plain_shell).await;
    let directory = harness.agent.path("home/gone");
    std::fs::create_dir(&directory).expect("a directory");
    let shell = harness.create(&[]).await.expect("a shell");
    let mut attachment = harness.attach(&shell.id).await;
    attachment.type_text("cd gone; echo kept$((6 * 7))\n").await;
    harness.wait_output(&mut attachment, "kept42").await;
    let path = journal_dir(&harness).join(&shell.id);
    let persisted =
        async || std::fs::read(&path).ok().filter(|file| file.windows(6).any(|bytes| bytes == b"kept42"));
    harness.session.with_heartbeats(wait_for("the journal with the output", persisted)).await;
    harness.agent.signal(Signal::KILL);
    harness.agent.wait_exit().await;
    std::fs::remove_dir(&directory).expect("removed");
    harness.restart_agent(set_plain_shell).await;
    let mut attachment = harness.attach(&shell.id).await;
    attachment.type_text("pwd; echo new$((6 * 7))\n").await;
    harness.wait_output(&mut attachment, "new42").await;
    let text = attachment.text();
    let (before, after) =
        text.split_once("[podling: restored after the agent was killed").expect("a notice of the restore");
    assert!(before.contains("kept42") && after.contains("may be missing"), "{text}");
    assert!(
        after.contains("is gone, so this is the home directory") && after.contains("/home\r\n"),
        "{text}"
    );
}

#[tokio::test]
async fn damaged_journal_is_set_aside_and_others_are_restored() {
    let mut harness = SleepHarness::new(set_plain_shell).await;
    let (intact, damaged) =
        (harness.create(&[]).await.expect("one"), harness.create(&[]).await.expect("another"));
    put_to_sleep(&mut harness).await;
    let path = journal_dir(&harness);
    let mut content = std::fs::read(path.join(&damaged.id)).expect("the journal");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(path.join(&damaged.id), &content).expect("written");
    std::fs::write(path.join("newernewerne"), "podling terminal 2\nof an unknown version").expect("written");
    let huge = std::fs::File::create(path.join("hugehugehuge")).expect("made");
    huge.set_len(1 << 40).expect("sparse");
    std::fs::create_dir(path.join("folderfolder")).expect("made");
    harness.restart_agent(set_plain_shell).await;
    let ids: Vec<_> = harness.list().await.into_iter().map(|terminal| terminal.id).collect();
    assert_eq!(ids, [intact.id]);
    for name in [damaged.id.as_str(), "newernewerne", "hugehugehuge"] {
        let aside = path.join(name).with_extension("bad");
        assert!(aside.exists() && !path.join(name).exists(), "{name} is set aside");
        assert!(harness.agent.log().contains(name), "the log names {name}");
    }
}

#[tokio::test]
async fn maintenance_restores_nothing_and_keeps_the_journal() {
    let mut harness = SleepHarness::new(set_plain_shell).await;
    let shell = harness.create(&[]).await.expect("a shell");
    put_to_sleep(&mut harness).await;
    let path = journal_dir(&harness);
    std::fs::write(path.join("newernewerne"), "podling terminal 2\n").expect("written");
    let before = files(&path);
    harness
        .restart_agent(|claim| {
            set_plain_shell(claim);
            claim.maintenance = true;
        })
        .await;
    assert!(harness.list().await.is_empty());
    harness.agent.signal(Signal::TERM);
    harness.agent.wait_exit().await;
    assert_eq!(files(&path), before);
    harness.restart_agent(set_plain_shell).await;
    assert_eq!(harness.list().await[0].id, shell.id);
}

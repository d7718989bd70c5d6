//! Restoring: a terminal that was kept comes back, its history above a new shell, or ended as it was. Must not know the disk.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustix::process::Signal;

use super::{
    CreateTerminal, TerminalExit,
    builder::{OpenedTerminal, TerminalBuilder, TerminalSpec},
    journal::{JournalMetadata, JournalRecord, time},
};
use crate::{
    admission::AdmissionGate,
    child::{Children, ExitStatus},
    claim::Claim,
    spawn::{Launcher, Program},
};

/// Switches off what a program may have left on and a shell does not expect: the other screen, mouse reports, bracketed paste, a
/// hidden cursor, margins, colours.
const RESET: &[u8] =
    b"\x1b[?1049l\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[r\x1b[0m";

/// Brings one back. Blocks for the time of a fork.
pub(super) fn restore(
    record: JournalRecord,
    launcher: &Launcher,
    children: &Children,
    gate: &Arc<AdmissionGate>,
    claim: &Claim,
) -> OpenedTerminal {
    let JournalRecord { facts, history } = record;
    let mut birth = TerminalBuilder::again(&facts, claim);
    history.iter().for_each(|piece| birth.print(piece));
    if let (Some(exit), None) = (facts.exit, facts.slept) {
        // It had ended by itself.
        let exit = exit.exit(birth.printed());
        return birth.ended(called(facts), exit, gate);
    }
    let Some(again) = facts.again.clone() else {
        note(&mut birth, &format!("{}; its program ended with it", past(&facts)));
        return gone(birth, facts, gate);
    };
    let (cwd, missing) = folder(&facts, launcher.root());
    note(&mut birth, &format!("{}{missing}", past(&facts)));
    let create = CreateTerminal {
        program: Program { argv: again.argv, env: again.env, cwd },
        size: facts.size(),
        name: facts.name.clone(),
        request_id: facts.request_id.clone(),
    };
    match create.start(launcher, children) {
        Ok(started) => birth.live(started, gate),
        Err(error) => {
            tracing::error!(terminal = facts.id, %error, "a terminal's shell does not start again");
            note(&mut birth, &format!("its shell does not start again: {error}"));
            gone(birth, facts, gate)
        }
    }
}

/// What has happened, for people.
fn past(facts: &JournalMetadata) -> String {
    let shown = httpdate::fmt_http_date;
    match facts.slept {
        Some(slept) => format!("slept from {} to {}", shown(time(slept)), shown(SystemTime::now())),
        None => format!(
            "restored after the agent was killed; output after {} may be missing",
            shown(time(facts.saved))
        ),
    }
}

/// One dim line of ours, below all that a program printed.
fn note(birth: &mut TerminalBuilder, text: &str) {
    // No text of ours has control characters; an error may quote something that has.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    birth.print(RESET);
    birth.print(format!("\r\n\x1b[2m[podling: {text}]\x1b[0m\r\n").as_bytes());
}

/// Its program ended with the workspace, and is not started again.
fn gone(birth: TerminalBuilder, facts: JournalMetadata, gate: &Arc<AdmissionGate>) -> OpenedTerminal {
    let last = birth.printed();
    let killed = || TerminalExit {
        how: ExitStatus::Signal(Signal::KILL.as_raw()),
        final_offset: last,
        at: time(facts.saved),
        held_by_background: false,
    };
    let exit = facts.exit.map_or_else(killed, |exit| exit.exit(last));
    birth.ended(called(facts), exit, gate)
}

fn called(facts: JournalMetadata) -> TerminalSpec {
    let size = facts.size();
    TerminalSpec {
        name: facts.name,
        argv: facts.argv,
        again: facts.again,
        request_id: facts.request_id,
        size,
    }
}

/// The folder it was in, or the home folder and words that say so.
fn folder(facts: &JournalMetadata, home: &Path) -> (String, String) {
    if facts.cwd.is_empty() {
        return (String::new(), String::new());
    }
    // As the launcher will look at it.
    if home.join(&facts.cwd).is_dir() {
        return (facts.cwd.clone(), String::new());
    }
    (String::new(), format!("; {} is gone, so this is the home folder", facts.cwd))
}

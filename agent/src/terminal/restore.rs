//! Restores a saved terminal. An interactive shell is restarted below its history. Any other
//! program comes back as an ended terminal with its history.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustix::process::Signal;

use super::{
    CreateTerminal, TerminalExit,
    builder::{OpenedTerminal, TerminalBuilder, TerminalSpec},
    journal::{JournalMetadata, JournalRecord, from_unix_nanos},
};
use crate::{
    admission::AdmissionGate,
    child::{Children, ExitStatus},
    claim::Claim,
    error_chain,
    spawn::{Launcher, Program},
};

/// Resets modes that a program may have set and a shell does not expect: alternate screen, mouse
/// reports, bracketed paste, hidden cursor, margins, colours.
const RESET_MODES: &[u8] =
    b"\x1b[?1049l\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[r\x1b[0m";

/// Restores one terminal. Blocks for the time of a fork (about 1 ms).
pub(super) fn restore(
    record: JournalRecord,
    launcher: &Launcher,
    children: &Children,
    gate: &Arc<AdmissionGate>,
    claim: &Claim,
) -> OpenedTerminal {
    let JournalRecord { metadata, history } = record;
    let mut builder = TerminalBuilder::from_journal(&metadata, claim);
    history.iter().for_each(|piece| builder.push_output(piece));
    if let (Some(exit), None) = (metadata.exit, metadata.slept) {
        // The program had ended by itself, before a sleep or a crash.
        let exit = exit.exit(builder.end_offset());
        return builder.build_ended(terminal_spec(metadata), exit, gate);
    }
    let Some(restart) = metadata.restart.clone() else {
        push_note(
            &mut builder,
            &format!("{}; the program ended and was not restarted", restore_reason(&metadata)),
        );
        return build_killed(builder, metadata, gate);
    };
    let (cwd, missing) = restored_cwd(&metadata, launcher.root());
    push_note(&mut builder, &format!("{}{missing}", restore_reason(&metadata)));
    let create = CreateTerminal {
        program: Program { argv: restart.argv, env: restart.env, cwd },
        size: metadata.size(),
        name: metadata.name.clone(),
        request_id: metadata.request_id.clone(),
    };
    match create.start(builder.id(), launcher, children) {
        Ok(started) => builder.build_running(started, gate),
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(terminal = metadata.id, error, "failed to restart the shell of a terminal");
            push_note(&mut builder, &format!("cannot restart the shell: {error}"));
            build_killed(builder, metadata, gate)
        }
    }
}

/// Describes to the user how the terminal ended.
fn restore_reason(metadata: &JournalMetadata) -> String {
    let shown = httpdate::fmt_http_date;
    match metadata.slept {
        Some(slept) => {
            format!("slept from {} to {}", shown(from_unix_nanos(slept)), shown(SystemTime::now()))
        }
        None => format!(
            "restored after the agent was killed; output after {} may be missing",
            shown(from_unix_nanos(metadata.saved))
        ),
    }
}

/// Appends one dim line of text below the history.
fn push_note(builder: &mut TerminalBuilder, text: &str) {
    // A quoted error or path may contain control characters.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    builder.push_output(RESET_MODES);
    builder.push_output(format!("\r\n\x1b[2m[podling: {text}]\x1b[0m\r\n").as_bytes());
}

/// Builds an ended terminal for a program that a sleep or a crash ended, and that is not restarted.
fn build_killed(
    builder: TerminalBuilder,
    metadata: JournalMetadata,
    gate: &Arc<AdmissionGate>,
) -> OpenedTerminal {
    let last = builder.end_offset();
    let killed = || TerminalExit {
        status: ExitStatus::Signal(Signal::KILL.as_raw()),
        final_offset: last,
        ended_at: from_unix_nanos(metadata.saved),
        held_by_background: false,
    };
    let exit = metadata.exit.map_or_else(killed, |exit| exit.exit(last));
    builder.build_ended(terminal_spec(metadata), exit, gate)
}

fn terminal_spec(metadata: JournalMetadata) -> TerminalSpec {
    let size = metadata.size();
    TerminalSpec {
        name: metadata.name,
        argv: metadata.argv,
        restart: metadata.restart,
        request_id: metadata.request_id,
        size,
    }
}

/// Returns the saved directory. If it is gone, returns the home directory and a note that says so.
fn restored_cwd(metadata: &JournalMetadata, home: &Path) -> (String, String) {
    if metadata.cwd.is_empty() {
        return (String::new(), String::new());
    }
    // Resolved in the same way as the launcher resolves it.
    if home.join(&metadata.cwd).is_dir() {
        return (metadata.cwd.clone(), String::new());
    }
    (String::new(), format!("; {} is gone, so this is the home directory", metadata.cwd))
}

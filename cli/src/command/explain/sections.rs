//! Renders the sections of an explanation: the activity with its evidence, what happens next and what
//! a user can do about it, where the files are, and the latest decisions. Pure.

use std::time::{Duration, SystemTime};

use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState, Evidence, Signal, SleepCause, SleepWarning},
    control::v1::{LogEntry, Remedy, State, Workspace, WorkspaceArchive, next_step::Step},
    text,
};

use crate::{
    advice,
    command::archives,
    duration::{ago, from_wire, left, show, since, when},
    output::{Tone, counted, paint, plain, table},
    workspace_text::{sleeps_in, state, state_tone},
};

/// Renders the activity, its evidence and the idle time. `fresh` says that the agent itself
/// reported the activity just now; otherwise its age is shown.
pub(super) fn activity_section(activity: &ActivityState, fresh: bool, now: SystemTime) -> String {
    let (word, tone) = match activity.level().word() {
        Some(word @ "idle") => (word, Tone::Faint),
        Some(word) => (word, Tone::Good),
        None => ("unknown", Tone::Notice),
    };
    let age = if fresh { String::new() } else { format!(" {} ago", since(activity.at, now)) };
    let mut text = format!("\nActivity{age}: {}", paint(word, tone));
    let rows: Vec<_> = activity.evidence.iter().map(row).collect();
    text.push_str(match (activity.level(), rows.is_empty()) {
        (ActivityLevel::Idle, true) => " (no recent input, no client waits, and no program is busy)\n",
        (_, true) => "\n",
        (ActivityLevel::Idle, false) => ", because none of these signals counts any more:\n\n",
        (_, false) => ", because of these signals:\n\n",
    });
    if !rows.is_empty() {
        for line in table(&["SIGNAL", "LAST SEEN", "COUNTS FOR"], &rows).lines() {
            text.push_str(&format!("  {line}\n"));
        }
        text.push('\n');
    }
    text.push_str(&render_idle(activity));
    if activity.sleep_warning.is_some() {
        text.push_str(&format!("{}\n", paint("Its users have been warned.", Tone::Notice)));
    }
    if let Some(usage) = activity.usage {
        text.push_str(&format!(
            "The workspace uses {:.2} cores and {} of memory, in {} and {}.\n",
            usage.cpu_cores,
            indicatif::HumanBytes(usage.memory_bytes),
            counted(usage.processes.into(), "process", "processes"),
            counted(usage.terminals.into(), "terminal", "terminals")
        ));
    }
    text
}

fn row(evidence: &Evidence) -> Vec<(String, Option<Tone>)> {
    let seen = from_wire(evidence.age).unwrap_or_default();
    let seen = if seen < Duration::from_secs(1) { "now".to_owned() } else { format!("{} ago", show(seen)) };
    let holds = match from_wire(evidence.holds_for).unwrap_or_default() {
        _ if evidence.capped => format!("no longer counts ({})", limit(evidence.signal())),
        Duration::ZERO => "while it is present".to_owned(),
        left => show(left),
    };
    let tone = evidence.capped.then_some(Tone::Faint);
    vec![(plain(&evidence.detail), tone), (seen, tone), (holds, tone)]
}

/// Returns the limit that ends a signal although it is still observed.
fn limit(signal: Signal) -> &'static str {
    match signal {
        Signal::Cpu | Signal::Io | Signal::KernelBusy => "work cap reached",
        Signal::ForegroundJob | Signal::IdeHeartbeat => "presence cap reached",
        Signal::Lease => "lease expired",
        // The agent does not say which of the two ended it.
        Signal::ClientCall => "call cap reached, or its client takes nothing",
        Signal::Keystroke
        | Signal::ClientWrite
        | Signal::PortRequest
        | Signal::PageVisible
        | Signal::ClientStart => "too long ago",
        Signal::Unspecified => "limit reached",
    }
}

fn render_idle(activity: &ActivityState) -> String {
    let counted = show(from_wire(activity.counted_idle).unwrap_or_default());
    let timeout = show(from_wire(activity.idle_timeout).unwrap_or_default());
    match activity.level() {
        ActivityLevel::Idle => {
            format!("Idle time so far: {counted}. The workspace falls asleep after {timeout}.\n")
        }
        ActivityLevel::Busy | ActivityLevel::Active | ActivityLevel::Unspecified => format!(
            "Idle time starts when no signal counts any more. The workspace falls asleep after {timeout} \
             of idle time.\n"
        ),
    }
}

/// Number of archives that are listed. Of older ones only the number is shown.
const MAX_LISTED: usize = 3;

/// Renders the next steps and the remedies. The commands in them address the workspace by
/// `selector`.
pub(super) fn outlook_section(
    workspace: &Workspace,
    remedies: impl Iterator<Item = Remedy>,
    selector: &str,
    now: SystemTime,
) -> String {
    let mut text = String::new();
    let next = next(workspace, now);
    if !next.is_empty() {
        text.push_str(&format!("\n{}\n", paint("Next", Tone::Strong)));
        let width = next.iter().map(|(when, _)| when.chars().count()).max().unwrap_or(0);
        for (when, what) in next {
            text.push_str(&format!("  {when:width$}  {what}\n"));
        }
    }
    let remedies: Vec<_> = remedies
        .map(|remedy| text::remedy(remedy, selector, &|arguments| advice::command(arguments)))
        .collect();
    if !remedies.is_empty() {
        text.push_str(&format!("\n{}\n", paint("What you can do", Tone::Strong)));
        remedies.iter().for_each(|remedy| text.push_str(&format!("  {remedy}\n")));
    }
    text
}

fn next(workspace: &Workspace, now: SystemTime) -> Vec<(String, String)> {
    let mut steps = Vec::new();
    let next = workspace.next.as_ref();
    if let Some((next, left)) = next.and_then(|next| Some((next, left(next.at, now)?))) {
        steps.push((when(left), text::next_step(next)));
    }
    // The control plane names one step, which may be due before the sleep, such as the warning.
    let names_sleep = next.is_some_and(|next| next.step() == Step::Sleep);
    if let Some(left) = sleeps_in(workspace, now).filter(|_| !names_sleep) {
        let warning = workspace.activity.as_ref().and_then(|activity| activity.sleep_warning.as_ref());
        let cause = warning.map_or(SleepCause::Idle, SleepWarning::cause);
        steps.push((when(left), text::sleep(cause).to_owned()));
    }
    steps
}

/// Renders where the files are: in the storage, in archives, or in both.
pub(super) fn storage_section(
    workspace: &Workspace,
    archives: &[WorkspaceArchive],
    now: SystemTime,
) -> String {
    let mut text = match (workspace.state(), archives.is_empty()) {
        // Everything is being removed, or the workspace runs and has no archive to list.
        (State::Deleting, _) | (State::Awake, true) => return String::new(),
        (State::Archived, false) => "\nIts files are only in its archives:\n".to_owned(),
        (State::Archived, true) => "\nIts files are gone, and no archive is left.\n".to_owned(),
        (_, false) => "\nIts files are in its storage. Earlier versions are in its archives:\n".to_owned(),
        (_, true) => "\nIts files are in its storage. It has no archive.\n".to_owned(),
    };
    for archive in archives.iter().take(MAX_LISTED) {
        let left_out =
            archives::left_out(archive).map(|left_out| format!("  {left_out}")).unwrap_or_default();
        text.push_str(&format!(
            "  {}  {}  {}  {} entries  expires {}{left_out}\n",
            archive.key,
            ago(archive.created, now),
            archives::size(archive),
            archive.entries,
            archives::expires(archive, now)
        ));
    }
    if archives.len() > MAX_LISTED {
        let more = archives.len() - MAX_LISTED;
        let list = advice::command(format_args!("archives {}", workspace.id));
        text.push_str(&format!("  and {more} older; see: {list}\n"));
    }
    text
}

/// Renders the decisions, oldest first. Returns an empty text if there are none.
pub(super) fn log_section(log: &[LogEntry], now: SystemTime) -> String {
    if log.is_empty() {
        return String::new();
    }
    let ages: Vec<_> = log.iter().map(|entry| ago(entry.at, now)).collect();
    let age_width = ages.iter().map(String::len).max().unwrap_or(0);
    let word_width = log.iter().map(|entry| state(entry.state()).len()).max().unwrap_or(0);
    let mut text = format!("\n{}\n", paint("Latest decisions", Tone::Strong));
    let mut before = None;
    for (entry, age) in log.iter().zip(ages) {
        // A state is not repeated where only the reason changed.
        let word = if before == Some(entry.state) { String::new() } else { state(entry.state()) };
        let word = coloured(entry.state(), &format!("{word:word_width$}"));
        let age = paint(&format!("{age:>age_width$}"), Tone::Faint).into_owned();
        text.push_str(&format!(
            "  {age}  {word}  {}\n",
            plain(&entry.reason.as_ref().map(text::state_reason).unwrap_or_default())
        ));
        before = Some(entry.state);
    }
    text
}

/// Returns the text in the colour of a state.
pub(super) fn coloured(of: State, text: &str) -> String {
    state_tone(of).map_or_else(|| text.to_owned(), |tone| paint(text, tone).into_owned())
}

#[cfg(test)]
mod tests {
    use podling_proto::control::v1::{StateReason, StateReasonCode};

    use super::*;
    use crate::duration::to_wire;

    fn wire(seconds: u64) -> Option<prost_types::Duration> {
        Some(to_wire(Duration::from_secs(seconds)))
    }

    #[test]
    fn busy_shows_its_evidence_and_what_no_longer_counts() {
        let evidence = |signal: Signal, detail: &str, capped| Evidence {
            signal: signal.into(),
            detail: detail.to_owned(),
            age: wire(3),
            holds_for: wire(3_600),
            capped,
        };
        let activity = ActivityState {
            level: ActivityLevel::Busy.into(),
            evidence: vec![
                evidence(Signal::Cpu, "python3 (pid 4711) uses 97 % of a core", false),
                evidence(Signal::ForegroundJob, "vim in terminal 'main'", true),
            ],
            idle_timeout: wire(900),
            ..ActivityState::default()
        };
        let text = activity_section(&activity, true, SystemTime::now());
        for words in
            ["Activity: busy", "97 % of a core", "3s ago", "1h", "(presence cap reached)", "after 15m"]
        {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn idle_shows_signals_that_no_longer_count() {
        let capped = Evidence {
            signal: Signal::Cpu.into(),
            detail: "python3 (pid 4711) uses 97 % of a core".to_owned(),
            capped: true,
            ..Evidence::default()
        };
        let level = ActivityLevel::Idle.into();
        let activity = ActivityState { level, evidence: vec![capped], ..ActivityState::default() };
        let text = activity_section(&activity, true, SystemTime::now());
        assert!(text.contains("Activity: idle, because none of these signals counts any more:"), "{text}");
        assert!(text.contains("no longer counts (work cap reached)"), "{text}");
    }

    #[test]
    fn activity_of_an_old_heartbeat_says_so() {
        let at = Some(SystemTime::UNIX_EPOCH.into());
        let idle = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: wire(60),
            at,
            ..Default::default()
        };
        let text = activity_section(&idle, false, SystemTime::UNIX_EPOCH + Duration::from_secs(12));
        assert!(text.contains("Activity 12s ago: idle (no recent input, no client waits"), "{text}");
        assert!(text.contains("Idle time so far: 1m."), "{text}");
    }

    #[test]
    fn unchanged_state_is_not_repeated() {
        let entry = |seconds, state: State, reason: &str| LogEntry {
            at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()),
            state: state.into(),
            reason: Some(StateReason {
                code: StateReasonCode::Unspecified.into(),
                detail: reason.to_owned(),
                ..StateReason::default()
            }),
        };
        let log = [
            entry(0, State::Asleep, "idle for the whole idle timeout"),
            entry(90_000, State::Archiving, "asleep for its whole archive delay"),
            entry(90_030, State::Asleep, "archiving failed\x1b[2J: no space left"),
            entry(90_060, State::Asleep, "archiving failed: no permission"),
        ];
        let text = log_section(&log, SystemTime::UNIX_EPOCH + Duration::from_secs(90_060));
        assert_eq!(
            text,
            "\nLatest decisions\n\
             \x20 1d 1h ago  asleep     idle for the whole idle timeout\n\
             \x20    1m ago  archiving  asleep for its whole archive delay\n\
             \x20   30s ago  asleep     archiving failed\u{fffd}[2J: no space left\n\
             \x20       now             archiving failed: no permission\n"
        );
    }
}

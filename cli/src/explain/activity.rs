//! Renders the activity of a workspace with its evidence.

use std::time::{Duration, SystemTime};

use podling_proto::agent::v1::{ActivityLevel, ActivityState, Evidence, Signal};

use crate::{
    duration::{from_wire, show, since},
    output::{Tone, counted, paint, plain, table},
    workspace_text::activity_word,
};

/// Renders the activity, its evidence and the idle time. `fresh` says that the agent itself
/// reported the activity just now; otherwise its age is shown.
pub fn render(activity: &ActivityState, fresh: bool, now: SystemTime) -> String {
    let (word, tone) = match activity_word(activity.level()) {
        Some(word @ "idle") => (word, Tone::Faint),
        Some(word) => (word, Tone::Good),
        None => ("unknown", Tone::Notice),
    };
    let mut text = match fresh {
        true => format!("\nActivity: {}", paint(word, tone)),
        false => format!("\nActivity {} ago: {}", since(activity.at, now), paint(word, tone)),
    };
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
            counted(usage.processes, "process", "processes"),
            counted(usage.terminals, "terminal", "terminals")
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

#[cfg(test)]
mod tests {
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
        let text = render(&activity, true, SystemTime::now());
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
        let text = render(&activity, true, SystemTime::now());
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
        let text = render(&idle, false, SystemTime::UNIX_EPOCH + Duration::from_secs(12));
        assert!(text.contains("Activity 12s ago: idle (no recent input, no client waits"), "{text}");
        assert!(text.contains("Idle time so far: 1m."), "{text}");
    }
}

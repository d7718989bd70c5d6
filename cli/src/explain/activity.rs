//! The activity of a workspace, with its evidence.

use std::time::{Duration, SystemTime};

use podling_proto::agent::v1::{ActivityLevel, ActivityState, Evidence, Lease, SleepCause, SleepWarning};

use crate::{
    duration::{self, from_wire, show},
    next_transition::{brief, left, since},
    output::{Tone, counted, paint, plain, table},
    view::activity_word,
};

/// Renders the activity and its evidence.
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
    if rows.is_empty() {
        text.push_str(". No input arrives and no program works.\n");
    } else {
        text.push_str(", because of:\n\n");
        for line in table(&["SIGNAL", "LAST SEEN", "COUNTS FOR"], &rows).lines() {
            text.push_str(&format!("  {line}\n"));
        }
        text.push('\n');
    }
    text.push_str(&render_idle(activity));
    if let Some(warning) = &activity.sleep_warning {
        text.push_str(&render_warning(warning, now));
    }
    activity.leases.iter().for_each(|lease| text.push_str(&render_lease(lease)));
    if let Some(usage) = activity.usage {
        text.push_str(&format!(
            "It uses {:.2} cores and {} of memory, in {} and {}.\n",
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
        _ if evidence.capped => "no longer counts: its cap is reached".to_owned(),
        Duration::ZERO => "while it is present".to_owned(),
        left => show(left),
    };
    let tone = evidence.capped.then_some(Tone::Faint);
    vec![(plain(&evidence.detail), tone), (seen, tone), (holds, tone)]
}

fn render_idle(activity: &ActivityState) -> String {
    let counted = from_wire(activity.counted_idle).unwrap_or_default();
    let wanted = from_wire(activity.idle_timeout).unwrap_or_default();
    match activity.level() {
        ActivityLevel::Idle => {
            format!("Idle time so far: {}. It falls asleep after {}.\n", show(counted), show(wanted))
        }
        _ => format!(
            "Idle time counts once none of these signals is left. It falls asleep after {} of idle time.\n",
            show(wanted)
        ),
    }
}

fn render_lease(lease: &Lease) -> String {
    let left = duration::show(from_wire(lease.remaining).unwrap_or_default());
    let why = if lease.reason.is_empty() { String::new() } else { format!(" ({})", plain(&lease.reason)) };
    format!("The keep-awake lease {:?}{why} holds for another {left}.\n", plain(&lease.name))
}

fn render_warning(warning: &SleepWarning, now: SystemTime) -> String {
    let left = left(warning.at, now).unwrap_or_default();
    let when = brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
    let why = match warning.cause() {
        SleepCause::Unspecified | SleepCause::Idle => "unless it is used",
        SleepCause::MaxAwake => "because its longest time awake is over",
        SleepCause::Requested => "as requested",
    };
    let line = format!("Its users have been warned that it falls asleep {when} {why}.");
    format!("{}\n", paint(&line, Tone::Notice))
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::Signal;

    use super::*;

    fn wire(seconds: u64) -> Option<prost_types::Duration> {
        Some(duration::to_wire(Duration::from_secs(seconds)))
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
            leases: vec![Lease { name: "backup".to_owned(), remaining: wire(60), ..Lease::default() }],
            ..ActivityState::default()
        };
        let text = render(&activity, true, SystemTime::now());
        for words in [
            "Activity: busy",
            "97 % of a core",
            "3s ago",
            "1h",
            "its cap is reached",
            "after 15m",
            "The keep-awake lease \"backup\" holds for another 1m",
        ] {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
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
        assert!(text.contains("Activity 12s ago: idle. No input"), "{text}");
        assert!(text.contains("Idle time so far: 1m."), "{text}");
    }
}

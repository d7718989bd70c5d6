//! Renders the last decisions: when, the state from then on, and the reason.

use std::time::SystemTime;

use podling_proto::{control::v1::LogEntry, text};
use serde::Serialize;

use super::coloured;
use crate::{
    next_transition::{brief, since},
    output::{Tone, paint, plain},
    view::{reason_word, state},
};

/// JSON form of a decision.
#[derive(Debug, Serialize)]
pub struct LogEntryJson {
    pub at: Option<String>,
    /// The state from then on.
    pub state: &'static str,
    /// Code of the reason: `agent-connected`, `idle`, …
    pub reason: String,
    /// The reason in English, with its details.
    pub message: String,
}

impl From<&LogEntry> for LogEntryJson {
    fn from(entry: &LogEntry) -> Self {
        Self {
            at: entry.at.as_ref().map(ToString::to_string),
            state: state(entry.state()),
            reason: entry.reason.as_ref().map(reason_word).unwrap_or_default(),
            message: entry.reason.as_ref().map(text::state_reason).unwrap_or_default(),
        }
    }
}

/// Renders the decisions, oldest first.
pub fn render(log: &[LogEntry], now: SystemTime) -> String {
    if log.is_empty() {
        return String::new();
    }
    let ages: Vec<_> = log.iter().map(|entry| age(entry, now)).collect();
    let age_width = ages.iter().map(String::len).max().unwrap_or(0);
    let word_width = log.iter().map(|entry| state(entry.state()).len()).max().unwrap_or(0);
    let mut text = format!("\n{}\n", paint("Latest decisions", Tone::Strong));
    let mut before = None;
    for (entry, age) in log.iter().zip(ages) {
        // A state is not repeated where only the reason changed.
        let word = if before == Some(entry.state) { "" } else { state(entry.state()) };
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

fn age(entry: &LogEntry, now: SystemTime) -> String {
    let Some(at) = entry.at.and_then(|at| SystemTime::try_from(at).ok()) else {
        return since(entry.at, now);
    };
    let age = now.duration_since(at).unwrap_or_default();
    brief(age).map_or_else(|| "now".to_owned(), |age| format!("{age} ago"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_proto::control::v1::{State, StateReason, StateReasonCode};

    use super::*;

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
            entry(0, State::Asleep, "it is not used"),
            entry(90_000, State::Archiving, "it has slept for long"),
            entry(90_030, State::Asleep, "it could not be archived\x1b[2J: no room"),
            entry(90_060, State::Asleep, "it could not be archived: no permission"),
        ];
        let text = render(&log, SystemTime::UNIX_EPOCH + Duration::from_secs(90_060));
        assert_eq!(
            text,
            "\nLatest decisions\n\
             \x20 1d 1h ago  asleep     it is not used\n\
             \x20    1m ago  archiving  it has slept for long\n\
             \x20   30s ago  asleep     it could not be archived\u{fffd}[2J: no room\n\
             \x20       now             it could not be archived: no permission\n"
        );
    }
}

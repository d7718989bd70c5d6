//! Renders the latest decisions as text and JSON. Each has its age, the state from then on, and the
//! reason.

use std::time::SystemTime;

use podling_proto::{control::v1::LogEntry, text};
use serde::Serialize;

use super::coloured;
use crate::{
    duration::{brief, since},
    output::{Tone, paint, plain},
    workspace_json::reason_word,
    workspace_text::state,
};

/// One decision, as `podling explain --json` prints it.
#[derive(Debug, Serialize)]
pub struct LogEntryJson {
    /// Time of the decision, RFC 3339.
    pub at: Option<String>,
    /// State of the workspace from then on.
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

/// Renders the decisions, oldest first. Returns an empty text if there are none.
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
            entry(0, State::Asleep, "idle for the whole idle timeout"),
            entry(90_000, State::Archiving, "asleep for its whole archive delay"),
            entry(90_030, State::Asleep, "archiving failed\x1b[2J: no space left"),
            entry(90_060, State::Asleep, "archiving failed: no permission"),
        ];
        let text = render(&log, SystemTime::UNIX_EPOCH + Duration::from_secs(90_060));
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

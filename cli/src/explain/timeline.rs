//! What was decided lately, as a person likes to read it: how long ago, what it was from then on, why.

use std::time::SystemTime;

use podling_proto::control::v1::LogEntry;
use serde::Serialize;

use super::coloured;
use crate::{
    next_transition::{brief, since},
    output::{Tone, paint, plain},
    view::state,
};

/// A decision, for scripts.
#[derive(Debug, Serialize)]
pub struct LogEntryView {
    /// When.
    pub at: Option<String>,
    /// What it was from then on.
    pub state: &'static str,
    /// Why.
    pub reason: String,
}

impl From<&LogEntry> for LogEntryView {
    fn from(entry: &LogEntry) -> Self {
        Self {
            at: entry.at.as_ref().map(ToString::to_string),
            state: state(entry.state()),
            reason: entry.reason.clone(),
        }
    }
}

/// The decisions, the latest last.
pub fn render(log: &[LogEntry], now: SystemTime) -> String {
    if log.is_empty() {
        return String::new();
    }
    let ages: Vec<_> = log.iter().map(|entry| age(entry, now)).collect();
    let age_width = ages.iter().map(String::len).max().unwrap_or(0);
    let word_width = log.iter().map(|entry| state(entry.state()).len()).max().unwrap_or(0);
    let mut text = format!("\n{}\n", paint("Lately", Tone::Strong));
    let mut before = None;
    for (entry, age) in log.iter().zip(ages) {
        // A state that goes on is not repeated: what changed is the reason.
        let word = if before == Some(entry.state) { "" } else { state(entry.state()) };
        let word = coloured(entry.state(), &format!("{word:word_width$}"));
        let age = paint(&format!("{age:>age_width$}"), Tone::Faint).into_owned();
        text.push_str(&format!("  {age}  {word}  {}\n", plain(&entry.reason)));
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

    use podling_proto::control::v1::State;

    use super::*;

    #[test]
    fn a_state_that_goes_on_is_not_repeated() {
        let entry = |seconds, state: State, reason: &str| LogEntry {
            at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()),
            state: state.into(),
            reason: reason.to_owned(),
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
            "\nLately\n\
             \x20 1d 1h ago  asleep     it is not used\n\
             \x20    1m ago  archiving  it has slept for long\n\
             \x20   30s ago  asleep     it could not be archived\u{fffd}[2J: no room\n\
             \x20       now             it could not be archived: no permission\n"
        );
    }
}

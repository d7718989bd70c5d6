//! Policy of a workspace: its command-line flags, its JSON and its text.

use std::time::Duration;

use clap::Args;
use podling_proto::control::v1::Policy;

use crate::{
    duration::{self, from_wire, show, to_wire},
    output::{Tone, paint},
};

/// Policy flags of `create` and `policy set`. The control plane rejects durations outside 1s to
/// 365d.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct PolicyFlags {
    /// Idle time after which the workspace falls asleep, for example 15m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,
    /// Time before sleep at which users are warned, for example 2m; at most half the idle timeout
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    warning: Option<Duration>,
    /// Time after the last input of a user or client for which busy programs keep the workspace
    /// awake, for example 12h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    work_cap: Option<Duration>,
    /// Time after the last input of a user or client for which a foreground program keeps the
    /// workspace awake, for example 1h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    presence_cap: Option<Duration>,
    /// Time after its start or the last input for which a client's call, such as a command that
    /// `podling run` follows, keeps the workspace awake, for example 12h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    call_cap: Option<Duration>,
    /// Longest time awake, even if in use, for example 12h; "none" for no limit
    #[arg(long, value_name = "DURATION|none", value_parser = duration::parse_or_none)]
    max_awake: Option<Duration>,
    /// Time asleep after which the workspace is archived and its storage is removed, for example 1d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    archive_after: Option<Duration>,
    /// Age at which an archive is removed, even if it is the last one, for example 30d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    keep_archives: Option<Duration>,
}

impl PolicyFlags {
    /// Returns whether no flag was given.
    pub fn is_empty(&self) -> bool {
        self.to_wire() == Policy::default()
    }

    /// Returns the policy with only the given flags set.
    pub fn to_wire(self) -> Policy {
        Policy {
            idle_timeout: self.idle_timeout.map(to_wire),
            work_cap: self.work_cap.map(to_wire),
            presence_cap: self.presence_cap.map(to_wire),
            call_cap: self.call_cap.map(to_wire),
            warning: self.warning.map(to_wire),
            max_awake: self.max_awake.map(to_wire),
            archive_after: self.archive_after.map(to_wire),
            keep_archives: self.keep_archives.map(to_wire),
        }
    }
}

/// Renders one line per setting: its name, its value and its meaning.
pub fn render(policy: &Policy) -> String {
    let rows = [
        ("idle timeout", policy.idle_timeout, "idle time after which it falls asleep"),
        ("warning", policy.warning, "time before sleep at which its users are warned"),
        ("work cap", policy.work_cap, "time after the last input for which busy programs keep it awake"),
        (
            "presence cap",
            policy.presence_cap,
            "time after the last input for which a foreground program keeps it awake",
        ),
        (
            "call cap",
            policy.call_cap,
            "time after its start or the last input for which a client's call keeps it awake",
        ),
        ("max awake", policy.max_awake, "time awake after which it falls asleep, even if in use"),
        (
            "archive after",
            policy.archive_after,
            "time asleep after which it is archived and its storage is removed",
        ),
        ("keep archives", policy.keep_archives, "age at which an archive is removed, even the last one"),
    ];
    let line = |(name, value, means): (&str, Option<prost_types::Duration>, &str)| {
        let value = from_wire(value).map_or_else(|| "no limit".to_owned(), show);
        format!("{} {value:<8} {}\n", paint(&format!("{name:<14}"), Tone::Strong), paint(means, Tone::Faint))
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_flags_not_given_are_absent() {
        assert!(PolicyFlags::default().is_empty());
        let flags = PolicyFlags { max_awake: Some(Duration::from_secs(60)), ..PolicyFlags::default() };
        assert!(!flags.is_empty());
        let said = Policy { max_awake: Some(to_wire(Duration::from_secs(60))), ..Policy::default() };
        assert_eq!(flags.to_wire(), said);
    }

    #[test]
    fn policy_text_explains_each_setting() {
        let policy = Policy { idle_timeout: Some(to_wire(Duration::from_secs(900))), ..Policy::default() };
        let text = render(&policy);
        assert!(text.contains("idle timeout   15m      idle time after which"), "{text}");
        assert!(text.contains("max awake      no limit time awake"), "{text}");
    }
}

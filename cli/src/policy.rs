//! A workspace's policy: command-line flags, JSON and text. Independent of the commands that use
//! it.

use std::time::Duration;

use clap::Args;
use podling_proto::control::v1::Policy;
use serde::Serialize;

use crate::{
    duration::{self, from_wire, show, to_wire},
    output::{Tone, paint},
    view::seconds,
};

/// Flags that override the policy of the template. The control plane accepts 1s to 365d.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct PolicyFlags {
    /// Idle time until the workspace sleeps, for example 15m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,
    /// Time before sleep at which users are warned; at most half the idle timeout
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    warning: Option<Duration>,
    /// Time after the last user input during which running work keeps the workspace awake
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    work_cap: Option<Duration>,
    /// Time after the last user input during which a foreground program keeps the workspace awake
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    presence_cap: Option<Duration>,
    /// Longest time awake, even if in use, for example 12h; "none" for no limit
    #[arg(long, value_name = "DURATION|none", value_parser = duration::parse_or_none)]
    max_awake: Option<Duration>,
    /// Time asleep until the workspace is archived and its storage is deleted, for example 1d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    archive_after: Option<Duration>,
    /// Time until an archive is deleted, even if it is the last one, for example 30d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    keep_archives: Option<Duration>,
}

/// JSON form of a policy. Null means no limit.
#[derive(Debug, Serialize)]
pub struct PolicyJson {
    pub idle_timeout_seconds: Option<f64>,
    pub warning_seconds: Option<f64>,
    /// Time after the last user input during which running work keeps the workspace awake.
    pub work_cap_seconds: Option<f64>,
    /// Time after the last user input during which a foreground program keeps the workspace awake.
    pub presence_cap_seconds: Option<f64>,
    pub max_awake_seconds: Option<f64>,
    pub archive_after_seconds: Option<f64>,
    pub keep_archives_seconds: Option<f64>,
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
            warning: self.warning.map(to_wire),
            max_awake: self.max_awake.map(to_wire),
            archive_after: self.archive_after.map(to_wire),
            keep_archives: self.keep_archives.map(to_wire),
        }
    }
}

impl From<&Policy> for PolicyJson {
    fn from(policy: &Policy) -> Self {
        Self {
            idle_timeout_seconds: seconds(policy.idle_timeout),
            warning_seconds: seconds(policy.warning),
            work_cap_seconds: seconds(policy.work_cap),
            presence_cap_seconds: seconds(policy.presence_cap),
            max_awake_seconds: seconds(policy.max_awake),
            archive_after_seconds: seconds(policy.archive_after),
            keep_archives_seconds: seconds(policy.keep_archives),
        }
    }
}

/// Renders one line per setting, with its meaning.
pub fn render(policy: &Policy) -> String {
    let rows = [
        ("idle timeout", policy.idle_timeout, "of idle time, then the workspace sleeps"),
        ("warning", policy.warning, "before sleep, users are warned"),
        ("work cap", policy.work_cap, "after the last user input, running work no longer keeps it awake"),
        (
            "presence cap",
            policy.presence_cap,
            "after the last user input, a foreground program no longer keeps it awake",
        ),
        ("max awake", policy.max_awake, "awake, even if in use, then the workspace sleeps"),
        ("archive after", policy.archive_after, "asleep, then it is archived and its storage is deleted"),
        ("keep archives", policy.keep_archives, "then an archive is deleted, even the last one"),
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
        assert!(text.contains("idle timeout   15m      of idle time"), "{text}");
        assert!(text.contains("max awake      no limit awake"), "{text}");
    }
}

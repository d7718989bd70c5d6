//! A workspace's policy as people give it (flags) and as they and scripts read it. Must not know which command it belongs to.

use std::time::Duration;

use clap::Args;
use podling_proto::control::v1::Policy;
use serde::Serialize;

use crate::{
    duration::{self, from_wire, show, to_wire},
    output::{Tone, paint},
    view::seconds,
};

/// Flags for what is to differ from the template's policy. Each 1s to 365d; the control plane checks that.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct PolicyFlags {
    /// Idle time before it sleeps, for example 15m.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,
    /// How long before its sleep people are warned; at most half the idle timeout.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    warning: Option<Duration>,
    /// How long running work keeps it awake after the last sign of a person.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    work_cap: Option<Duration>,
    /// How long a program in the foreground keeps it awake after the last sign of a person.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    presence_cap: Option<Duration>,
    /// Longest time awake, used or not; none: no end.
    #[arg(long, value_name = "DURATION|none", value_parser = duration::parse_or_none)]
    max_awake: Option<Duration>,
    /// Time asleep before it is archived and its storage let go.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    archive_after: Option<Duration>,
    /// How long its archives are kept.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    keep_archives: Option<Duration>,
}

/// A policy, for scripts: seconds; null where there is no end.
#[derive(Debug, Serialize)]
pub struct PolicyView {
    /// Idle time before sleep.
    pub idle_timeout_seconds: Option<f64>,
    /// Warned so long before.
    pub warning_seconds: Option<f64>,
    /// Work holds so long after the last intent.
    pub work_cap_seconds: Option<f64>,
    /// Presence holds so long after the last intent.
    pub presence_cap_seconds: Option<f64>,
    /// Longest time awake.
    pub max_awake_seconds: Option<f64>,
    /// Asleep so long before it is archived.
    pub archive_after_seconds: Option<f64>,
    /// Archives are kept so long.
    pub keep_archives_seconds: Option<f64>,
}

impl PolicyFlags {
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.to_wire() == Policy::default()
    }

    /// What was said; the rest is absent.
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

impl From<&Policy> for PolicyView {
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

/// A line for each of it, with what it means.
pub fn render(policy: &Policy) -> String {
    let rows = [
        ("idle timeout", policy.idle_timeout, "of idle time that counts, then it sleeps"),
        ("warning", policy.warning, "before that, people in it are told"),
        ("work cap", policy.work_cap, "after the last sign of a person, running work holds no longer"),
        ("presence cap", policy.presence_cap, "after it, a program in the foreground holds no longer"),
        ("max awake", policy.max_awake, "awake, used or not, then it sleeps"),
        ("archive after", policy.archive_after, "asleep, then it is archived and its storage let go"),
        ("keep archives", policy.keep_archives, "then they are removed, also the last"),
    ];
    let line = |(name, value, means): (&str, Option<prost_types::Duration>, &str)| {
        let value = from_wire(value).map_or_else(|| "no end".to_owned(), show);
        format!("{} {value:<8} {}\n", paint(&format!("{name:<14}"), Tone::Strong), paint(means, Tone::Faint))
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_said_is_absent_and_stays_as_it_is() {
        assert!(PolicyFlags::default().is_empty());
        let flags = PolicyFlags { max_awake: Some(Duration::from_secs(60)), ..PolicyFlags::default() };
        assert!(!flags.is_empty());
        let said = Policy { max_awake: Some(to_wire(Duration::from_secs(60))), ..Policy::default() };
        assert_eq!(flags.to_wire(), said);
    }

    #[test]
    fn a_person_reads_what_each_means() {
        let policy = Policy { idle_timeout: Some(to_wire(Duration::from_secs(900))), ..Policy::default() };
        let text = render(&policy);
        assert!(text.contains("idle timeout   15m      of idle time"), "{text}");
        assert!(text.contains("max awake      no end   awake"), "{text}");
    }
}

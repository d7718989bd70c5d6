//! How long what may last.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident;)*) => {
        /// How long what may last: hours, minutes and seconds ("36h", "1h30m", "90s"), from 1 s to a year. What is absent is the
        /// template's, or else Podling's own.
        #[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[x_kube(
            validation = Rule::new("!has(self.warning) || !has(self.idleTimeout) || duration(self.warning) + duration(self.warning) <= duration(self.idleTimeout)")
                .message("people are warned at most half the idle timeout before")
        )]
        pub struct PolicySpec {
            $(
                $(#[doc = $doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(length(max = 16), inner(regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")))]
                #[x_kube(
                    validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8784h')")
                        .message("a time from 1s to 8784h (a year)")
                )]
                pub $field: Option<String>,
            )*
        }
    };
}

policy! {
    /// Counted idle time before sleep; 15 minutes.
    idle_timeout;
    /// How long before that people are warned; 2 minutes.
    warning;
    /// How long work holds after the last intent; 12 hours.
    work_cap;
    /// How long presence holds after the last intent; an hour.
    presence_cap;
    /// Time asleep before the storage is archived and let go; a day.
    archive_after;
    /// How long archives are kept; 30 days.
    keep_archives;
    /// Longest time awake, used or not; no end.
    max_awake;
}

//! Verbs, which are the permissions of tokens: their string forms, and sets of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::v1::Verb;

/// A set of verbs. With `admin` it allows everything except [`Verb::Agent`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Verbs(Vec<Verb>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown verb {0:?}; the verbs are {list}", list = list())]
pub struct UnknownVerb(String);

/// All verbs that a token may carry, with their string form.
pub const ALL: &[(Verb, &str)] = &[
    (Verb::Read, "read"),
    (Verb::TerminalWatch, "terminal-watch"),
    (Verb::Terminal, "terminal"),
    (Verb::Process, "process"),
    (Verb::FilesRead, "files-read"),
    (Verb::FilesWrite, "files-write"),
    (Verb::KeepAwake, "keep-awake"),
    (Verb::Lifecycle, "lifecycle"),
    (Verb::Token, "token"),
    (Verb::Admin, "admin"),
];

/// Returns the string form of a verb.
pub fn name(verb: Verb) -> &'static str {
    ALL.iter().find(|(v, _)| *v == verb).map_or("agent", |(_, n)| n)
}

fn list() -> String {
    ALL.iter().map(|(_, n)| *n).collect::<Vec<_>>().join(", ")
}

impl Verbs {
    /// Creates the set that allows everything except [`Verb::Agent`].
    pub fn admin() -> Self {
        Self(vec![Verb::Admin])
    }

    /// Creates a set of exactly these verbs.
    pub fn only(verbs: impl IntoIterator<Item = Verb>) -> Self {
        let mut verbs: Vec<_> = verbs.into_iter().collect();
        verbs.sort_by_key(|v| *v as i32);
        verbs.dedup();
        Self(verbs)
    }

    /// Returns whether a call that requires `verb` is allowed.
    pub fn allow(&self, verb: Verb) -> bool {
        verb != Verb::Agent
            && verb != Verb::Unspecified
            && (self.0.contains(&verb) || self.0.contains(&Verb::Admin))
    }

    /// Returns whether this set allows everything that `other` allows.
    pub fn include(&self, other: &Self) -> bool {
        other.0.iter().all(|v| self.allow(*v))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the string forms of the verbs, in the order of the enum.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|v| name(*v).to_owned()).collect()
    }
}

impl TryFrom<Vec<String>> for Verbs {
    type Error = UnknownVerb;

    fn try_from(names: Vec<String>) -> Result<Self, UnknownVerb> {
        let verbs = names.iter().map(|n| parse(n)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::only(verbs))
    }
}

impl From<Verbs> for Vec<String> {
    fn from(verbs: Verbs) -> Self {
        verbs.names()
    }
}

impl FromStr for Verbs {
    type Err = UnknownVerb;

    fn from_str(text: &str) -> Result<Self, UnknownVerb> {
        text.split(',').map(|n| parse(n.trim())).collect::<Result<Vec<_>, _>>().map(Self::only)
    }
}

impl fmt::Display for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

fn parse(text: &str) -> Result<Verb, UnknownVerb> {
    ALL.iter().find(|(_, n)| *n == text).map(|(v, _)| *v).ok_or_else(|| UnknownVerb(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_allows_all_but_agent() {
        for (verb, _) in ALL {
            assert!(Verbs::admin().allow(*verb));
        }
        assert!(!Verbs::admin().allow(Verb::Agent));
    }

    #[test]
    fn set_includes_only_what_it_allows() {
        let read: Verbs = "read,files-read".parse().expect("verbs");
        assert!(Verbs::admin().include(&read));
        assert!(!read.include(&Verbs::admin()));
        assert!(!read.allow(Verb::Terminal));
        assert_eq!(read.to_string(), "read,files-read");
    }

    #[test]
    fn unknown_verb_error_lists_verbs() {
        let err = "raed".parse::<Verbs>().expect_err("unknown").to_string();
        assert!(err.contains("raed") && err.contains("terminal-watch"), "{err}");
    }
}

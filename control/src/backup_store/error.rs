//! Why a backup could not be made, proven, read or removed: in words for the one who has to do something about it.
//!
//! What the systems below say is sorted here into kinds: full, denied, missing, or out of reach (which may pass).

use std::{error::Error, fmt, io};

use super::{
    key::StoreKey,
    limits::{MAX_REASON_CHARS, MAX_REASONS},
};

/// What a system below said.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Why there is no backup store.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// It is no URL, or none of a kind of store.
    #[error(
        "{url:?} names no backup store: {problem}. It can be file:///absolute/folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This program was built without it.
    #[error(
        "the backup store {url} needs a podling-control that was built with the feature \"cloud\"; this one can use folders: file:///absolute/folder"
    )]
    NotBuilt {
        /// As it was given.
        url: String,
    },
    /// The folder cannot be used.
    #[error("the folder of the backup store, {path}, {problem}")]
    Directory {
        /// Which.
        path: String,
        /// What is wrong with it, or what was tried.
        problem: String,
        /// What the system said, if it was asked.
        source: Option<io::Error>,
    },
    /// The client of a cloud does not like what it was given.
    #[error("the backup store {url} cannot be used as it is configured")]
    Cloud {
        /// As it was given.
        url: String,
        /// Why.
        source: Cause,
    },
}

/// Why something about a backup failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupStoreError {
    /// No room: something has to be freed first.
    #[error("{place} is full ({doing})")]
    Full {
        /// The store or the scratch folder.
        place: String,
        /// What was tried.
        doing: String,
        /// What the system said.
        source: Cause,
    },
    /// Somebody has to change permissions or credentials.
    #[error("{place} does not let us in ({doing})")]
    Denied {
        /// The store or the scratch folder.
        place: String,
        /// What was tried.
        doing: String,
        /// What the system said.
        source: Cause,
    },
    /// There is no such backup, or half of it.
    #[error("{place} holds no {object}")]
    Missing {
        /// The store.
        place: String,
        /// What was looked for.
        object: String,
    },
    /// What is stored is not what was written.
    #[error("the backup {key} is damaged: {}{problem}", entry.as_ref().map(|entry| format!("{entry}: ")).unwrap_or_default())]
    Damaged {
        /// Which backup.
        key: StoreKey,
        /// At which entry, if it is one.
        entry: Option<EscapedName>,
        /// What is wrong, for people.
        problem: String,
    },
    /// What the agent sent is no whole archive; nothing of it is left in the store.
    #[error("the archive is incomplete: {0}")]
    Incomplete(IncompleteReasons),
    /// The label cannot be stored; nothing was written.
    #[error("the label of the backup cannot be stored: {problem}")]
    Label {
        /// Why not.
        problem: String,
    },
    /// It may work when it is tried again.
    #[error("{place} cannot be used now ({doing}); this may pass")]
    Unreachable {
        /// The store or the scratch folder.
        place: String,
        /// What was tried.
        doing: String,
        /// What the system said.
        source: Cause,
    },
    /// There is more than a listing holds.
    #[error("{place} holds more than {most} objects: move some elsewhere")]
    TooMany {
        /// The store.
        place: String,
        /// The bound.
        most: usize,
    },
}

/// A name in an archive as it can be shown to people: any bytes, control characters escaped, long ones cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscapedName(Vec<u8>);

/// Why an archive is incomplete: the first reasons, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IncompleteReasons {
    /// The first ones, for people.
    pub first: Vec<String>,
    /// All of them, also those that are not told.
    pub count: u64,
}

impl BackupStoreError {
    /// One reason.
    pub(super) fn incomplete(reason: impl fmt::Display) -> Self {
        let mut reasons = IncompleteReasons::default();
        reasons.add(reason);
        Self::Incomplete(reasons)
    }

    /// What a system said while `doing` something at `place`.
    pub(super) fn io(place: &str, doing: &str, source: io::Error) -> Self {
        let kind = source.kind();
        Self::from_io_kind(place, doing, Some(kind), Box::new(source))
    }

    /// What an object store said while `doing` something with `object`.
    pub(super) fn store(place: &str, doing: &str, object: &str, source: object_store::Error) -> Self {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        let kind = match &source {
            NotFound { .. } => return Self::Missing { place: place.to_owned(), object: object.to_owned() },
            PermissionDenied { .. } | Unauthenticated { .. } => Some(io::ErrorKind::PermissionDenied),
            other => io_kind(other),
        };
        Self::from_io_kind(place, &format!("{doing} {object}"), kind, Box::new(source))
    }

    fn from_io_kind(place: &str, doing: &str, kind: Option<io::ErrorKind>, source: Cause) -> Self {
        use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let (place, doing) = (place.to_owned(), doing.to_owned());
        match kind {
            Some(StorageFull | QuotaExceeded | FileTooLarge) => Self::Full { place, doing, source },
            Some(PermissionDenied | ReadOnlyFilesystem) => Self::Denied { place, doing, source },
            _ => Self::Unreachable { place, doing, source },
        }
    }
}

/// What the system below everything said, if it was asked.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

// === impl EscapedName ===

impl EscapedName {
    pub(super) fn new(bytes: &[u8]) -> Self {
        // Enough for what is shown; a name may have 64 KiB.
        Self(bytes[..bytes.len().min(4 * MAX_REASON_CHARS)].to_vec())
    }
}

impl fmt::Display for EscapedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&String::from_utf8_lossy(&self.0)))
    }
}

// === impl IncompleteReasons ===

impl IncompleteReasons {
    /// One more, which may be an agent's own words.
    pub(super) fn add(&mut self, reason: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < MAX_REASONS {
            self.first.push(escape(&reason.to_string()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for IncompleteReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join("; "))?;
        match self.count.saturating_sub(self.first.len() as u64) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// No control characters (they would command the terminal of whoever reads it), and not for ever.
fn escape(text: &str) -> String {
    let escaped_text = text.chars().take(MAX_REASON_CHARS).flat_map(|c| {
        let escaped = c.is_control().then(|| c.escape_debug());
        escaped.into_iter().flatten().chain((!c.is_control()).then_some(c))
    });
    let mut escaped_text: String = escaped_text.collect();
    if text.chars().nth(MAX_REASON_CHARS).is_some() {
        escaped_text.push('…');
    }
    escaped_text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_words_are_cut_and_command_no_terminal() {
        let mut reasons = IncompleteReasons::default();
        reasons.add(format!("\u{1b}]0;gotcha\u{7}{}", "x".repeat(1000)));
        (0..100).for_each(|n| reasons.add(n));
        let text = reasons.to_string();
        assert!(
            !text.contains('\u{1b}') && text.contains("\\u{1b}]0;gotcha") && text.ends_with("; and 81 more"),
            "{text}"
        );
        assert!(text.chars().count() < MAX_REASON_CHARS + 200);
        assert_eq!(EscapedName::new(b"a\nb\xff").to_string(), "a\\nb\u{fffd}");
    }

    #[test]
    fn what_a_system_says_deep_down_decides_the_kind() {
        let deep = |kind: io::ErrorKind| object_store::Error::Generic {
            store: "x",
            source: Box::new(io::Error::from(kind)),
        };
        let of = |kind| BackupStoreError::store("the store", "writing", "a.zip", deep(kind));
        assert!(matches!(of(io::ErrorKind::StorageFull), BackupStoreError::Full { .. }));
        assert!(matches!(of(io::ErrorKind::QuotaExceeded), BackupStoreError::Full { .. }));
        assert!(matches!(of(io::ErrorKind::ReadOnlyFilesystem), BackupStoreError::Denied { .. }));
        assert!(matches!(of(io::ErrorKind::TimedOut), BackupStoreError::Unreachable { .. }));
        let gone = object_store::Error::NotFound { path: String::new(), source: "gone".into() };
        let error = BackupStoreError::store("the store", "reading", "a.zip", gone);
        assert_eq!(error.to_string(), "the store holds no a.zip");
    }
}

//! Errors of the backup store. Their texts are for the operator.
//!
//! Errors of lower layers are classified as full, denied, missing or unreachable. An unreachable
//! store may become reachable again.

use std::{error::Error, fmt, io};

use podling_core::id::WorkspaceId;

use super::{MAX_KEY_ATTEMPTS, key::StoreKey};

/// Number of retained reasons why an archive is incomplete. Further ones are only counted.
const MAX_REASONS: usize = 20;
/// Longest reason or name from an agent, in characters; the rest is cut off.
const MAX_REASON_CHARS: usize = 300;

/// The error of a lower layer that caused an error here.
type Cause = Box<dyn Error + Send + Sync>;

/// Why the backup store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The URL is not valid, or its scheme is not supported.
    #[error(
        "{url:?} is not the URL of a backup store: {problem}. Use file:///absolute/directory, \
         s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    Url { url: String, problem: String },
    /// The URL needs a feature that this program was built without.
    #[error(
        "the backup store {url} needs a podling-control built with the feature \"cloud\"; this one \
         supports directories: file:///absolute/directory"
    )]
    NotBuilt { url: String },
    /// The directory cannot be used.
    #[error("the directory of the backup store, {path}, {problem}")]
    Directory {
        path: String,
        problem: String,
        /// Error of the operating system; `None` if the directory itself is unsuitable.
        source: Option<io::Error>,
    },
    /// The cloud's client library rejects the configuration.
    #[error("the configuration of the backup store {url} is not valid")]
    Cloud { url: String, source: Cause },
}

/// Why an operation on an archive failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupStoreError {
    /// The store or the scratch directory is full.
    #[error("{location} is full ({operation})")]
    Full {
        /// "the backup store …" or "the scratch directory …".
        location: String,
        /// Gerund of the operation that failed, such as "writing".
        operation: String,
        source: Cause,
    },
    /// The permissions or credentials do not suffice.
    #[error("{location} denies access ({operation})")]
    Denied {
        /// "the backup store …" or "the scratch directory …".
        location: String,
        /// Gerund of the operation that failed, such as "writing".
        operation: String,
        source: Cause,
    },
    /// At least one object of the archive does not exist.
    #[error("{location} does not contain {object}")]
    Missing { location: String, object: String },
    /// The stored objects differ from the written ones, or contradict each other.
    #[error(
        "the archive {key} is damaged: {}{problem}",
        entry.as_ref().map(|entry| format!("{entry}: ")).unwrap_or_default())]
    Damaged {
        key: StoreKey,
        /// The damaged entry, if the damage is in one.
        entry: Option<EscapedName>,
        /// English description of the damage.
        problem: String,
    },
    /// The agent's stream is not a complete archive. Nothing of it is stored.
    #[error("the archive is incomplete: {0}")]
    Incomplete(IncompleteReasons),
    /// The label is too large; nothing was written.
    #[error("the label of the archive cannot be stored: {problem}")]
    Label { problem: String },
    /// The store did not answer, or failed for another reason. A retry may succeed.
    #[error("{location} cannot be reached ({operation}); retry later")]
    Unreachable {
        /// "the backup store …" or "the scratch directory …".
        location: String,
        /// Gerund of the operation that failed, such as "writing".
        operation: String,
        source: Cause,
    },
    /// Each key that was tried is in use. Keys contain the second of their creation.
    #[error(
        "{location} already has an archive of {id}, or another object of its name, for each of the next \
         {MAX_KEY_ATTEMPTS} seconds; check the clock, then retry"
    )]
    KeysTaken { location: String, id: WorkspaceId },
    /// The store contains more objects than a listing may read.
    #[error("{location} holds more than {most} objects; move some elsewhere")]
    TooMany { location: String, most: usize },
}

/// A path in an archive for display. Control characters are escaped, and long paths are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscapedName(Vec<u8>);

/// The reasons why an archive is incomplete. Only the first ones are retained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IncompleteReasons {
    /// The first reasons, without control characters.
    pub first: Vec<String>,
    /// Number of all reasons.
    pub count: u64,
}

impl BackupStoreError {
    pub(crate) fn incomplete(reason: impl fmt::Display) -> Self {
        let mut reasons = IncompleteReasons::default();
        reasons.add(reason);
        Self::Incomplete(reasons)
    }

    /// Classifies an I/O error of `operation` at `location`.
    pub(crate) fn io(location: &str, operation: &str, source: io::Error) -> Self {
        let kind = source.kind();
        Self::from_io_kind(location, operation, Some(kind), Box::new(source))
    }

    /// Classifies an object store's error of `operation` on `object`.
    pub(crate) fn store(location: &str, operation: &str, object: &str, source: object_store::Error) -> Self {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        let kind = match &source {
            NotFound { .. } => {
                return Self::Missing { location: location.to_owned(), object: object.to_owned() };
            }
            PermissionDenied { .. } | Unauthenticated { .. } => Some(io::ErrorKind::PermissionDenied),
            other => io_kind(other),
        };
        Self::from_io_kind(location, &format!("{operation} {object}"), kind, Box::new(source))
    }

    fn from_io_kind(location: &str, operation: &str, kind: Option<io::ErrorKind>, source: Cause) -> Self {
        use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let (location, operation) = (location.to_owned(), operation.to_owned());
        match kind {
            Some(StorageFull | QuotaExceeded | FileTooLarge) => Self::Full { location, operation, source },
            Some(PermissionDenied | ReadOnlyFilesystem) => Self::Denied { location, operation, source },
            _ => Self::Unreachable { location, operation, source },
        }
    }
}

/// Returns the kind of the I/O error at the root of `error`, if there is one.
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
    pub(crate) fn new(bytes: &[u8]) -> Self {
        // A path may have 64 KiB. These bytes suffice for the part that is displayed.
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
    /// Adds a reason. Control characters are escaped, because the text may come from an agent.
    pub(crate) fn add(&mut self, reason: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < MAX_REASONS {
            self.first.push(escape(&reason.to_string()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
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

/// Escapes control characters, which could send commands to the reader's terminal, and cuts long
/// texts.
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
    fn agent_text_is_cut_and_escaped() {
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
    fn root_io_error_decides_the_kind() {
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
        assert_eq!(error.to_string(), "the store does not contain a.zip");
    }
}

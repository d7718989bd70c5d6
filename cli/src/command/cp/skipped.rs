//! Decides whether a failure concerns one path or the whole copy, and names the paths that a copy
//! leaves out. Pure.

use std::{io, path::Path};

use podling_proto::error::{self, Reason};
use serde::Serialize;
use tonic::Status;

use super::endpoint::show;
use crate::{backoff::is_retryable, failure::CommandFailure, output};

/// A path of the source that is not copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedPath {
    pub path: String,
    pub reason: SkipReason,
    /// The reason in English.
    pub why: String,
}

/// Reason why a path is not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// A symbolic link, while links are not followed.
    Symlink,
    /// A symbolic link that is followed, but leads to no accessible path.
    BrokenSymlink,
    /// A directory that contains itself by a symbolic link or a bind mount.
    Cycle,
    /// Nested more deeply than [`super::plan::MAX_DEPTH`].
    TooDeep,
    /// A pipe, a socket or a device inside a directory.
    SpecialFile,
    /// The path was listed, but does not exist any more.
    Vanished,
    /// Its content changed during each attempt to copy it.
    Changed,
    Unreadable,
    /// The destination cannot be written.
    Unwritable,
    /// The directory above it could not be created at the destination.
    ParentMissing,
}

/// A failure during a copy.
#[derive(Debug)]
pub struct CopyFailure {
    pub failure: CommandFailure,
    pub scope: FailureScope,
}

/// The part of a copy that a failure prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureScope {
    /// Only this path. The copy continues with the others.
    Path(SkipReason),
    /// All paths, for example because the disk is full or the token has expired.
    Copy,
}

/// Role of the workspace in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteRole {
    Source,
    Destination,
}

impl SkippedPath {
    pub fn new(path: impl AsRef<Path>, reason: SkipReason) -> Self {
        Self { path: show(path.as_ref()), reason, why: reason.english().to_owned() }
    }

    /// Names a path with the failure that prevents its copy.
    fn with_failure(path: impl AsRef<Path>, reason: SkipReason, failure: &CommandFailure) -> Self {
        let why = match failure {
            CommandFailure::Io { source, .. } => format!("{}: {source}", reason.english()),
            other => other.describe(),
        };
        Self { why: output::plain(&why), ..Self::new(path, reason) }
    }
}

impl SkipReason {
    fn english(self) -> &'static str {
        match self {
            Self::Symlink => "symbolic link; -L copies its target, --skip-links leaves out all links",
            Self::BrokenSymlink => "symbolic link without an accessible target",
            Self::Cycle => "a symbolic link leads back to a directory that contains it",
            Self::TooDeep => "nested too deeply",
            Self::SpecialFile => "a pipe, a socket or a device",
            Self::Vanished => "removed during the copy",
            Self::Changed => "changed during each attempt to copy it",
            Self::Unreadable => "cannot be read",
            Self::Unwritable => "cannot be written at the destination",
            Self::ParentMissing => "its directory could not be created at the destination",
        }
    }
}

impl CopyFailure {
    /// Returns the failure to read a local source.
    pub fn read(path: &Path, error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => SkipReason::Vanished,
            _ => SkipReason::Unreadable,
        };
        let failure = CommandFailure::io(format!("cannot read {}", path.display()))(error);
        Self { failure, scope: FailureScope::Path(reason) }
    }

    /// Returns the failure to write a local destination.
    pub fn write(path: &Path, error: io::Error) -> Self {
        let scope = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem => {
                FailureScope::Copy
            }
            _ => FailureScope::Path(SkipReason::Unwritable),
        };
        Self { failure: CommandFailure::io(format!("cannot write {}", path.display()))(error), scope }
    }

    /// Returns the failure of a source whose content changed while it was read.
    pub fn changed(path: &Path) -> Self {
        let message = format!("cannot copy {}: it changed while it was read; try again", show(path));
        Self { failure: CommandFailure::Other(message), scope: FailureScope::Path(SkipReason::Changed) }
    }

    /// Returns the failure of a call to the workspace.
    pub fn remote(status: Status, role: RemoteRole) -> Self {
        Self { scope: scope_of(&status, role), failure: status.into() }
    }

    /// Gives a failure of one path another reason.
    #[must_use]
    pub fn because(self, reason: SkipReason) -> Self {
        match self.scope {
            FailureScope::Path(_) => Self { scope: FailureScope::Path(reason), ..self },
            FailureScope::Copy => self,
        }
    }

    /// Names the path of this failure as skipped. Fails if the failure concerns all paths.
    pub fn into_skipped(self, path: impl AsRef<Path>) -> Result<SkippedPath, CommandFailure> {
        match self.scope {
            FailureScope::Path(reason) => Ok(SkippedPath::with_failure(path, reason, &self.failure)),
            FailureScope::Copy => Err(self.failure),
        }
    }

    /// Returns whether another attempt to copy the path may succeed.
    pub fn is_worth_retry(&self) -> bool {
        match &self.failure {
            CommandFailure::Status(status) if error::reason(status) == Some(Reason::TooManyStreams) => true,
            CommandFailure::Status(status) if is_retryable(status) => true,
            _ => self.is_change(),
        }
    }

    /// Returns whether the content of the source changed during the attempt.
    pub fn is_change(&self) -> bool {
        self.scope == FailureScope::Path(SkipReason::Changed)
    }
}

/// A failure that concerns the whole copy.
impl From<CommandFailure> for CopyFailure {
    fn from(failure: CommandFailure) -> Self {
        Self { failure, scope: FailureScope::Copy }
    }
}

/// A path that is left out although no call failed.
impl From<SkipReason> for CopyFailure {
    fn from(reason: SkipReason) -> Self {
        let failure = CommandFailure::Other(reason.english().to_owned());
        Self { failure, scope: FailureScope::Path(reason) }
    }
}

fn scope_of(status: &Status, role: RemoteRole) -> FailureScope {
    let denied = match role {
        RemoteRole::Source => SkipReason::Unreadable,
        RemoteRole::Destination => SkipReason::Unwritable,
    };
    match (error::reason(status), role) {
        (Some(Reason::PathNotFound), RemoteRole::Source) => FailureScope::Path(SkipReason::Vanished),
        (Some(Reason::Conflict | Reason::BadOffset | Reason::DigestMismatch), _) => {
            FailureScope::Path(SkipReason::Changed)
        }
        (
            Some(
                Reason::PathNotFound
                | Reason::PathExists
                | Reason::PathEscapes
                | Reason::WrongFileKind
                | Reason::BadPath
                | Reason::DirectoryNotEmpty
                | Reason::TooLarge
                | Reason::Io,
            ),
            _,
        ) => FailureScope::Path(denied),
        _ => FailureScope::Copy,
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::error::WireError;

    use super::*;

    #[test]
    fn failure_of_one_file_does_not_end_the_copy() {
        let remote = |reason, role| CopyFailure::remote(WireError::new(reason, "no").into(), role).scope;
        for (reason, skip) in [
            (Reason::PathNotFound, SkipReason::Vanished),
            (Reason::Conflict, SkipReason::Changed),
            (Reason::Io, SkipReason::Unreadable),
            (Reason::PathEscapes, SkipReason::Unreadable),
        ] {
            assert_eq!(remote(reason, RemoteRole::Source), FailureScope::Path(skip), "{reason:?}");
        }
        for (reason, skip) in [
            (Reason::DigestMismatch, SkipReason::Changed),
            (Reason::BadPath, SkipReason::Unwritable),
            (Reason::WrongFileKind, SkipReason::Unwritable),
        ] {
            assert_eq!(remote(reason, RemoteRole::Destination), FailureScope::Path(skip), "{reason:?}");
        }
        for reason in [Reason::DiskFull, Reason::TokenExpired, Reason::AgentUnreachable, Reason::Deleting] {
            assert_eq!(remote(reason, RemoteRole::Destination), FailureScope::Copy, "{reason:?}");
        }
        let write = |kind: io::ErrorKind| CopyFailure::write("x".as_ref(), kind.into()).scope;
        assert_eq!(write(io::ErrorKind::StorageFull), FailureScope::Copy);
        assert_eq!(write(io::ErrorKind::PermissionDenied), FailureScope::Path(SkipReason::Unwritable));
    }

    #[test]
    fn skipped_path_has_reason_for_programs_and_users() {
        let failure = CopyFailure::read("d/a".as_ref(), io::ErrorKind::PermissionDenied.into());
        let skipped = SkippedPath::with_failure("d/a\n", SkipReason::Unreadable, &failure.failure);
        assert_eq!(skipped.path, "d/a\u{fffd}");
        assert_eq!(skipped.why, "cannot be read: permission denied");
        let json = serde_json::to_value(SkippedPath::new("l", SkipReason::BrokenSymlink)).expect("JSON");
        assert_eq!(json["reason"], "broken-symlink");
    }
}

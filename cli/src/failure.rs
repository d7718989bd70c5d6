//! Failures of commands: message, advice and exit code.
//!
//! Exit codes are part of the interface (`podling --help` lists them). They follow from the
//! machine-readable reason of an error.

use std::{io, path::PathBuf};

use podling_proto::error::{self, Reason};
use tonic::{Code, Status};

use crate::advice;

pub const OK: u8 = 0;
/// Exit code of a failure without a code of its own.
pub const ERROR: u8 = 1;
/// Exit code of an invalid command line.
pub const USAGE: u8 = 2;
/// Exit code of a missing workspace, terminal, process, path or archive.
pub const NOT_FOUND: u8 = 3;
/// Exit code of a refusal: the token does not allow the request, or data would be lost.
pub const REFUSED: u8 = 4;
/// Exit code if the control plane or agent is unreachable or not ready.
pub const UNAVAILABLE: u8 = 5;
/// Exit code if a part of the result is missing, such as a file that could not be copied.
pub const INCOMPLETE: u8 = 6;
/// Exit code if the reader of standard output is gone: the code of a program that SIGPIPE ended.
pub const OUTPUT_CLOSED: u8 = 141;
/// Exit code of `run` if Podling fails, not the command.
pub const RUN_FAILED: u8 = 125;
/// Exit code of `run` if the command is not executable.
pub const CANNOT_RUN: u8 = 126;
/// Exit code of `run` if the command does not exist.
pub const NO_COMMAND: u8 = 127;
/// Exit code of `run` if `--timeout` ended the command, as in timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Exit code of `run` if the workspace fell asleep, which ended the command.
pub const FELL_ASLEEP: u8 = 123;

/// Appended to `podling --help`.
pub const EXIT_CODES: &str = "\
Getting started:
  podling up                     start a control plane (in a terminal of its own)
  podling create demo            create a workspace
  podling attach demo            open a terminal in it
  podling run demo -- uname -a   run a command in it

Exit codes:
  0  success
  1  error without a code of its own
  2  invalid command line
  3  no such workspace, terminal, process, path or archive
  4  refused: the token does not allow the request, or data would be lost
  5  the control plane or agent is unreachable or not ready
  6  incomplete: a copy or an export lacks files, each of which is listed

`run`, `attach` and `keep-awake NAME -- CMD` exit with the code of the command: 128+n if
signal n ended it, 127 if it was not found, 126 if it is not executable, 125 if Podling
itself failed, 124 if --timeout ended it, 123 if the workspace fell asleep or was deleted.

The control plane is selected by --url and --token (PODLING_URL, PODLING_TOKEN), otherwise
by --data (PODLING_DATA), otherwise by the default data directory.";

/// Error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailure {
    /// The command line is invalid.
    #[error("{0}")]
    Usage(String),
    /// No control plane runs with this data directory.
    #[error("no control plane runs with the data directory {}", .data.display())]
    NotRunning {
        /// Directory that was searched for `run/up.json`.
        data: PathBuf,
    },
    /// The control plane's address does not answer.
    #[error("cannot connect to the control plane at {url}")]
    Unreachable {
        url: String,
        /// True if the address is from a data directory.
        local: bool,
        #[source]
        source: tonic::transport::Error,
    },
    /// The control plane or an agent returned an error.
    #[error("{}", .0.message())]
    Status(#[source] Box<Status>),
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The attempted operation, for example "cannot read FILE".
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    NotFound(String),
    /// The request needs a confirmation.
    #[error("{0}")]
    Refused(String),
    /// The resource does not exist yet, or is not ready.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Other(String),
    /// The reader of the output is gone. Like other programs, this one then ends without a message.
    #[error("the reader of the output is gone")]
    OutputClosed,
    /// A signal ended the command. Like other programs, this one then ends without a message.
    #[error("interrupted by SIG{name}")]
    Interrupted { name: &'static str, code: u8 },
    /// Overrides the advice or the exit code of `inner`.
    #[error("{inner}")]
    Amended {
        advice: Option<String>,
        code: Option<u8>,
        #[source]
        inner: Box<CommandFailure>,
    },
}

impl CommandFailure {
    /// Returns a function that converts an IO error of the operation `doing`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Returns a function that converts an error of a write to `name`, for example "standard output".
    pub fn output(name: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Io { doing: format!("cannot write to {name}"), source },
        }
    }

    /// Returns the failure for a response that lacks the workspace.
    pub fn no_workspace() -> Self {
        Self::Other("the response of the control plane contains no workspace".to_owned())
    }

    /// Overrides the exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self::Amended { advice: None, code: Some(code), inner: Box::new(self) }
    }

    /// Sets the exit code of a failure that has none of its own.
    #[must_use]
    pub fn with_default_code(self, code: u8) -> Self {
        match self {
            Self::Amended { code: Some(_), .. } | Self::OutputClosed | Self::Interrupted { .. } => self,
            other => other.with_code(code),
        }
    }

    /// Replaces the advice that belongs to the reason.
    #[must_use]
    pub fn with_advice(self, advice: String) -> Self {
        Self::Amended { advice: Some(advice), code: None, inner: Box::new(self) }
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::NotRunning { .. } | Self::Unreachable { .. } | Self::Unavailable(_) => UNAVAILABLE,
            Self::Status(status) => status_code(status),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::Io { .. } | Self::Other(_) => ERROR,
            Self::NotFound(_) => NOT_FOUND,
            Self::Refused(_) => REFUSED,
            Self::OutputClosed => OUTPUT_CLOSED,
            Self::Interrupted { code, .. } => *code,
            Self::Amended { code, inner, .. } => code.unwrap_or_else(|| inner.exit_code()),
        }
    }

    /// Returns the machine-readable reason, if the control plane or the agent gave one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Status(status) => error::reason(status),
            Self::Amended { inner, .. } => inner.reason(),
            _ => None,
        }
    }

    /// Returns what the user can do about the failure, if there is a standard answer.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::NotRunning { .. } => Some(format!("start it with: {}", advice::command("up"))),
            Self::Unreachable { local, source, .. } => Some(unreachable_advice(*local, source)),
            Self::Status(status) => status_advice(status),
            Self::Amended { advice, inner, .. } => advice.clone().or_else(|| inner.advice()),
            _ => None,
        }
    }

    /// Puts the name of the workspace into the commands of the advice. `None` leaves the word NAME.
    #[must_use]
    pub fn about(self, workspace: Option<&str>) -> Self {
        let Some((advice, workspace)) = self.advice().zip(workspace) else { return self };
        match advice.contains(" NAME") {
            true => self.with_advice(advice.replace(" NAME", &format!(" {workspace}"))),
            false => self,
        }
    }

    /// Returns the message with its causes.
    pub fn describe(&self) -> String {
        match self {
            Self::Amended { inner, .. } => inner.describe(),
            // A status without a message has only its code.
            Self::Status(status) if status.message().is_empty() => {
                format!("the control plane returned an error: {}", status.code().description())
            }
            // A status is its own source.
            Self::Status(_) => self.to_string(),
            other => error_chain(other),
        }
    }
}

/// Returns the message of an error with its causes. Each message is contained once, because a
/// transport error repeats that of its source.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()) {
        let message = cause.to_string();
        // A transport error with a source says only that it is one. The source says more.
        let is_wrapper = cause.is::<tonic::transport::Error>() && cause.source().is_some();
        if !text.contains(&message) && !is_wrapper {
            text = format!("{text}: {message}");
        }
    }
    text
}

impl From<Status> for CommandFailure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Returns the advice for a control plane that does not answer. A control plane whose certificate is
/// rejected runs, so that starting it would not help.
fn unreachable_advice(local: bool, source: &(dyn std::error::Error + 'static)) -> String {
    let causes = || std::iter::successors(Some(source), |error| error.source());
    let is_tls = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<rustls::Error>()
            || cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()))
    };
    let advice = match (causes().any(is_tls), local) {
        (true, true) => {
            "it runs, but its certificate is not trusted; unset PODLING_CA (--ca) to trust the \
             certificate that it was started with"
        }
        (true, false) => {
            "it runs, but its certificate is not trusted for this address; pass the certificate of its \
             issuer with --ca FILE (PODLING_CA), and an address that the certificate names"
        }
        (false, true) => {
            return format!("it has probably stopped; start it with: {}", advice::command("up"));
        }
        (false, false) => "check PODLING_URL (--url)",
    };
    advice.to_owned()
}

fn status_code(status: &Status) -> u8 {
    match error::reason(status) {
        Some(Reason::Busy | Reason::PathEscapes) => REFUSED,
        Some(
            Reason::NotAwake
            | Reason::Unclaimed
            | Reason::Deleting
            | Reason::Maintenance
            | Reason::FellAsleep,
        ) => UNAVAILABLE,
        _ => match status.code() {
            Code::NotFound => NOT_FOUND,
            Code::Unauthenticated | Code::PermissionDenied => REFUSED,
            Code::Unavailable | Code::DeadlineExceeded => UNAVAILABLE,
            Code::InvalidArgument => USAGE,
            _ => ERROR,
        },
    }
}

fn status_advice(status: &Status) -> Option<String> {
    let with = |purpose: &str, arguments: &str| format!("{purpose}: {}", advice::command(arguments));
    Some(match error::reason(status)? {
        Reason::TokenMissing | Reason::TokenInvalid | Reason::TokenForeign => {
            "check PODLING_TOKEN (--token), or unset it to use the token of the data directory".to_owned()
        }
        Reason::TokenExpired => with("create a new token with", "token create"),
        Reason::VerbMissing => with("use a token that allows this verb", "token create --verbs …"),
        Reason::WorkspaceNotFound if error::detail(status, "owner").is_some() => {
            with("list the workspaces of all owners with", "ls --all-owners")
        }
        Reason::WorkspaceNotFound if error::detail(status, "archive").is_some() => {
            with("restore it with", "restore NAME")
        }
        Reason::WorkspaceNotFound => with("list the workspaces with", "ls"),
        Reason::TerminalNotFound => with("open a new one with", "attach NAME --new"),
        // Without an id, the name belongs to a resource that the caller cannot use.
        Reason::NameTaken => {
            error::detail(status, "id")?;
            with("choose another name, or use the existing workspace", "attach NAME")
        }
        Reason::Busy => "wait until it is idle, or pass --force to end its processes".to_owned(),
        Reason::ArchiveNotFound => with("list the archives with", "archives"),
        Reason::NotArchived => format!(
            "{}; {}",
            with("wake it with", "wake NAME"),
            with("or restore it under another name", "restore … --as NEW-NAME")
        ),
        Reason::Deleting if error::detail(status, "undelete").as_deref() == Some("true") => {
            with("take the deletion back with", "undelete NAME")
        }
        Reason::Preparing | Reason::Maintenance | Reason::Deleting => {
            with("see its progress with", "explain NAME")
        }
        Reason::CannotUndelete => match error::detail(status, "cause").as_deref() {
            Some("deleted") => with("restore it with", "restore NAME"),
            _ => with("see its progress with", "explain NAME"),
        },
        Reason::FellAsleep => with("see why with", "explain NAME"),
        Reason::WorkspaceFailed => with("see the reason with", "explain NAME"),
        Reason::AgentUnreachable | Reason::WakeTimeout => with("see its state with", "explain NAME"),
        Reason::DiskFull => "free space on the disk of the control plane first".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use podling_proto::error::WireError;

    use super::*;
    use crate::advice::tests::repeating;

    fn of(reason: Reason) -> CommandFailure {
        CommandFailure::from(Status::from(WireError::new(reason, "no")))
    }

    #[test]
    fn taken_name_advises_attach_only_to_a_usable_workspace() {
        let taken = WireError::new(Reason::NameTaken, "taken");
        let attach = status_advice(&Status::from(taken.clone().with("id", "abcd"))).expect("advice");
        assert!(attach.contains("podling attach"), "{attach}");
        assert_eq!(status_advice(&Status::from(taken)), None, "the message says what to do");
    }

    #[test]
    fn exit_code_follows_error_reason() {
        for (reason, code) in [
            (Reason::WorkspaceNotFound, NOT_FOUND),
            (Reason::PathNotFound, NOT_FOUND),
            (Reason::VerbMissing, REFUSED),
            (Reason::TokenExpired, REFUSED),
            (Reason::Busy, REFUSED),
            (Reason::AgentUnreachable, UNAVAILABLE),
            (Reason::NotAwake, UNAVAILABLE),
            (Reason::NotArchived, ERROR),
            (Reason::Maintenance, UNAVAILABLE),
            (Reason::FellAsleep, UNAVAILABLE),
            (Reason::ArchiveNotFound, NOT_FOUND),
            (Reason::BadField, USAGE),
            (Reason::DiskFull, ERROR),
            (Reason::Internal, ERROR),
        ] {
            assert_eq!(of(reason).exit_code(), code, "{reason:?}");
        }
        assert_eq!(of(Reason::WorkspaceNotFound).with_code(RUN_FAILED).exit_code(), RUN_FAILED);
    }

    #[test]
    fn missing_control_plane_advises_podling_up() {
        let failure = CommandFailure::NotRunning { data: "/d".into() };
        assert_eq!(failure.exit_code(), UNAVAILABLE);
        assert_eq!(failure.advice().as_deref(), Some("start it with: podling up"));
        let advice = repeating(" -x", || failure.advice());
        assert_eq!(advice.as_deref(), Some("start it with: podling -x up"));
    }

    #[test]
    fn rejected_certificate_does_not_advise_to_start() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let rejected = io::Error::new(io::ErrorKind::InvalidData, tls);
        for local in [true, false] {
            let advice = unreachable_advice(local, &rejected);
            assert!(advice.starts_with("it runs, but its certificate"), "{advice}");
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(unreachable_advice(true, &refused).contains("podling up"));
        assert!(unreachable_advice(false, &refused).contains("PODLING_URL"));
    }

    #[test]
    fn advice_names_the_workspace() {
        let advice = |reason| of(reason).about(Some("demo")).advice().expect("advice");
        assert_eq!(advice(Reason::WorkspaceFailed), "see the reason with: podling explain demo");
        assert_eq!(advice(Reason::TerminalNotFound), "open a new one with: podling attach demo --new");
        let restore = repeating(" -x", || advice(Reason::NotArchived));
        assert_eq!(
            restore,
            "wake it with: podling -x wake demo; \
             or restore it under another name: podling -x restore … --as NEW-NAME"
        );
        let restore = advice(Reason::NotArchived);
        assert!(restore.contains("podling wake demo;") && restore.ends_with("--as NEW-NAME"), "{restore}");
        assert_eq!(of(Reason::DiskFull).about(Some("demo")).advice(), of(Reason::DiskFull).advice());
        let coded = of(Reason::WakeTimeout).with_code(RUN_FAILED).about(Some("demo"));
        assert_eq!((coded.exit_code(), coded.reason()), (RUN_FAILED, Some(Reason::WakeTimeout)));
        assert_eq!(coded.advice().as_deref(), Some("see its state with: podling explain demo"));
    }

    #[test]
    fn message_contains_each_cause_once() {
        let failure = CommandFailure::io("cannot read /x")(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(failure.describe(), "cannot read /x: permission denied");
        assert_eq!(of(Reason::DiskFull).describe(), "no");
        assert_eq!(of(Reason::DiskFull).with_code(RUN_FAILED).describe(), "no");
    }

    #[test]
    fn exit_code_override_keeps_reason_and_advice() {
        let failure = of(Reason::Busy).with_default_code(RUN_FAILED);
        assert_eq!((failure.exit_code(), failure.reason()), (RUN_FAILED, Some(Reason::Busy)));
        let failure = failure.with_default_code(CANNOT_RUN);
        assert_eq!(failure.exit_code(), RUN_FAILED, "a failure keeps its own code");
        assert_eq!(CommandFailure::OutputClosed.with_default_code(RUN_FAILED).exit_code(), OUTPUT_CLOSED);
        assert!(failure.advice().is_some());
    }
}

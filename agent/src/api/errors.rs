//! Conversions of errors that several services have.

use podling_proto::error::{Reason, WireError};
use rustix::io::Errno;

use crate::{admission::Rejection, spawn::SpawnError};

impl From<Rejection> for WireError {
    fn from(rejection: Rejection) -> Self {
        let reason = match rejection {
            Rejection::Preparing => Reason::Preparing,
            Rejection::Maintenance => Reason::Maintenance,
        };
        Self::new(reason, rejection.to_string())
    }
}

impl From<&SpawnError> for WireError {
    fn from(error: &SpawnError) -> Self {
        let message = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let wire = |reason| Self::new(reason, message.clone());
        match error {
            SpawnError::Unclaimed => wire(Reason::Unclaimed),
            SpawnError::BadField { field, problem } => {
                wire(Reason::BadField).with("field", field).with("allowed", problem)
            }
            SpawnError::NotFound { program, .. } => {
                wire(Reason::ProgramNotFound).with("program", program).with("cause", "no such program")
            }
            SpawnError::NotExecutable { program, problem } => {
                wire(Reason::ProgramNotExecutable).with("program", program).with("cause", problem)
            }
            SpawnError::BadInterpreter { program, interpreter } => wire(Reason::ProgramBadInterpreter)
                .with("program", program)
                .with("cause", format!("interpreter {interpreter}")),
            SpawnError::BadCwd { cwd, source } => {
                wire(Reason::BadCwd).with("program", cwd).with("cause", source)
            }
            SpawnError::Exhausted { program, source } => {
                let (reason, what) = match Errno::from_io_error(source) {
                    Some(Errno::MFILE | Errno::NFILE) => (Reason::NoFileDescriptors, "file descriptors"),
                    Some(Errno::NOMEM) => (Reason::NoMemory, "memory"),
                    _ => (Reason::TooManyProcesses, "processes"),
                };
                wire(reason).with("what", what).with("program", program)
            }
            SpawnError::Exec { program, source } => {
                wire(Reason::SpawnFailed).with("program", program).with("cause", source)
            }
        }
    }
}

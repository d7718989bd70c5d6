//! Converts between signal names, which the protocol uses, and exit codes, which contain signal
//! numbers.

/// Linux signals without the prefix SIG. The numbers are valid on every supported architecture.
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// Offset that shells add to a signal number to form an exit code.
const SIGNALLED: u8 = 128;

/// Returns the exit code for a process that this signal ended. Returns 128 for a name that is not
/// in the table, such as a real-time signal.
pub fn exit_code(name: &str) -> u8 {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    SIGNALS.iter().find(|(known, _)| *known == name).map_or(SIGNALLED, |(_, number)| SIGNALLED + number)
}

pub fn name(number: i32) -> Option<&'static str> {
    SIGNALS.iter().find(|(_, known)| i32::from(*known) == number).map(|(name, _)| *name)
}

/// Returns the exit code for the end of a local process.
pub fn exit_code_of_status(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, signal) => exit_code(signal.and_then(name).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_maps_to_shell_exit_code() {
        for (signal, code) in [("INT", 130), ("SIGKILL", 137), ("TERM", 143), ("PIPE", 141), ("RTMIN+3", 128)]
        {
            assert_eq!(exit_code(signal), code);
        }
        assert_eq!(name(15), Some("TERM"));
        assert_eq!(name(99), None);
    }
}

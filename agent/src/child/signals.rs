//! Names of signals without "SIG", such as `INT`, as the API uses them.

use rustix::process::Signal;

/// All signals except real-time signals.
const SIGNAL_NAMES: &[(Signal, &str)] = &[
    (Signal::HUP, "HUP"),
    (Signal::INT, "INT"),
    (Signal::QUIT, "QUIT"),
    (Signal::ILL, "ILL"),
    (Signal::TRAP, "TRAP"),
    (Signal::ABORT, "ABRT"),
    (Signal::BUS, "BUS"),
    (Signal::FPE, "FPE"),
    (Signal::KILL, "KILL"),
    (Signal::USR1, "USR1"),
    (Signal::SEGV, "SEGV"),
    (Signal::USR2, "USR2"),
    (Signal::PIPE, "PIPE"),
    (Signal::ALARM, "ALRM"),
    (Signal::TERM, "TERM"),
    (Signal::STKFLT, "STKFLT"),
    (Signal::CHILD, "CHLD"),
    (Signal::CONT, "CONT"),
    (Signal::STOP, "STOP"),
    (Signal::TSTP, "TSTP"),
    (Signal::TTIN, "TTIN"),
    (Signal::TTOU, "TTOU"),
    (Signal::URG, "URG"),
    (Signal::XCPU, "XCPU"),
    (Signal::XFSZ, "XFSZ"),
    (Signal::VTALARM, "VTALRM"),
    (Signal::PROF, "PROF"),
    (Signal::WINCH, "WINCH"),
    (Signal::IO, "IO"),
    (Signal::POWER, "PWR"),
    (Signal::SYS, "SYS"),
];

/// Returns the name of a signal number. Formats a real-time signal as its number, because it has no
/// name.
pub fn name(raw: i32) -> String {
    match SIGNAL_NAMES.iter().find(|(signal, _)| signal.as_raw() == raw) {
        Some((_, name)) => (*name).to_owned(),
        None => raw.to_string(),
    }
}

/// Looks up a signal by name, with or without "SIG", in any case.
pub fn by_name(name: &str) -> Option<Signal> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNAL_NAMES.iter().find(|(_, known)| *known == bare).map(|(signal, _)| *signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_names_round_trip() {
        for (signal, name) in SIGNAL_NAMES {
            assert_eq!(super::name(signal.as_raw()), *name);
            assert_eq!(by_name(name), Some(*signal));
        }
        assert_eq!(by_name("SIGint"), Some(Signal::INT));
        assert_eq!(by_name("NOPE"), None);
        assert_eq!(name(40), "40");
    }
}

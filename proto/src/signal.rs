//! Names of signals without "SIG", such as `INT`, as the protocol uses them.

/// Linux signals 1 to 31. The numbers are valid on every supported architecture.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Returns the name of a signal. `None` for a real-time signal, which has no name.
pub fn name(number: i32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

/// Returns the number of a signal by its name, with or without "SIG", in any case.
pub fn number(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    (1..).zip(NAMES).find(|(_, known)| *known == bare).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_names_round_trip() {
        for (number, name) in (1..).zip(NAMES) {
            assert_eq!((super::name(number.into()), super::number(name)), (Some(name), Some(number)));
        }
        assert_eq!((number("SIGint"), number("NOPE")), (Some(2), None));
        assert_eq!((name(15), name(0), name(40)), (Some("TERM"), None, None));
    }
}

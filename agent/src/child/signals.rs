//! Signals by the names of the protocol.

use podling_proto::signal;
use rustix::process::Signal;

/// Returns the name of a signal number. Formats a real-time signal as its number, because it has no
/// name.
pub fn name(raw: i32) -> String {
    signal::name(raw).map_or_else(|| raw.to_string(), str::to_owned)
}

/// Looks up a signal by name, with or without "SIG", in any case.
pub fn by_name(name: &str) -> Option<Signal> {
    Signal::from_named_raw(signal::number(name)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_names_round_trip() {
        for raw in 1..=31 {
            assert_eq!(by_name(&name(raw)).map(Signal::as_raw), Some(raw));
        }
        for (signal, name) in [(Signal::INT, "SIGint"), (Signal::ABORT, "ABRT"), (Signal::SYS, "SYS")] {
            assert_eq!(by_name(name), Some(signal));
        }
        assert_eq!(by_name("NOPE"), None);
        assert_eq!(name(40), "40");
    }
}

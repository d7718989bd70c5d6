//! Capabilities of the user's terminal, according to the environment.

use std::ffi::OsString;

/// Returns whether the terminal has no control sequences, neither for colours nor for the cursor.
pub fn is_dumb() -> bool {
    is_dumb_in(|name| std::env::var_os(name))
}

/// Returns whether colours may be used: the terminal has them, and the user has not disabled them
/// (<https://no-color.org>).
pub fn allows_colours() -> bool {
    allows_colours_in(|name| std::env::var_os(name))
}

fn is_dumb_in(env: impl Fn(&str) -> Option<OsString>) -> bool {
    env("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

fn allows_colours_in(env: impl Fn(&str) -> Option<OsString>) -> bool {
    env("NO_COLOR").is_none_or(|value| value.is_empty()) && !is_dumb_in(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumb_terminal_and_no_color_disable_colours() {
        let allows = |term: Option<&str>, no_color: Option<&str>| {
            let (term, no_color) = (term.map(OsString::from), no_color.map(OsString::from));
            allows_colours_in(|name| if name == "TERM" { term.clone() } else { no_color.clone() })
        };
        assert!(allows(Some("xterm-256color"), None) && allows(Some("xterm"), Some("")));
        for (term, no_color) in
            [(Some("dumb"), None), (None, None), (Some(""), None), (Some("xterm"), Some("1"))]
        {
            assert!(!allows(term, no_color), "TERM={term:?} NO_COLOR={no_color:?}");
        }
    }
}

//! Recognises interactive shells. They can be restarted without repeating the effects of a command.
//! Pure.

/// Names of shells, without their directory.
const SHELLS: [&str; 12] =
    ["sh", "bash", "dash", "zsh", "ksh", "mksh", "fish", "ash", "tcsh", "csh", "nu", "xonsh"];
/// Options whose next argument is a file.
const OPTIONS_WITH_FILE: [&str; 2] = ["--rcfile", "--init-file"];

/// Returns whether the command is a shell that reads its commands from the user, not from a script
/// or an argument. An empty `argv` means the shell of the workspace. A shell with unknown short
/// options, or with options of the form `--name=value`, is not treated as interactive.
pub(super) fn is_interactive(argv: &[String]) -> bool {
    let Some((program, mut options)) = argv.split_first() else { return true };
    let name = program.rsplit('/').next().unwrap_or_default();
    // A login shell's name may start with a dash.
    if !SHELLS.contains(&name.strip_prefix('-').unwrap_or(name)) {
        return false;
    }
    while let Some((option, rest)) = options.split_first() {
        options = match option.as_str() {
            long if OPTIONS_WITH_FILE.contains(&long) => rest.get(1..).unwrap_or_default(),
            "--command" => return false,
            long if long.starts_with("--") && long.len() > 2 && !long.contains('=') => rest,
            // These letters only change how the shell runs; `c` and `s` change what it reads.
            short if is_letters(short, "ilnrvx") => rest,
            _ => return false,
        };
    }
    true
}

fn is_letters(option: &str, allowed: &str) -> bool {
    option
        .strip_prefix('-')
        .is_some_and(|letters| !letters.is_empty() && letters.chars().all(|letter| allowed.contains(letter)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(line: &str) -> bool {
        is_interactive(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn interactive_shells_are_recognised() {
        for line in
            ["", "bash", "/bin/bash -l", "-zsh", "bash -il", "bash --norc --rcfile /x -i", "fish --private"]
        {
            assert!(is(line), "{line}");
        }
        for line in [
            "htop",
            "python3",
            "bash -c ls",
            "bash -lc ls",
            "sh script",
            "bash -l script",
            "bash -s",
            "fish --command=ls",
            "fish --command ls",
            "bash --",
            "bashful",
        ] {
            assert!(!is(line), "{line}");
        }
    }
}

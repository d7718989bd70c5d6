//! Recognises shells: those that take `-l`, and those that can be restarted without repeating the
//! effects of a command. Pure.

/// Names of shells, without their directory.
const SHELLS: [&str; 12] =
    ["sh", "bash", "dash", "zsh", "ksh", "mksh", "fish", "ash", "tcsh", "csh", "nu", "xonsh"];
/// Options whose next argument is a file.
const OPTIONS_WITH_FILE: [&str; 2] = ["--rcfile", "--init-file"];

/// Returns the command line of a terminal without a command. A shell is started as a login shell.
/// `$SHELL` may name any other program, such as an interpreter of Python, to which `-l` means
/// something else or nothing. That program gets no arguments.
pub(super) fn default_argv(shell: String) -> Vec<String> {
    let login = is_shell(&shell).then(|| "-l".to_owned());
    [shell].into_iter().chain(login).collect()
}

/// Returns whether the program is a shell, by its file name.
fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    // A login shell's name may start with a dash.
    SHELLS.contains(&name.strip_prefix('-').unwrap_or(name))
}

/// Returns whether the command is a shell that reads its commands from the user, not from a script
/// or an argument. An empty `argv` means the shell of the workspace. A shell with unknown short
/// options, or with options of the form `--name=value`, is not treated as interactive.
pub(super) fn is_interactive(argv: &[String]) -> bool {
    let Some((program, mut options)) = argv.split_first() else { return true };
    if !is_shell(program) {
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

    #[test]
    fn only_shells_are_started_as_login_shells() {
        for (shell, args) in [
            ("/bin/bash", &["-l"][..]),
            ("/usr/bin/fish", &["-l"]),
            ("/usr/bin/python3", &[]),
            ("/usr/bin/ipython", &[]),
            ("/opt/bash/menu", &[]),
        ] {
            let argv = default_argv(shell.to_owned());
            assert_eq!(
                (argv[0].as_str(), &argv[1..]),
                (shell, &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()[..])
            );
        }
    }

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

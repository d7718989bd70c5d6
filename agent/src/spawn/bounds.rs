//! Bounds on the arguments, environment and working directory of a program. They yield a clearer
//! error than the kernel's E2BIG, and bound the memory that a request needs in the agent.

use super::{Program, SpawnError};

/// Longest argument, and longest variable with its value: the kernel's MAX_ARG_STRLEN without the
/// NUL. Longer ones are rejected.
const MAX_WORD_BYTES: usize = 128 * 1024 - 1;
/// Total size of the arguments and variables of a request, each with its NUL and pointer, as the
/// kernel counts them. Larger requests are rejected. The kernel allows 2 MiB with the usual stack
/// of 8 MiB, of which the workspace's own environment needs a part.
const MAX_PROGRAM_BYTES: usize = 1024 * 1024;
/// Cost of an argument or variable beyond its own bytes.
const WORD_OVERHEAD_BYTES: usize = 9;
/// Longest path of a working directory: PATH_MAX without the NUL. Longer ones are rejected.
const MAX_CWD_BYTES: usize = 4095;
/// Bytes of arguments that are retained for display. A list of all processes must fit into one
/// message of 4 MiB.
const MAX_DISPLAY_BYTES: usize = 4096;

/// Checks that a program's arguments, environment and directory are within bounds.
pub(super) fn check(program: &Program) -> Result<(), SpawnError> {
    let bad = |field, problem| Err(SpawnError::BadField { field, problem });
    let argv = || program.argv.iter().map(String::len);
    let env = || program.env.iter().map(|(name, value)| name.len() + 1 + value.len());
    for (field, what, longest) in [("argv", "argument", argv().max()), ("env", "variable", env().max())] {
        if let Some(bytes) = longest.filter(|bytes| *bytes > MAX_WORD_BYTES) {
            return bad(field, format!("one {what} has {bytes} bytes; at most {MAX_WORD_BYTES} are allowed"));
        }
    }
    let cost = |lengths: &mut dyn Iterator<Item = usize>| -> usize {
        lengths.map(|bytes| bytes + WORD_OVERHEAD_BYTES).sum()
    };
    let (argv, env) = (cost(&mut argv()), cost(&mut env()));
    if argv + env > MAX_PROGRAM_BYTES {
        let problem = format!(
            "arguments and environment have {} bytes (with {WORD_OVERHEAD_BYTES} more for each \
             argument and variable); at most {MAX_PROGRAM_BYTES} are allowed, so put the rest into a file",
            argv + env
        );
        return bad(if argv >= env { "argv" } else { "env" }, problem);
    }
    if program.cwd.len() > MAX_CWD_BYTES {
        return bad("cwd", format!("has {} bytes; at most {MAX_CWD_BYTES} are allowed", program.cwd.len()));
    }
    Ok(())
}

/// Truncates arguments to 4 KiB for display. The truncated argument ends with `…`, and those after
/// it are dropped.
pub fn truncate_argv(argv: &[String]) -> Vec<String> {
    let mut bytes_left = MAX_DISPLAY_BYTES;
    let mut kept = Vec::new();
    for word in argv {
        if word.len() + 1 > bytes_left {
            let cut = word.floor_char_boundary(bytes_left.saturating_sub(1));
            kept.push(format!("{}…", &word[..cut]));
            break;
        }
        bytes_left -= word.len() + 1;
        kept.push(word.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(program: &Program) -> Option<(&'static str, String)> {
        match check(program) {
            Err(SpawnError::BadField { field, problem }) => Some((field, problem)),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn oversized_program_is_rejected_with_limit() {
        let argv = |words: Vec<String>| Program { argv: words, ..Program::default() };
        let env = |name: &str, bytes: usize| Program {
            env: [(name.to_owned(), "x".repeat(bytes))].into(),
            ..Program::default()
        };
        let many = |count: usize| argv(vec!["x".into(); count]);
        let cwd = |bytes: usize| Program { cwd: "x".repeat(bytes), ..Program::default() };
        let each = 1 + WORD_OVERHEAD_BYTES;
        let tables = [
            (
                argv(vec!["x".repeat(MAX_WORD_BYTES)]),
                argv(vec!["x".repeat(MAX_WORD_BYTES + 1)]),
                "argv",
                MAX_WORD_BYTES,
            ),
            (env("NAME", MAX_WORD_BYTES - 5), env("NAME", MAX_WORD_BYTES - 4), "env", MAX_WORD_BYTES),
            (many(MAX_PROGRAM_BYTES / each), many(MAX_PROGRAM_BYTES / each + 1), "argv", MAX_PROGRAM_BYTES),
            (cwd(MAX_CWD_BYTES), cwd(MAX_CWD_BYTES + 1), "cwd", MAX_CWD_BYTES),
        ];
        for (fits, too_long, field, limit) in tables {
            assert_eq!(rejected(&fits), None);
            let (rejected, problem) = rejected(&too_long).expect("too long");
            assert_eq!(rejected, field);
            assert!(problem.contains(&limit.to_string()), "{problem}");
        }
    }

    #[test]
    fn argv_is_truncated_at_character_boundary() {
        let short = vec!["sh".to_owned(), "-c".to_owned(), "é".repeat(1000)];
        assert_eq!(truncate_argv(&short), short);
        let long = truncate_argv(&["sh".to_owned(), "é".repeat(100_000), "more".to_owned()]);
        assert_eq!(long.len(), 2);
        assert!(long[1].starts_with('é') && long[1].ends_with('…') && long[1].len() <= MAX_DISPLAY_BYTES);
        assert!(truncate_argv(&vec![String::new(); 100_000]).len() <= MAX_DISPLAY_BYTES + 1);
    }
}

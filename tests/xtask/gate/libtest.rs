//! Reads the output of Rust's test harness (`--format=pretty`): the names and outputs of failed
//! tests.

/// Heading of the list of failed tests, and of the list of their outputs.
const FAILURES: &str = "failures:";
const RESULT: &str = "test result: ";
const INDENT: &str = "    ";

/// The result of one run of a test program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestRun {
    pub(crate) failed: Vec<String>,
    /// Duration as the harness prints it: `3.21s`.
    pub(crate) took: String,
}

/// Returns the runs that ended with a result, in order. Returns `None` if a run has no result
/// because it was killed or aborted, or if its list of failed tests is incomplete.
pub(crate) fn runs(output: &str) -> Option<Vec<TestRun>> {
    let (mut runs, mut is_running) = (Vec::new(), false);
    // Names since the last heading, until any other line follows.
    let mut listed: Option<Vec<String>> = None;
    for line in output.lines() {
        let name = line.strip_prefix(INDENT).filter(|name| !name.is_empty() && !name.contains(' '));
        if is_start(line) {
            if is_running {
                return None;
            }
            (listed, is_running) = (None, true);
        } else if line == FAILURES {
            listed = Some(Vec::new());
        } else if let Some(result) = line.strip_prefix(RESULT) {
            let failed = listed.take().unwrap_or_default();
            if count(result, " failed") != Some(failed.len()) {
                return None;
            }
            let took = result.rsplit("finished in ").next().unwrap_or_default().to_owned();
            runs.push(TestRun { failed, took });
            is_running = false;
        } else if let (Some(name), Some(listed)) = (name, &mut listed) {
            listed.push(name.to_owned());
        } else if !line.is_empty() {
            listed = None;
        }
    }
    (!is_running).then_some(runs)
}

/// Returns the output that the harness captured of a failed test.
pub(crate) fn output_of<'a>(output: &'a str, test: &str) -> Option<&'a str> {
    let heading = format!("---- {test} stdout ----\n");
    let start = output.find(&heading)?;
    let body = start + heading.len();
    let ends = ["\n---- ", "\nfailures:\n"].map(|end| output[body..].find(end));
    let end = ends.into_iter().flatten().min().map_or(output.len(), |end| body + end);
    Some(&output[start..end])
}

/// Matches the first line of a run: `running 12 tests`.
fn is_start(line: &str) -> bool {
    let count = line.strip_prefix("running ").and_then(|rest| rest.split_once(' '));
    count.is_some_and(|(count, tests)| count.parse::<usize>().is_ok() && tests.starts_with("test"))
}

/// Returns the number before `words` in a result: `FAILED. 10 passed; 2 failed; …`.
fn count(result: &str, words: &str) -> Option<usize> {
    let before = &result[..result.find(words)?];
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "\
running 3 tests
test both_backends::a ... ok
test both_backends::b ... FAILED
test both_backends::c ... FAILED

failures:

---- both_backends::b stdout ----
thread 'both_backends::b' panicked at tests/b.rs:1:1:
left: 1
    indented
failures:

---- both_backends::c stdout ----
thread 'both_backends::c' panicked


failures:
    both_backends::b
    both_backends::c

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 12.50s

";
    const PASSED: &str = "\
running 1 test
test a ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn run(failed: &[&str], took: &str) -> TestRun {
        TestRun { failed: failed.iter().map(|name| (*name).to_owned()).collect(), took: took.to_owned() }
    }

    #[test]
    fn failed_tests_of_each_run_are_listed() {
        let both = format!("booting\n{PASSED}\nnoise\n{FAILED}error: it ended with 101\n");
        let expected = vec![run(&[], "0.01s"), run(&["both_backends::b", "both_backends::c"], "12.50s")];
        assert_eq!(runs(&both), Some(expected));
        assert_eq!(runs("the node does not boot\n"), Some(Vec::new()));
        let shown = PASSED.replace("ok\n\n", "ok\n\nsuccesses:\n    a\n\n");
        assert_eq!(runs(&shown), Some(vec![run(&[], "0.01s")]), "what passed is listed likewise");
    }

    #[test]
    fn run_without_result_or_with_a_short_list_is_refused() {
        let killed = FAILED.split("test result").next().expect("a part");
        assert_eq!(runs(killed), None, "it was killed");
        assert_eq!(runs(&format!("{killed}{PASSED}")), None, "another run began");
        assert_eq!(
            runs(&FAILED.replace("    both_backends::b\n    both_backends::c\n", "    both_backends::b\n")),
            None
        );
    }

    #[test]
    fn output_of_one_failed_test_is_cut_out() {
        let output = output_of(FAILED, "both_backends::c").expect("it is there");
        assert_eq!(output, "---- both_backends::c stdout ----\nthread 'both_backends::c' panicked\n\n");
        assert!(output_of(FAILED, "both_backends::a").is_none());
        assert!(output_of(FAILED, "both_backends::b").expect("it is there").contains("left: 1"));
    }
}

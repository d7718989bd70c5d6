//! Reads the output of libtest (`--format=pretty`): the names and outputs of failed tests.

/// Heading of the list of failed tests, and of the list of their outputs.
const FAILURES: &str = "failures:";
const RESULT: &str = "test result: ";
const INDENT: &str = "    ";

/// Returns the names of the failed tests. Returns `None` if the run has no result because it was
/// killed or did not start, or if its list of failed tests is incomplete.
pub(crate) fn failed_tests(output: &str) -> Option<Vec<String>> {
    // Names listed since the last heading; `None` outside of a list.
    let mut listed: Option<Vec<String>> = None;
    for line in output.lines() {
        let name = line.strip_prefix(INDENT).filter(|name| !name.is_empty() && !name.contains(' '));
        if line == FAILURES {
            listed = Some(Vec::new());
        } else if let Some(result) = line.strip_prefix(RESULT) {
            let failed = listed.take().unwrap_or_default();
            return (count(result, " failed") == Some(failed.len())).then_some(failed);
        } else if let (Some(name), Some(listed)) = (name, &mut listed) {
            listed.push(name.to_owned());
        } else if !line.is_empty() {
            listed = None;
        }
    }
    None
}

/// Returns the output of a failed test that libtest captured, with its heading. Returns `None` if
/// `output` has no section for the test.
pub(crate) fn output_of<'a>(output: &'a str, test: &str) -> Option<&'a str> {
    let heading = format!("---- {test} stdout ----\n");
    let start = output.find(&heading)?;
    let body = start + heading.len();
    let ends = ["\n---- ", "\nfailures:\n"].map(|end| output[body..].find(end));
    let end = ends.into_iter().flatten().min().map_or(output.len(), |end| body + end);
    Some(&output[start..end])
}

/// Returns the number before `words` in the rest of a result line, such as
/// `FAILED. 10 passed; 2 failed; …`.
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

    #[test]
    fn failed_tests_are_listed() {
        let failed = format!("booting\n{FAILED}error: it ended with 101\n");
        let names = ["both_backends::b", "both_backends::c"].map(str::to_owned).to_vec();
        assert_eq!(failed_tests(&failed), Some(names));
        let shown = PASSED.replace("ok\n\n", "ok\n\nsuccesses:\n    a\n\n");
        assert_eq!(failed_tests(&shown), Some(Vec::new()), "passed tests are listed in the same format");
    }

    #[test]
    fn run_without_result_or_with_a_short_list_is_rejected() {
        assert_eq!(failed_tests("the node does not boot\n"), None);
        let killed = FAILED.split("test result").next().expect("a part");
        assert_eq!(failed_tests(killed), None);
        let short = FAILED.replace("    both_backends::b\n    both_backends::c\n", "    both_backends::b\n");
        assert_eq!(failed_tests(&short), None);
    }

    #[test]
    fn output_of_one_failed_test_is_cut_out() {
        let output = output_of(FAILED, "both_backends::c").expect("a section");
        assert_eq!(output, "---- both_backends::c stdout ----\nthread 'both_backends::c' panicked\n\n");
        assert!(output_of(FAILED, "both_backends::a").is_none());
        assert!(output_of(FAILED, "both_backends::b").expect("a section").contains("left: 1"));
    }
}

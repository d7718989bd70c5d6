//! Checks words and lengths against docs/STYLE.md, which no compiler does. Each check takes a text
//! and returns findings.

use std::{collections::BTreeMap, fs, process::Stdio, time::Instant};

use anyhow::Result;

use crate::{gate::Gate, program};

/// The same bound as that of rustfmt for code (`rustfmt.toml`).
const LONGEST_RUST_LINE: usize = 110;
const LONGEST_MARKDOWN_LINE: usize = 100;
const LONGEST_TEST_NAME: usize = 60;
const LONGEST_COMMIT_SUBJECT: usize = 72;
/// Fewest words of a doc comment of one line. A shorter one says no more than the item's name.
const FEWEST_DOC_WORDS: usize = 4;
/// Last commit before the bound on subjects was introduced.
const UNBOUNDED_SUBJECTS: &str = "13261f6";

/// Pronouns that hide which party is meant: client, caller, user, operator, agent, workspace or
/// control plane.
const VAGUE_SUBJECTS: [&str; 8] =
    ["somebody", "nobody", "someone", "anybody", "whoever", "whomever", "whosoever", "whom"];
/// Beginnings of comments that have no subject.
const SUBJECTLESS_BEGINNINGS: [&str; 8] =
    ["Who", "Whose", "Whom", "Which", "What is", "One that", "Those that", "He who"];
/// Files that quote these words and beginnings.
const QUOTES_VAGUE_SUBJECTS: [&str; 2] = ["docs/STYLE.md", "tests/xtask/words.rs"];

/// Public types that may share a name within a crate, as `crate::Name`, with the reason.
const SHARED_NAMES: [(&str, &str); 0] = [];

/// A line or commit that does not follow the style.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    /// Number of the line, counted from 1; 0 for a commit.
    line: usize,
    /// Problem, and a way to solve it.
    advice: String,
}

/// Runs all checks as one step of the gate.
pub(crate) fn check(gate: &mut Gate) -> Result<()> {
    println!("\n== words");
    let began = Instant::now();
    let findings = findings();
    for Finding { file, line, advice } in &findings {
        println!("{file}:{line}: {advice}");
    }
    if !findings.is_empty() {
        println!("{} findings (docs/STYLE.md)", findings.len());
    }
    gate.record("words", findings.is_empty(), began.elapsed());
    Ok(())
}

fn findings() -> Vec<Finding> {
    let (mut findings, mut types) = (Vec::new(), PublicTypes::default());
    for file in git(&["ls-files"]).unwrap_or_default().lines() {
        // Deleted files and binary files have no words.
        let Ok(text) = fs::read_to_string(program::root().join(file)) else { continue };
        findings.extend(long_lines(file, &text));
        findings.extend(vague_subjects(file, &text));
        if file.ends_with(".rs") {
            findings.extend(long_test_names(file, &text));
            findings.extend(thin_doc_comments(file, &text));
            types.add(file, &text);
        }
    }
    findings.extend(types.shared());
    // A clone without history and an archive of the sources have no subjects to check.
    let subjects = git(&["log", "--format=%h %s", &format!("{UNBOUNDED_SUBJECTS}..HEAD")]);
    findings.extend(long_subjects(&subjects.unwrap_or_default()));
    findings
}

/// Returns git's output; `None` if git, the history or a commit is missing.
fn git(args: &[&str]) -> Option<String> {
    let output = program::program("git").args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn long_lines(file: &str, text: &str) -> Vec<Finding> {
    let is_markdown = file.ends_with(".md");
    let most = match is_markdown {
        true => LONGEST_MARKDOWN_LINE,
        false if file.ends_with(".rs") || file.ends_with(".proto") => LONGEST_RUST_LINE,
        false => return Vec::new(),
    };
    let mut is_fenced = false;
    let mut is_too_long = |line: &str| {
        is_fenced ^= is_markdown && line.trim_start().starts_with("```");
        // Tables, code and links cannot be wrapped.
        let is_whole =
            is_fenced || line.trim_start().starts_with('|') || line.contains("](") || line.contains("://");
        line.chars().count() > most && !(is_markdown && is_whole)
    };
    let long = numbered(text).filter(|(_, line)| is_too_long(line));
    let advice = |line: &str| format!("line of {} characters: wrap it at {most}", line.chars().count());
    long.map(|(number, line)| finding(file, number, advice(line))).collect()
}

/// Finds doc comments of one line with very few words.
fn thin_doc_comments(file: &str, text: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_doc =
        |index: Option<usize>| index.and_then(|i| lines.get(i)).is_some_and(|l| l.starts_with("///"));
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(doc) = line.strip_prefix("///") else { continue };
        let words = doc.split_whitespace().count();
        let is_alone = !is_doc(index.checked_sub(1)) && !is_doc(Some(index + 1));
        if is_alone && (1..FEWEST_DOC_WORDS).contains(&words) {
            let advice =
                format!("doc comment of {words} words: delete it, or add what the name does not say");
            found.push(finding(file, index + 1, advice));
        }
    }
    found
}

fn vague_subjects(file: &str, text: &str) -> Vec<Finding> {
    let has_words = [".rs", ".proto", ".md", ".yaml"].iter().any(|end| file.ends_with(end))
        || (file.starts_with("deploy/") && file.ends_with(".json"));
    if !has_words || QUOTES_VAGUE_SUBJECTS.contains(&file) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in numbered(text) {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(word) = words.find(|word| VAGUE_SUBJECTS.contains(&word.to_lowercase().as_str())) {
            let advice = format!("\"{word}\": name the subject (client, caller, user, operator, agent, …)");
            found.push(finding(file, number, advice));
        }
        if let Some(beginning) = comment(file, line).and_then(subjectless_beginning) {
            let advice = format!("comment begins with \"{beginning}\": begin with its subject");
            found.push(finding(file, number, advice));
        }
    }
    found
}

/// Returns the text of a line that is a comment; `None` for other lines and files without code.
fn comment<'a>(file: &str, line: &'a str) -> Option<&'a str> {
    let line = line.trim_start();
    let marks: &[&str] = if file.ends_with(".yaml") { &["#"] } else { &["///", "//!", "//"] };
    let is_code = file.ends_with(".rs") || file.ends_with(".proto") || file.ends_with(".yaml");
    marks.iter().filter(|_| is_code).find_map(|mark| line.strip_prefix(mark)).map(str::trim_start)
}

fn subjectless_beginning(comment: &str) -> Option<&'static str> {
    SUBJECTLESS_BEGINNINGS.into_iter().find(|beginning| {
        let rest = comment.strip_prefix(beginning);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

fn long_test_names(file: &str, text: &str) -> Vec<Finding> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for (number, line) in numbered(text) {
        let line = line.trim_start();
        if let Some(attribute) = line.strip_prefix("#[") {
            let path = attribute.split([']', '(']).next().unwrap_or_default();
            is_test |= path == "test" || path.ends_with("::test");
            continue;
        }
        let function = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
        if let Some(name) = function.filter(|_| is_test).and_then(|rest| rest.split('(').next())
            && name.len() > LONGEST_TEST_NAME
        {
            let advice = format!(
                "test name of {} characters: subject_condition_outcome in {LONGEST_TEST_NAME}",
                name.len()
            );
            found.push(finding(file, number, advice));
        }
        is_test = false;
    }
    found
}

fn long_subjects(log: &str) -> Vec<Finding> {
    let subjects = log.lines().filter_map(|line| line.split_once(' '));
    let long = subjects.filter(|(_, subject)| subject.chars().count() > LONGEST_COMMIT_SUBJECT);
    long.map(|(commit, subject)| {
        let length = subject.chars().count();
        let advice = format!(
            "subject of {length} characters: `area: verb what` in {LONGEST_COMMIT_SUBJECT}: {subject}"
        );
        finding(commit, 0, advice)
    })
    .collect()
}

/// Lines that define each public type of each crate.
#[derive(Debug, Default)]
struct PublicTypes(BTreeMap<String, Vec<(String, usize)>>);

impl PublicTypes {
    /// Adds the types of a file, unless the file is a test.
    fn add(&mut self, file: &str, text: &str) {
        let Some((krate, _)) = file.split_once("/src/") else { return };
        if file.contains("/tests/") || file.ends_with("tests.rs") {
            return;
        }
        // A test module is at the end of its file.
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
        for (number, line) in numbered(text) {
            if let Some(name) = public_type(line) {
                self.0.entry(format!("{krate}::{name}")).or_default().push((file.to_owned(), number));
            }
        }
    }

    fn shared(self) -> Vec<Finding> {
        let is_allowed = |name: &str| SHARED_NAMES.iter().any(|(allowed, _)| *allowed == name);
        let shared = self.0.into_iter().filter(|(name, places)| places.len() > 1 && !is_allowed(name));
        let each = |(name, places): (String, Vec<(String, usize)>)| {
            let advice = format!("{name} is the name of {} public types: rename one", places.len());
            places
                .into_iter()
                .map(move |(file, line)| finding(&file, line, advice.clone()))
                .collect::<Vec<_>>()
        };
        shared.flat_map(each).collect()
    }
}

/// Returns the name of the public type that a line such as `pub(crate) struct Name` defines.
fn public_type(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.strip_prefix(' ')?.split(' ');
    let is_type = |word: &str| ["struct", "enum", "trait", "type", "union"].contains(&word);
    words.next().filter(|word| is_type(word))?;
    words.next()?.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn finding(file: &str, line: usize, advice: String) -> Finding {
    Finding { file: file.to_owned(), line, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn long_lines_are_found_where_they_can_be_wrapped() {
        let long = "x".repeat(111);
        let rust = format!("{}\n{long}\n", "x".repeat(110));
        assert_eq!(lines(&long_lines("a.rs", &rust)), [2]);
        assert!(long_lines("a.rs", &rust)[0].advice.contains("111 characters"));
        let markdown = format!("{long}\n| {long} |\n[a]({long})\n```\n{long}\n```\n{long}\n");
        assert_eq!(lines(&long_lines("a.md", &markdown)), [1, 7]);
        assert!(long_lines("Cargo.lock", &long).is_empty());
        assert!(long_lines("a.rs", &"ä".repeat(110)).is_empty(), "characters count, not bytes");
    }

    #[test]
    fn thin_doc_comments_are_found_if_they_have_one_line() {
        let text = "/// Which one.\nx: u8,\n/// Bytes in the queue.\ny: u8,\n\
            /// Short.\n/// And more of it.\nz: u8,\n";
        assert_eq!(lines(&thin_doc_comments("a.rs", text)), [1]);
    }

    #[test]
    fn vague_subjects_are_found_as_whole_words() {
        let text = "// Somebody waits.\nlet nobody_else = 1;\nprintln!(\"for whom\");\n";
        assert_eq!(lines(&vague_subjects("a.rs", text)), [1, 3]);
        assert_eq!(lines(&vague_subjects("a.md", "Whoever reads it.\n")), [1]);
        assert_eq!(lines(&vague_subjects("deploy/a.json", "\"description\": \"Someone.\"\n")), [1]);
        assert!(vague_subjects("a.py", "# nobody\n").is_empty());
        assert!(vague_subjects("docs/STYLE.md", "Not: nobody.\n").is_empty());
    }

    #[test]
    fn comments_begin_with_a_subject() {
        let text = "/// Who it is.\n// What is there.\n// Whatever it is.\nfn which() {}\n//! Which.\n";
        assert_eq!(lines(&vague_subjects("a.rs", text)), [1, 2, 5]);
        assert_eq!(lines(&vague_subjects("a.yaml", "# One that runs.\n")), [1]);
        assert!(vague_subjects("a.md", "Which is fine in prose.\n").is_empty());
    }

    #[test]
    fn long_names_of_tests_alone_are_found() {
        let (long, short) = ("a".repeat(61), "a".repeat(60));
        let text = format!(
            "#[test]\nfn {long}() {{}}\n#[tokio::test(start_paused = true)]\n\
             #[ignore = \"x\"]\nasync fn {long}() {{}}\nfn {long}() {{}}\n#[test]\nfn {short}() {{}}\n"
        );
        assert_eq!(lines(&long_test_names("a.rs", &text)), [2, 5]);
    }

    #[test]
    fn public_types_of_one_name_in_a_crate_are_found() {
        let mut types = PublicTypes::default();
        types.add("agent/src/a.rs", "pub struct Same;\nstruct Own;\n");
        types.add(
            "agent/src/b.rs",
            "    pub(crate) enum Same<T> {\n}\nstruct Own;\n#[cfg(test)]\nmod tests {\npub type Same = u8;\n",
        );
        types.add("control/src/a.rs", "pub(super) trait Same: Send {}\npub fn same() {}\n");
        types.add("agent/tests/a.rs", "pub struct Same;\n");
        let shared = types.shared();
        assert_eq!(lines(&shared), [1, 1]);
        assert_eq!(shared[1].file, "agent/src/b.rs");
        assert!(shared[0].advice.contains("agent::Same is the name of 2 public types"));
    }

    #[test]
    fn long_commit_subjects_are_found() {
        let log = format!("abc {}\ndef {}\n", "x".repeat(72), "x".repeat(73));
        let found = long_subjects(&log);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].file, "def");
        assert!(long_subjects("").is_empty());
    }
}

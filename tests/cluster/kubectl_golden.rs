//! Compares the output of kubectl with golden files. Values that differ between runs are replaced
//! by words in capitals.

use podling_tests::golden;

/// Compares the text with `tests/cluster/golden/NAME.txt`. With `PODLING_UPDATE_GOLDEN=1`, rewrites
/// the file instead. `replaced` has values of this run and the words that replace them.
pub(crate) fn assert_golden(name: &str, text: &str, replaced: &[(&str, &str)]) {
    let text: String = text.lines().map(|line| comparable(line, replaced) + "\n").collect();
    golden::assert_golden(&format!("cluster/golden/{name}.txt"), &text);
}

/// Returns the line with its values replaced and one space between words. The width of a column
/// differs between runs, because it is that of the longest value.
fn comparable(line: &str, replaced: &[(&str, &str)]) -> String {
    let indentation = &line[..line.len() - line.trim_start().len()];
    let mut line = line.to_owned();
    for (value, word) in replaced {
        line = line.replace(value, word);
    }
    let words: Vec<_> = line.split_whitespace().map(placeholder).collect();
    indentation.to_owned() + &words.join(" ")
}

fn placeholder(word: &str) -> &str {
    let is_hex = |word: &str| word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let is_age = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['s', 'm', 'h'])
            && word.chars().all(|c| c.is_ascii_digit() || "smh".contains(c))
    };
    match word {
        word if word.len() == 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T' => "TIME",
        word if word.len() == 27 && word.ends_with('Z') && word.as_bytes()[10] == b'T' => "TIME",
        word if word.len() == 36 && is_hex(word) => "UUID",
        word if word.len() == 64 && is_hex(word) => "SHA256",
        word if is_age(word) => "AGE",
        word => word,
    }
}

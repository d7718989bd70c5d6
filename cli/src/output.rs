//! Prints for users and scripts: text, colours, tables, JSON, spinners and progress bars.
//!
//! Results go to stdout, everything else to stderr. Colours are used only on a terminal that has
//! them, and without NO_COLOR.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use podling_control::terminal_features;
use podling_proto::error;
use serde::Serialize;
use serde_json::json;

use crate::failure::CommandFailure;

/// Interval between frames of a spinner.
const TICK: Duration = Duration::from_millis(100);

/// Meaning that a colour or a weight of the text conveys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Notice,
    Bad,
    Faint,
    Strong,
}

/// Returns the text with colour codes if stdout is a terminal that shows colours.
pub fn paint(text: &str, tone: Tone) -> Cow<'_, str> {
    match terminal_features::allows_colours() && io::stdout().is_terminal() {
        true => Cow::Owned(escape(text, tone)),
        false => Cow::Borrowed(text),
    }
}

fn escape(text: &str, tone: Tone) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Notice => 33,
        Tone::Bad => 31,
        Tone::Faint => 2,
        Tone::Strong => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Prints text to stdout. A closed pipe is not an error.
pub fn print(text: &str) -> Result<(), CommandFailure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CommandFailure::io("cannot write to standard output")),
    }
}

/// Prints a line to stderr, with the arguments of `format!`. Ignores errors, because no other place
/// remains to report them. `eprintln!` would panic if stderr is full or closed.
#[macro_export]
macro_rules! notice {
    ($($argument:tt)*) => {
        $crate::output::write_notice(format_args!($($argument)*))
    };
}

/// Prints a line to stderr. Ignores errors.
pub fn write_notice(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a failure to stderr, as text with advice or as JSON with the name of its reason in
/// errors.proto. Ignores errors.
pub fn report(failure: &CommandFailure, json: bool) {
    if matches!(failure, CommandFailure::OutputClosed | CommandFailure::Interrupted { .. }) {
        return;
    }
    if json {
        let error = json!({
            "message": failure.describe(),
            "reason": failure.reason().map(error::name),
            "advice": failure.advice(),
            "exit_code": failure.exit_code(),
        });
        let _ = writeln!(io::stderr(), "{}", json!({ "error": error }));
        return;
    }
    notice!("podling: {}", failure.describe());
    if let Some(advice) = failure.advice() {
        notice!("  {advice}");
    }
}

/// Prints a message and a line break to stdout.
pub fn line(text: &str) -> Result<(), CommandFailure> {
    print(&format!("{text}\n"))
}

/// Prints a value as one line of JSON to stdout.
pub fn json<T: Serialize>(value: &T) -> Result<(), CommandFailure> {
    let text = serde_json::to_string(value).map_err(|error| CommandFailure::Other(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Replaces control characters, so that text from a workspace cannot control the local terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns the count with the singular or plural noun.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// Formats a table with two spaces between columns. Colour codes do not count for the width.
pub fn table(head: &[&str], rows: &[Vec<(String, Option<Tone>)>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let head: Vec<_> = head.iter().map(|text| ((*text).to_owned(), Some(Tone::Faint))).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        // A row ends with its last text, without trailing spaces.
        let used = row.iter().rposition(|(text, _)| !text.is_empty()).map_or(0, |last| last + 1);
        for (column, (text, tone)) in row.iter().take(used).enumerate() {
            let shown = tone.map_or(Cow::Borrowed(text.as_str()), |tone| paint(text, tone));
            out.push_str(&shown);
            if column + 1 < used {
                out.push_str(&" ".repeat(widths[column] - text.chars().count() + 2));
            }
        }
        out.push('\n');
    }
    out
}

/// Returns stderr if it can move its cursor.
fn draw_target() -> ProgressDrawTarget {
    if terminal_features::is_dumb() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

/// Returns a running spinner on stderr. It is hidden if stderr is not a terminal, or a dumb one.
pub fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, draw_target())
        .with_style(ProgressStyle::default_spinner())
        .with_message(message)
        .with_finish(ProgressFinish::AndClear);
    bar.enable_steady_tick(TICK);
    bar
}

/// Returns the style of a bar for one stage of a longer operation. `bounded` means that the total
/// is known.
pub fn stage_style(bounded: bool) -> ProgressStyle {
    style(match bounded {
        true => "{spinner} {wide_msg} {bar:20} {bytes} of {total_bytes}",
        false => "{spinner} {wide_msg} {bytes}",
    })
}

/// Falls back to the default style if the template is invalid.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Returns a bar on stderr for `total` bytes, or a counter if the total is unknown. It is hidden if
/// stderr is not a terminal.
pub fn bytes_bar(total: Option<u64>) -> ProgressBar {
    let template = if total.is_some() {
        "{bar:30} {bytes} of {total_bytes}  {bytes_per_sec}  {eta}  {wide_msg}"
    } else {
        "{spinner} {bytes}  {bytes_per_sec}  {wide_msg}"
    };
    ProgressBar::with_draw_target(total, draw_target())
        .with_finish(ProgressFinish::AndClear)
        .with_style(style(template))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_are_aligned() {
        let cell = |text: &str| (text.to_owned(), None);
        let rows = vec![vec![cell("a"), cell("awake")], vec![cell("längerer"), cell("x")]];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME      STATE\na         awake\nlängerer  x\n");
        let empty = vec![vec![cell("a"), cell("")]];
        assert_eq!(table(&["NAME", ""], &empty), "NAME\na\n", "no trailing spaces");
    }

    #[test]
    fn control_characters_from_workspace_are_replaced() {
        assert_eq!(plain("vim \x1b[2J\r\nx"), "vim \u{fffd}[2J\u{fffd}\u{fffd}x");
    }

    #[test]
    fn progress_bar_templates_are_valid() {
        for total in [Some(1), None] {
            bytes_bar(total).finish_and_clear();
        }
        assert_eq!(escape("x", Tone::Bad), "\x1b[31mx\x1b[0m");
    }
}

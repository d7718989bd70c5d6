//! Paint: the bytes that bring a freshly reset terminal to a screen's state.
//!
//! vt100 formats what is visible; what is not (the screen behind a full-screen program, saved cursors, the scroll region) it does not
//! tell, so copies of the screen are asked by sequences whose effect shows it.

use std::{fmt::Write as _, num::NonZeroU16};

/// Longest picture, in bytes: with what goes around it, it must fit into the 4 MiB that gRPC's clients take at most. What makes a longer
/// one (a colour of its own for every cell of a huge screen) is painted without the screen behind a full-screen program, then in one
/// colour.
const MAX_SNAPSHOT_BYTES: usize = 3 * 1024 * 1024;

/// Everything the model knows of the screen, or as much as fits.
pub(super) fn paint(screen: &vt100::Screen) -> String {
    let whole = formatted(screen, screen.alternate_screen());
    if whole.len() <= MAX_SNAPSHOT_BYTES {
        return whole;
    }
    let front = formatted(screen, false);
    if front.len() <= MAX_SNAPSHOT_BYTES { front } else { plain(screen) }
}

fn formatted(screen: &vt100::Screen, with_behind: bool) -> String {
    let mut out = String::new();
    if with_behind {
        let behind = probe(screen, "\x1b[?47l");
        grid(behind.screen(), &mut out);
    }
    if screen.alternate_screen() {
        out.push_str("\x1b[?47h");
    }
    grid(screen, &mut out);
    out.push_str(&screen.input_mode_formatted());
    out
}

/// The letters alone, and the cursor.
fn plain(screen: &vt100::Screen) -> String {
    let mut out = String::new();
    if screen.alternate_screen() {
        out.push_str("\x1b[?47h");
    }
    for (index, row) in screen.rows(0, screen.size().1.get()).enumerate() {
        let _ = write!(out, "\x1b[{};1H{row}", index + 1);
    }
    let cursor = screen.cursor_position();
    let _ = write!(out, "\x1b[{};{}H", cursor.0 + 1, cursor.1 + 1);
    out.push_str(&screen.input_mode_formatted());
    out
}

fn grid(screen: &vt100::Screen, out: &mut String) {
    // Writing to a String cannot fail. The whole screen first, while nothing scrolls within a region.
    out.push_str("\x1b[?6l\x1b[r");
    out.push_str(&screen.contents_formatted());
    let origin = has_origin_mode(&mut probe(screen, ""));
    let cursor = screen.cursor_position();
    let mut asked = probe(screen, "");
    let region = region(&mut asked);
    asked.process(b"\x1b8");
    let saved_cursor = asked.screen().cursor_position();
    let (saved_state, saved_attributes) =
        (asked.screen().cursor_state_formatted(), asked.screen().attributes_formatted());
    // The saved attributes and origin mode go with the saved cursor. The region is the whole screen yet, so nothing is relative.
    if has_origin_mode(&mut asked) {
        let _ = write!(out, "\x1b[?6h\x1b[{};{}H", saved_cursor.0 + 1, saved_cursor.1 + 1);
    } else {
        // A cursor behind the last column is put there by drawing the last cell again, from default attributes.
        out.push_str("\x1b[m");
        out.push_str(&saved_state);
    }
    out.push_str(&saved_attributes);
    out.push_str("\x1b7\x1b[?6l");
    if let Some((top, bottom)) = region {
        let _ = write!(out, "\x1b[{};{}r", top + 1, bottom + 1);
    }
    if origin {
        let top = region.map_or(0, |(top, _)| top);
        let _ = write!(out, "\x1b[?6h\x1b[{};{}H", cursor.0.saturating_sub(top) + 1, cursor.1 + 1);
    } else {
        out.push_str("\x1b[m");
        let cursor = screen.cursor_state_formatted();
        // A cursor behind the last column of a row that was erased under it: vt100 draws a space, and erases it again with the help
        // of the saved cursor, which must stay as it is. The space looks the same.
        out.push_str(cursor.split(SAVE_CURSOR).next().unwrap_or_default());
    }
    out.push_str(&screen.attributes_formatted());
}

/// DECSC.
pub(super) const SAVE_CURSOR: &str = "\x1b7";

/// A copy of the screen after this sequence. Of a large screen it is not cheap: few are made, and each is asked several questions.
pub(super) fn probe(screen: &vt100::Screen, sequence: &str) -> vt100::Parser {
    let mut parser = vt100::Parser::new(NonZeroU16::MIN, NonZeroU16::MIN, 0);
    *parser.screen_mut() = screen.clone();
    parser.process(sequence.as_bytes());
    parser
}

/// First and last row of the scroll region, unless it is the whole screen. Leaves the copy with another cursor and in origin mode.
fn region(copy: &mut vt100::Parser) -> Option<(u16, u16)> {
    copy.process(b"\x1b[?6h\x1b[1;1H");
    let top = copy.screen().cursor_position().0;
    copy.process(b"\x1b[65535;1H");
    let bottom = copy.screen().cursor_position().0;
    ((top, bottom) != (0, copy.screen().size().0.get() - 1)).then_some((top, bottom))
}

/// Whether rows are counted from the region's top. Leaves the copy with another region.
fn has_origin_mode(copy: &mut vt100::Parser) -> bool {
    copy.process(b"\x1b[2;3r\x1b[1;1H");
    copy.screen().size().0.get() >= 3 && copy.screen().cursor_position().0 == 1
}

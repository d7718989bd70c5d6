//! Painter: produces the bytes that bring a freshly reset terminal to the state of a screen.
//!
//! The crate `vt100` formats only what is visible. To find the rest (the screen behind a
//! full-screen program, saved cursors, the scroll region), the painter feeds copies of the screen
//! with sequences that reveal it.

use std::{fmt::Write as _, num::NonZeroU16};

/// Limit on a painted screen, in bytes. Its message must fit into the 4 MiB that gRPC clients
/// accept. A huge screen with a colour for every cell exceeds the limit. It is painted without the
/// screen behind a full-screen program, and if that is still too large, without colours.
const MAX_SNAPSHOT_BYTES: usize = 3 * 1024 * 1024;

/// Paints the whole state of the screen, or as much as fits into the limit.
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

/// Paints the text, the cursor and the input modes, without colours.
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
    // Writing to a String cannot fail. The whole screen is painted first, while no scroll region is
    // set.
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
    // The saved attributes and origin mode belong to the saved cursor. The region is still the
    // whole screen, so no position is relative.
    if has_origin_mode(&mut asked) {
        let _ = write!(out, "\x1b[?6h\x1b[{};{}H", saved_cursor.0 + 1, saved_cursor.1 + 1);
    } else {
        // A cursor after the last column is set by drawing the last cell again with default
        // attributes.
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
        // vt100 places a cursor after the last column of an erased row by drawing a space. It then
        // erases the space, for which it overwrites the saved cursor. The saved cursor must not
        // change, so the space is left. It looks the same as an erased cell.
        out.push_str(cursor.split(SAVE_CURSOR).next().unwrap_or_default());
    }
    out.push_str(&screen.attributes_formatted());
}

/// DECSC, which saves the cursor.
pub(super) const SAVE_CURSOR: &str = "\x1b7";

/// Copies the screen and processes this sequence on the copy. Costly for a large screen, so few
/// copies are made and each answers several questions.
pub(super) fn probe(screen: &vt100::Screen, sequence: &str) -> vt100::Parser {
    let mut parser = vt100::Parser::new(NonZeroU16::MIN, NonZeroU16::MIN, 0);
    *parser.screen_mut() = screen.clone();
    parser.process(sequence.as_bytes());
    parser
}

/// Returns the first and last row of the scroll region. `None` if it is the whole screen. Moves the
/// cursor of the copy and sets its origin mode.
fn region(copy: &mut vt100::Parser) -> Option<(u16, u16)> {
    copy.process(b"\x1b[?6h\x1b[1;1H");
    let top = copy.screen().cursor_position().0;
    copy.process(b"\x1b[65535;1H");
    let bottom = copy.screen().cursor_position().0;
    ((top, bottom) != (0, copy.screen().size().0.get() - 1)).then_some((top, bottom))
}

/// Returns whether rows are counted from the top of the scroll region (origin mode). Changes the
/// copy's scroll region.
fn has_origin_mode(copy: &mut vt100::Parser) -> bool {
    copy.process(b"\x1b[2;3r\x1b[1;1H");
    copy.screen().size().0.get() >= 3 && copy.screen().cursor_position().0 == 1
}

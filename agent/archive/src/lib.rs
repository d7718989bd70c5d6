//! The zips of Podling: their byte layout, as in PKWARE's APPNOTE with Info-ZIP's field for times,
//! the encoder of headers, deflate, and one strict reader. The agent creates and extracts archives
//! with this crate, and the control plane proves them with it. Independent of both, of IO other
//! than the traits of `std::io`, and of any async runtime.
//!
//! Times that are finer than a second, or outside 1901 to 2038, go into an extra field that only
//! Podling reads (0x6470: seconds as i64, nanoseconds as u32). Another one (0x6471, empty) marks a
//! symbolic link that stands for a hard link.

mod deflate;
mod layout;
mod read;
mod write;

pub use self::{
    deflate::{BLOCK_BYTES, Deflater, FINAL_BLOCK},
    layout::{
        DEFLATED, FLAG_DEFLATE_OPTIONS, FLAG_STREAMED, FLAG_UTF8, FLAGS_ENCRYPTED, MAX_TARGET_BYTES,
        PERMISSION_BITS, STORED, UNIX, UnixTime, ZipEntryKind, hard_link_target, resolve_hard_link,
    },
    read::{
        CENTRAL_LEN, CentralHeader, ContentReadError, EndOfDirectory, EntryReader, LOCAL_LEN, LocalHeader,
        MAX_TAIL_BYTES, MIN_TAIL_BYTES, ZipError,
    },
    write::{ZipMember, end_records},
};

//! Constants of the zip layout that reader and writer share, and the encoding of file types and hard
//! links.

pub(crate) const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
pub(crate) const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
pub(crate) const END_SIGNATURE: u32 = 0x0605_4b50;
pub(crate) const END64_SIGNATURE: u32 = 0x0606_4b50;
pub(crate) const LOCATOR64_SIGNATURE: u32 = 0x0706_4b50;
pub(crate) const DESCRIPTOR_SIGNATURE: u32 = 0x0807_4b50;

/// Lengths of the zip64 end record and of its locator, in bytes.
pub(crate) const END64_LEN: usize = 56;
pub(crate) const LOCATOR64_LEN: usize = 20;

/// Marks a value that is stored in the zip64 field instead.
pub(crate) const ZIP64_MARKER16: u16 = u16::MAX;
pub(crate) const ZIP64_MARKER32: u32 = u32::MAX;

/// General purpose flag of an entry whose sizes and checksum follow the content.
pub const FLAG_STREAMED: u16 = 1 << 3;
/// General purpose flag of a name in UTF-8.
pub const FLAG_UTF8: u16 = 1 << 11;
/// Flags that record the compression level. They do not affect decoding.
pub const FLAG_DEFLATE_OPTIONS: u16 = 0b110;
/// Flags of encrypted content, strong encryption and encrypted headers.
pub const FLAGS_ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;

/// Compression method of content that is stored as it is.
pub const STORED: u16 = 0;
/// Compression method of deflated content.
pub const DEFLATED: u16 = 8;

pub(crate) const FIELD_ZIP64: u16 = 0x0001;
pub(crate) const FIELD_TIMES: u16 = 0x5455;
pub(crate) const FIELD_EXACT_TIME: u16 = 0x6470;
/// Marks a symbolic link that Podling restores as a hard link. Empty.
pub(crate) const FIELD_HARD_LINK: u16 = 0x6471;

/// Number of Unix as the host system of an entry.
pub const UNIX: u8 = 3;

/// Mode bits of an entry: permissions, setuid, setgid and sticky.
pub const PERMISSION_BITS: u32 = 0o7777;
/// The bits of a mode that hold the file type.
const TYPE_BITS: u32 = 0o170_000;

/// Maximum bytes of a link target, as in the kernel.
pub const MAX_TARGET_BYTES: u64 = 4_095;

/// Seconds and nanoseconds since 1970.
pub type UnixTime = (i64, u32);

/// File type of an entry, as far as a zip can hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZipEntryKind {
    File,
    Directory,
    Symlink,
    Fifo,
}

impl ZipEntryKind {
    /// Returns the kind in a Unix mode. `None` for other kinds, and for a mode without a file type.
    pub fn of_mode(mode: u32) -> Option<Self> {
        let all = [Self::File, Self::Directory, Self::Symlink, Self::Fifo];
        all.into_iter().find(|kind| kind.type_bits() == mode & TYPE_BITS)
    }

    /// Returns the file type in a Unix mode.
    pub fn type_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Fifo => 0o010_000,
        }
    }
}

/// Returns the link target for a hard link at `path` to the file `first`: the path of `first`,
/// relative to the directory of `path`. `None` if it is too long.
pub fn hard_link_target(path: &[u8], first: &[u8]) -> Option<Vec<u8>> {
    let target = [&upwards(path), first].concat();
    (target.len() as u64 <= MAX_TARGET_BYTES).then_some(target)
}

/// Resolves the target of a hard link at `path`. `None` if the target is absolute, leaves the
/// archived directory or is not in the form that [`hard_link_target`] gives.
pub fn resolve_hard_link(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let first = target.strip_prefix(&upwards(path)[..])?;
    let is_plain = first.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    is_plain.then(|| first.to_vec())
}

/// Returns the relative path from the directory of `path` to the archived directory.
fn upwards(path: &[u8]) -> Vec<u8> {
    b"../".repeat(path.iter().filter(|byte| **byte == b'/').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_resolves_to_the_first_name() {
        for (from, to) in [(&b"b"[..], &b"a"[..]), (b"d/e/b", b"a"), (b"d/b", b"d/a"), (b"b", b"d/e/a")] {
            let target = hard_link_target(from, to).unwrap();
            assert_eq!(resolve_hard_link(from, &target).as_deref(), Some(to));
        }
        for (path, target) in [
            (&b"b"[..], &b"/etc/passwd"[..]),
            (b"b", b"../a"),
            (b"d/b", b"../../a"),
            (b"d/b", b"a"),
            (b"b", b"d/../../a"),
            (b"b", b"./a"),
            (b"b", b""),
            (b"b", b"d//a"),
        ] {
            assert_eq!(resolve_hard_link(path, target), None, "{}", target.escape_ascii());
        }
    }
}

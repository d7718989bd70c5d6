//! Builds zips with arbitrary header fields, so that a test can make exactly one of them wrong.

use flate2::{Compression, write::DeflateEncoder};
use std::io::Write;

pub(crate) const FILE: u32 = 0o100_644;
pub(crate) const DIRECTORY: u32 = 0o040_755;
pub(crate) const LINK: u32 = 0o120_777;

/// A zip entry whose fields are written as they are.
#[derive(Debug, Clone)]
pub(crate) struct CraftedEntry {
    pub(crate) name: Vec<u8>,
    /// Name in the local header; equal to `name` unless a test changes it.
    pub(crate) local_name: Vec<u8>,
    pub(crate) mode: u32,
    /// Host system: 3 is Unix, 0 is DOS.
    pub(crate) system: u8,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc: u32,
    pub(crate) size: u32,
    pub(crate) content: Vec<u8>,
    /// Extra fields of the central header.
    pub(crate) extra: Vec<u8>,
    /// Offset of the local header as the central directory has it; `None` for the correct one.
    pub(crate) offset: Option<u32>,
}

impl CraftedEntry {
    pub(crate) fn new(name: impl AsRef<[u8]>, mode: u32, content: &[u8]) -> Self {
        let name = name.as_ref().to_vec();
        Self {
            local_name: name.clone(),
            name,
            mode,
            system: 3,
            flags: 0,
            method: 0,
            crc: crc32fast::hash(content),
            size: content.len() as u32,
            content: content.to_vec(),
            extra: Vec::new(),
            offset: None,
        }
    }

    /// Returns a further name of the file to which the relative path `target` leads.
    pub(crate) fn hard_link(name: &str, target: &[u8]) -> Self {
        Self { extra: [0x6471u16, 0].map(u16::to_le_bytes).concat(), ..Self::new(name, LINK, target) }
    }

    pub(crate) fn deflated(name: &str, content: &[u8]) -> Self {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(content).unwrap();
        Self { method: 8, content: deflate.finish().unwrap(), ..Self::new(name, FILE, content) }
    }

    fn common(&self) -> Vec<u8> {
        let mut out = [20u16, self.flags, self.method, 0, 0].map(u16::to_le_bytes).concat();
        out.extend([self.crc, self.content.len() as u32, self.size].map(u32::to_le_bytes).concat());
        out
    }
}

/// Encodes a zip with these entries.
pub(crate) fn zip(entries: &[CraftedEntry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = entry.offset.unwrap_or(out.len() as u32);
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend(entry.common());
        out.extend((entry.local_name.len() as u16).to_le_bytes());
        out.extend([0, 0]);
        out.extend(&entry.local_name);
        out.extend(&entry.content);
        directory.extend(0x0201_4b50u32.to_le_bytes());
        directory.extend([20, entry.system]);
        directory.extend(entry.common());
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend((entry.extra.len() as u16).to_le_bytes());
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
        directory.extend(&entry.extra);
    }
    let start = out.len() as u32;
    let count = entries.len() as u16;
    let length = directory.len() as u32;
    out.extend(directory);
    out.extend(end(count, length, start));
    out
}

/// Encodes the end record of a zip.
pub(crate) fn end(count: u16, length: u32, start: u32) -> Vec<u8> {
    let mut out = 0x0605_4b50u32.to_le_bytes().to_vec();
    out.extend([0, 0, count, count].map(u16::to_le_bytes).concat());
    out.extend([length, start].map(u32::to_le_bytes).concat());
    out.extend([0, 0]);
    out
}

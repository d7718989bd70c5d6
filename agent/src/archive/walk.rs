//! Walks a tree for an archive: by descriptors, never through a symbolic link, never into another file system; names sorted by their
//! bytes, a folder before what is in it. What cannot be had, and a folder whose entries changed meanwhile, is said.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    vec,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{
    facts::Facts,
    gate::{Ended, Gate},
    ignore::Rules,
    manifest::SkippedEntry,
};
use crate::files::{FileKind, is_temp, smallest_names};

/// Names held for a folder at a time, 20 bytes each as a rule; a larger folder is read in several passes.
const NAMES: usize = 16_384;
/// Folders within each other, each of which holds a descriptor; what is deeper is said to be skipped.
pub(super) const MAX_DEPTH: usize = 256;
/// Bytes of a path: what the kernel takes when it is unpacked. What is longer is said to be skipped.
pub(super) const MAX_PATH: usize = 4_095;
/// What changed while we looked.
pub(super) const CHANGED: &str = "it changed while it was read";

/// An entry, and the folder by which it is reached.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to where the walk began.
    pub(super) path: Vec<u8>,
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: OsString,
    pub(super) facts: Facts,
}

/// One step of a walk.
#[derive(Debug)]
pub(super) enum Step {
    Found(Found),
    Skipped(SkippedEntry),
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    levels: Vec<Level>,
    rules: Rules,
    gate: &'a Gate,
    /// Said before the walk goes on.
    pending: Vec<SkippedEntry>,
}

#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    dir: Arc<OwnedFd>,
    facts: Facts,
    names: vec::IntoIter<OsString>,
    last: Option<OsString>,
    complete: bool,
}

impl<'a> Walk<'a> {
    /// From a folder on.
    pub(super) fn new(dir: OwnedFd, rules: Rules, gate: &'a Gate) -> Result<Self, Errno> {
        let mut walk = Self { levels: Vec::new(), rules, gate, pending: Vec::new() };
        // Who is given up before it began walks nothing.
        if let Ok(facts) = walk.settled(&dir)? {
            walk.enter(Vec::new(), dir, facts);
        }
        Ok(walk)
    }

    /// The next step; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Step>, Ended> {
        loop {
            if let Some(skipped) = self.pending.pop() {
                return Ok(Some(Step::Skipped(skipped)));
            }
            self.gate.check()?;
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.next() else {
                self.pass();
                continue;
            };
            let path = join(&level.path, &name);
            match self.look(path.clone(), name) {
                Ok(Some(found)) => return Ok(Some(Step::Found(found))),
                Ok(None) => {}
                Err(Refused::Ended) => return Err(Ended),
                Err(Refused::Skipped(reason)) => {
                    return Ok(Some(Step::Skipped(SkippedEntry { path, reason })));
                }
            }
        }
    }

    fn look(&mut self, path: Vec<u8>, name: OsString) -> Result<Option<Found>, Refused> {
        let Some(level) = self.levels.last() else { return Ok(None) };
        let dir = level.dir.clone();
        let facts = Facts::at(&dir, &name)?;
        if self.rules.ignores(&path, facts.kind == FileKind::Directory) {
            return Ok(None);
        }
        if level.facts.mounted(&facts) {
            return Err("another file system is mounted there".into());
        }
        // With the slash behind a folder.
        if path.len() >= MAX_PATH {
            return Err("its path is longer than 4,094 bytes".into());
        }
        if facts.kind != FileKind::Directory {
            return Ok(Some(Found { path, dir, name, facts }));
        }
        if self.levels.len() >= MAX_DEPTH {
            return Err("it lies more than 256 folders deep".into());
        }
        let inner = openat(&dir, &name, FOLDER, Mode::empty())?;
        let facts = self.settled(&inner)??;
        self.enter(path.clone(), inner, facts.clone());
        Ok(Some(Found { path, dir, name, facts }))
    }

    fn enter(&mut self, path: Vec<u8>, dir: OwnedFd, facts: Facts) {
        for (name, reason) in self.rules.enter(&dir, &path) {
            self.pending.push(SkippedEntry { path: join(&path, OsStr::new(name)), reason });
        }
        let (dir, names) = (Arc::new(dir), Vec::new().into_iter());
        self.levels.push(Level { path, dir, facts, names, last: None, complete: false });
    }

    /// Reads on in the folder at hand, or leaves it.
    fn pass(&mut self) {
        let Some(level) = self.levels.last_mut() else { return };
        let wrong = if level.complete {
            let same = Facts::of(level.dir.as_fd()).is_ok_and(|now| now == level.facts);
            (!same).then(|| "its entries changed while it was read".to_owned())
        } else {
            let read = smallest_names(&level.dir, level.last.as_deref(), NAMES, |name| !is_temp(name));
            match read {
                Ok((names, complete)) => {
                    level.last = names.last().cloned();
                    (level.names, level.complete) = (names.into_iter(), complete);
                    return;
                }
                Err(errno) => Some(reason(errno)),
            }
        };
        if let Some(reason) = wrong {
            self.pending.push(SkippedEntry { path: level.path.clone(), reason });
        }
        self.levels.pop();
        self.rules.leave();
    }

    /// Facts in which any later change shows.
    fn settled(&self, dir: &OwnedFd) -> Result<Result<Facts, Ended>, Errno> {
        let facts = Facts::of(dir)?;
        Ok(match self.gate.settle(facts.changed) {
            Ok(false) => Ok(facts),
            Ok(true) => Ok(Facts::of(dir)?),
            Err(ended) => Err(ended),
        })
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn join(folder: &[u8], name: &OsStr) -> Vec<u8> {
    if folder.is_empty() {
        return name.as_bytes().to_vec();
    }
    [folder, b"/", name.as_bytes()].concat()
}

/// Why an entry is not walked.
enum Refused {
    Ended,
    Skipped(String),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Skipped(reason(errno))
    }
}

impl From<Ended> for Refused {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Self::Skipped(reason.to_owned())
    }
}

/// For people.
pub(super) fn reason(errno: Errno) -> String {
    match errno {
        Errno::ACCESS | Errno::PERM => "permission denied".to_owned(),
        // It was listed a moment ago, or was of another kind.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO => CHANGED.to_owned(),
        errno => errno.to_string(),
    }
}

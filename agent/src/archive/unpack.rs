//! Unpacks a zip that was looked through: folders, then files and links, then the folders' permissions and times, so that those nobody may write
//! to can be filled.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    fs::{
        AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT, fchmod, fstatvfs, futimens, mkdirat, syncfs,
        utimensat,
    },
    io::Errno,
};

use super::{
    decode::Decoder,
    error::{ArchiveError, Stopped},
    facts::{Facts, Instant},
    inspect::{Safe, Sum, prove, target},
    read::Zip,
    tally::Tally,
    way::{self, Way},
};
use crate::files::{FileError, FileKind, RelPath, WorkspaceRoot, failed, mkdir};

/// Threads that write: as many as there are cores, up to this.
const MAX_WORKERS: usize = 4;
/// Of what came from a system without permissions.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// Of a folder while it is filled.
const FILLING: u32 = 0o700;
/// Zeros in a row from which on a hole is left.
const HOLE: usize = 4_096;

/// A zip on its way into a folder.
#[derive(Debug)]
pub(super) struct Unpacking<'a> {
    pub(super) zip: &'a Zip,
    pub(super) root: &'a WorkspaceRoot,
    /// The folder.
    pub(super) path: &'a RelPath,
    pub(super) replace: bool,
}

impl Unpacking<'_> {
    /// Whether there is room, and nothing in the way. Writes nothing.
    pub(super) fn check(&self, sum: Sum) -> Result<(), ArchiveError> {
        let base = match self.root.folder(self.path) {
            Err(FileError::NotFound { .. }) => None,
            found => Some(found?),
        };
        let disk = match &base {
            Some(base) => fstatvfs(base),
            None => fstatvfs(self.root.folder(&RelPath::ROOT)?),
        };
        let disk = disk.map_err(failed("look at the disk of", self.path))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < sum.bytes {
            let path = format!("{} bytes to be unpacked", sum.bytes);
            return Err(FileError::DiskFull { path, errno: Errno::NOSPC }.into());
        }
        let Some(base) = base else { return Ok(()) };
        let mut way = Way::new(&base);
        (0..self.zip.len()).try_for_each(|number| self.fits(&Safe::new(self.zip.record(number)?)?, &mut way))
    }

    fn fits(&self, safe: &Safe, way: &mut Way<'_>) -> Result<(), ArchiveError> {
        let (folder, name) = safe.split();
        let dir = match way.to(folder) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(folder, "open")(errno)),
        };
        let there = match Facts::at(dir, name) {
            Ok(facts) => facts.kind,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(&safe.path, "look at")(errno)),
        };
        let path = || self.at(&safe.path).to_string();
        let problem = match (safe.kind, there) {
            (FileKind::Directory, FileKind::Directory) => return Ok(()),
            (_, FileKind::Directory) => "is a folder",
            (FileKind::Directory, _) => "is not a folder",
            _ if self.replace => return Ok(()),
            _ => return Err(FileError::Exists { path: path() }.into()),
        };
        Err(FileError::WrongKind { path: path(), problem }.into())
    }

    /// Decodes everything once, for nothing.
    pub(super) fn prove(&self, tally: &Tally<'_>) -> Result<(), Stopped> {
        self.each(Decoder::new, |safe, decoder| {
            tally.tell()?;
            Ok(prove(self.zip, safe, decoder)?)
        })
    }

    /// Writes.
    pub(super) fn write(&self, tally: &Tally<'_>) -> Result<(), Stopped> {
        mkdir(self.root, self.path, None, true)?;
        let base = self.root.folder(self.path)?;
        let folders = self.folders(&base, tally)?;
        let start = || (Way::new(&base), Decoder::new());
        self.each(start, |safe, (way, decoder)| {
            match safe.kind {
                FileKind::File => self.file(safe, way, decoder, tally)?,
                FileKind::Symlink => self.link(safe, way, decoder)?,
                // Made already; others are not in a zip that was looked through.
                FileKind::Directory | FileKind::Other => return Ok(()),
            }
            tally.entry()
        })?;
        let mut way = Way::new(&base);
        folders.into_iter().try_for_each(|number| self.dress(number, &mut way))?;
        // One for all of them: what was answered with "done" is on the disk.
        Ok(syncfs(&base).map_err(failed("sync", self.path))?)
    }

    /// Makes all folders; the innermost come back first.
    fn folders(&self, base: &OwnedFd, tally: &Tally<'_>) -> Result<Vec<usize>, Stopped> {
        let mut way = Way::new(base);
        let mut made = Vec::new();
        for number in 0..self.zip.len() {
            let safe = Safe::new(self.zip.record(number)?)?;
            let (folder, name) = safe.split();
            let dir = way.make(folder).map_err(|errno| self.failed(folder, "make")(errno))?;
            if safe.kind == FileKind::Directory {
                match mkdirat(dir, name, Mode::from_raw_mode(FILLING)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(self.failed(&safe.path, "make")(errno).into()),
                }
                let depth = safe.path.iter().filter(|b| **b == b'/').count();
                made.push((depth, number));
                tally.entry()?;
            }
        }
        made.sort_unstable_by(|a, b| b.cmp(a));
        Ok(made.into_iter().map(|(_, number)| number).collect())
    }

    fn file(
        &self,
        safe: &Safe,
        way: &mut Way<'_>,
        decoder: &mut Decoder,
        tally: &Tally<'_>,
    ) -> Result<(), Stopped> {
        let (folder, name) = safe.split();
        let failed = self.failed(&safe.path, "write");
        let dir = way.to(folder).map_err(&failed)?;
        let (temp, file) = self.root.temps().create(duplicate(dir).map_err(&failed)?).map_err(&failed)?;
        let file = File::from(file);
        let write = |error: std::io::Error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let (mut at, mut end, mut stopped) = (0, 0, None);
        let start = self.zip.content(&safe.record)?;
        let decoded = decoder.decode(&self.zip.file, &safe.record, start, |bytes| {
            if bytes.len() < HOLE || bytes.iter().any(|b| *b != 0) {
                file.write_all_at(bytes, at).map_err(write)?;
                end = at + bytes.len() as u64;
            }
            at += bytes.len() as u64;
            tally.bytes(bytes.len()).map_err(|reason| {
                stopped = Some(reason);
                ArchiveError::fault("unpacking")
            })
        });
        if let Some(reason) = stopped {
            return Err(reason);
        }
        decoded?;
        if end < at {
            file.set_len(at).map_err(write)?;
        }
        fchmod(&file, Mode::from_raw_mode(safe.mode.unwrap_or(FILE_MODE))).map_err(&failed)?;
        if let Some(at) = safe.record.modified {
            futimens(&file, &times(at)).map_err(&failed)?;
        }
        Ok(temp.rename(dir, name, self.replace).map_err(&failed)?)
    }

    fn link(&self, safe: &Safe, way: &mut Way<'_>, decoder: &mut Decoder) -> Result<(), Stopped> {
        let (folder, name) = safe.split();
        let failed = self.failed(&safe.path, "write");
        let target = target(self.zip, safe, decoder)?;
        let dir = way.to(folder).map_err(&failed)?;
        let own = duplicate(dir).map_err(&failed)?;
        let temp = self.root.temps().create_link(own, OsStr::from_bytes(&target)).map_err(&failed)?;
        if let Some(at) = safe.record.modified {
            utimensat(temp.dir(), temp.name(), &times(at), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        }
        Ok(temp.rename(dir, name, self.replace).map_err(&failed)?)
    }

    /// Permissions and time of a folder that is full.
    fn dress(&self, number: usize, way: &mut Way<'_>) -> Result<(), ArchiveError> {
        let safe = Safe::new(self.zip.record(number)?)?;
        let failed = self.failed(&safe.path, "set the permissions of");
        let (folder, name) = safe.split();
        let dir = way::open(way.to(folder).map_err(&failed)?, name).map_err(&failed)?;
        if let Some(at) = safe.record.modified {
            futimens(&dir, &times(at)).map_err(&failed)?;
        }
        fchmod(&dir, Mode::from_raw_mode(safe.mode.unwrap_or(FOLDER_MODE))).map_err(&failed)
    }

    /// Does something for each entry, on several threads, until one fails.
    fn each<T>(
        &self,
        start: impl Fn() -> T + Sync,
        work: impl Fn(&Safe, &mut T) -> Result<(), Stopped> + Sync,
    ) -> Result<(), Stopped> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let one = |number: usize, own: &mut T| work(&Safe::new(self.zip.record(number)?)?, own);
        let worker = || {
            let mut own = start();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.zip.len() {
                    return;
                }
                if let Err(stopped) = one(number, &mut own) {
                    next.store(self.zip.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(stopped);
                    return;
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS));
        thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(worker);
            }
            worker();
        });
        failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// Where an entry goes, for people.
    fn at(&self, path: &[u8]) -> RelPath {
        let whole = self.path.parts().map(OsStrExt::as_bytes).chain([path]).collect::<Vec<_>>().join(&b'/');
        RelPath::parse(&whole).unwrap_or(RelPath::ROOT)
    }

    fn failed(&self, path: &[u8], operation: &'static str) -> impl Fn(Errno) -> ArchiveError + use<> {
        let path = self.at(path);
        move |errno| failed(operation, &path)(errno).into()
    }
}

fn duplicate(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    dir.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
}

fn times((seconds, nanos): Instant) -> Timestamps {
    let last_modification = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification }
}

//! Extracts an inspected zip. Creates the directories first, then files and links, then further
//! names of these files. Sets the permissions and times of directories last, so that directories
//! without write permission can be filled.

mod inspect;
mod receive;

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use podling_archive::{EntryReader, UnixTime, ZipEntryKind};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, Timespec, Timestamps, chmodat, fchmod, fstatvfs, futimens, mkdirat, openat,
        syncfs, utimensat,
    },
    io::Errno,
};
use tokio::sync::mpsc::Sender;

use self::inspect::{CheckedEntry, ReceivedZip};
pub use self::receive::ArchiveReceiver;
use super::{
    ArchiveError, ArchiveProgress, ArchiveStop, EntryMetadata, ExtractEvent, ExtractOptions,
    PROGRESS_INTERVAL, worker_count,
};
use crate::{
    admission::Rejection,
    files::{
        FileError, FileKind, RelPath, WorkspaceRoot, duplicate, errno, map_errno, mkdir, modification_time,
        open_directory_at, open_file_at,
    },
    util::lock,
};

/// Mode of files from a system without permission bits.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// Mode of a directory while it is being filled.
const FILLING_MODE: u32 = 0o700;
/// Setuid and setgid. A zip from elsewhere must not give others the rights of the workspace's user.
const SET_ID: u32 = 0o6000;
/// Decoded pieces of at least this many bytes become holes if all bytes are zero.
const MIN_HOLE_BYTES: usize = 4_096;

/// Mode of directories that the zip does not list.
const IMPLIED_MODE: u32 = 0o755;

const OPEN_DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Inspects the zip in `spool`, and extracts it into the directory `path`. Blocks until it is
/// extracted, the receiver of `events` is dropped, or an error occurs. `admission` is called with
/// every report.
pub(super) fn extract(
    spool: File,
    root: &WorkspaceRoot,
    path: &RelPath,
    options: &ExtractOptions,
    events: &Sender<ExtractEvent>,
    admission: &(dyn Fn() -> Result<(), Rejection> + Sync),
) -> Result<(), ArchiveError> {
    let zip = ReceivedZip::open(spool)?;
    let bytes = zip.inspect()?;
    let ExtractOptions { replace, preservation, .. } = *options;
    let extraction = Extraction { zip: &zip, root, path, replace, preservation };
    let progress = ExtractProgress::new(bytes, events, admission);
    extraction.check_destination(bytes)?;
    match extraction.verify(&progress).and_then(|()| extraction.write_tree(&progress)) {
        Ok(()) => {}
        Err(ArchiveStop::ReceiverDropped) => return Ok(()),
        Err(ArchiveStop::Failed(error)) => return Err(error),
    }
    // The client may have dropped the stream. The extraction is complete in any case.
    let _gone = events.blocking_send(ExtractEvent::Done { entries: zip.len() as u64, bytes });
    Ok(())
}

/// Extraction of one zip into a directory.
#[derive(Debug)]
struct Extraction<'a> {
    zip: &'a ReceivedZip,
    root: &'a WorkspaceRoot,
    /// Destination directory, relative to the root.
    path: &'a RelPath,
    replace: bool,
    /// Whether setuid and setgid bits are restored.
    preservation: bool,
}

impl Extraction<'_> {
    /// Checks free space and conflicts with existing entries. Writes nothing.
    fn check_destination(&self, bytes: u64) -> Result<(), ArchiveError> {
        let base = match self.root.open_directory(self.path) {
            Err(FileError::NotFound { .. }) => None,
            found => Some(found?),
        };
        let disk = match &base {
            Some(base) => fstatvfs(base),
            None => fstatvfs(self.root.open_directory(&RelPath::ROOT)?),
        };
        let disk = disk.map_err(map_errno("read the free space of", self.path))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes {
            let path = format!("cannot extract {bytes} bytes into {} ({free} bytes free)", self.path);
            return Err(FileError::DiskFull { path, errno: Errno::NOSPC }.into());
        }
        let Some(base) = base else { return Ok(()) };
        let mut walker = SafeDirWalker::new(&base);
        (0..self.zip.len()).try_for_each(|number| self.check_entry(&self.zip.entry(number)?, &mut walker))
    }

    fn check_entry(&self, safe: &CheckedEntry, walker: &mut SafeDirWalker<'_>) -> Result<(), ArchiveError> {
        let (directory, name) = parent_and_name(&safe.path);
        let dir = match walker.open(directory) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(directory, "open")(errno)),
        };
        let there = match EntryMetadata::at(dir, name) {
            Ok(metadata) => metadata.kind,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(&safe.path, "read the metadata of")(errno)),
        };
        let path = || self.destination(&safe.path).to_string();
        let problem = match (safe.kind, there) {
            (ZipEntryKind::Directory, FileKind::Directory) => return Ok(()),
            (_, FileKind::Directory) => "is a directory",
            (ZipEntryKind::Directory, _) => "is not a directory",
            _ if self.replace => return Ok(()),
            _ => return Err(FileError::Exists { path: path() }.into()),
        };
        Err(FileError::WrongKind { path: path(), problem }.into())
    }

    /// Decodes every entry and discards the content, so that damage is found before anything is
    /// written.
    fn verify(&self, progress: &ExtractProgress<'_>) -> Result<(), ArchiveStop> {
        self.for_each_entry(EntryReader::default, |safe, decoder| {
            progress.report()?;
            Ok(self.zip.verify_content(safe, decoder)?)
        })
    }

    /// Writes all entries, then syncs the file system.
    fn write_tree(&self, progress: &ExtractProgress<'_>) -> Result<(), ArchiveStop> {
        mkdir(self.root, self.path, None, true)?;
        let base = self.root.open_directory(self.path)?;
        let (directories, has_hard_links) = self.create_directories(&base, progress)?;
        let start = || (SafeDirWalker::new(&base), EntryReader::default());
        self.for_each_entry(start, |safe, (walker, decoder)| {
            match safe.kind {
                ZipEntryKind::File => self.write_file(safe, walker, decoder, progress)?,
                // Needs the file, which another thread may not have written yet.
                ZipEntryKind::Symlink if safe.is_hard_link() => return Ok(()),
                ZipEntryKind::Symlink | ZipEntryKind::Fifo => self.write_special(safe, walker, decoder)?,
                // Directories exist already.
                ZipEntryKind::Directory => return Ok(()),
            }
            progress.add_entry()
        })?;
        if has_hard_links {
            self.for_each_entry(start, |safe, (walker, decoder)| {
                if !safe.is_hard_link() {
                    return Ok(());
                }
                self.write_hard_link(safe, walker, decoder)?;
                progress.add_entry()
            })?;
        }
        let mut walker = SafeDirWalker::new(&base);
        directories.into_iter().try_for_each(|number| self.apply_metadata(number, &mut walker))?;
        // One sync for all entries, so that an extraction that reports success is on disk.
        Ok(syncfs(&base).map_err(map_errno("sync", self.path))?)
    }

    /// Creates all directories and returns their entry numbers, innermost first, and whether the
    /// zip has hard links.
    fn create_directories(
        &self,
        base: &OwnedFd,
        progress: &ExtractProgress<'_>,
    ) -> Result<(Vec<usize>, bool), ArchiveStop> {
        let mut walker = SafeDirWalker::new(base);
        let (mut made, mut has_hard_links) = (Vec::new(), false);
        for number in 0..self.zip.len() {
            let safe = self.zip.entry(number)?;
            has_hard_links |= safe.is_hard_link();
            let (directory, name) = parent_and_name(&safe.path);
            let dir = walker.create(directory).map_err(|errno| self.failed(directory, "create")(errno))?;
            if safe.kind == ZipEntryKind::Directory {
                match mkdirat(dir, name, Mode::from_raw_mode(FILLING_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(self.failed(&safe.path, "create")(errno).into()),
                }
                let depth = safe.path.iter().filter(|b| **b == b'/').count();
                made.push((depth, number));
                progress.add_entry()?;
            }
        }
        made.sort_unstable_by(|a, b| b.cmp(a));
        Ok((made.into_iter().map(|(_, number)| number).collect(), has_hard_links))
    }

    fn write_file(
        &self,
        safe: &CheckedEntry,
        walker: &mut SafeDirWalker<'_>,
        decoder: &mut EntryReader,
        progress: &ExtractProgress<'_>,
    ) -> Result<(), ArchiveStop> {
        let (directory, name) = parent_and_name(&safe.path);
        let failed = self.failed(&safe.path, "write");
        let dir = walker.open(directory).map_err(&failed)?;
        let (temp, file) =
            self.root.temp_files().create(duplicate(dir).map_err(&failed)?).map_err(&failed)?;
        let file = File::from(file);
        let write = |error: std::io::Error| failed(errno(&error));
        let (mut at, mut end) = (0, 0);
        self.zip.read_content(safe, decoder, |bytes| {
            if bytes.len() < MIN_HOLE_BYTES || bytes.iter().any(|b| *b != 0) {
                file.write_all_at(bytes, at).map_err(write)?;
                end = at + bytes.len() as u64;
            }
            at += bytes.len() as u64;
            progress.add_bytes(bytes.len())
        })?;
        if end < at {
            file.set_len(at).map_err(write)?;
        }
        fchmod(&file, self.mode(safe, FILE_MODE)).map_err(&failed)?;
        if let Some(at) = safe.modified() {
            futimens(&file, &times(at)).map_err(&failed)?;
        }
        Ok(temp.rename(dir, name, self.replace).map_err(&failed)?)
    }

    /// Writes a symbolic link or a FIFO.
    fn write_special(
        &self,
        safe: &CheckedEntry,
        walker: &mut SafeDirWalker<'_>,
        decoder: &mut EntryReader,
    ) -> Result<(), ArchiveStop> {
        let (directory, name) = parent_and_name(&safe.path);
        let failed = self.failed(&safe.path, "write");
        let is_link = safe.kind == ZipEntryKind::Symlink;
        let target = is_link.then(|| self.zip.link_target(safe, decoder)).transpose()?;
        let dir = walker.open(directory).map_err(&failed)?;
        let own = duplicate(dir).map_err(&failed)?;
        let temp_files = self.root.temp_files();
        let temp = match target {
            Some(target) => temp_files.create_link(own, OsStr::from_bytes(&target)).map_err(&failed)?,
            None => temp_files.create_fifo(own).map_err(&failed)?,
        };
        if !is_link {
            let mode = self.mode(safe, FILE_MODE);
            chmodat(temp.dir(), temp.name(), mode, AtFlags::empty()).map_err(&failed)?;
        }
        if let Some(at) = safe.modified() {
            utimensat(temp.dir(), temp.name(), &times(at), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        }
        Ok(temp.rename(dir, name, self.replace).map_err(&failed)?)
    }

    /// Writes a further name of a file that has been extracted. The file is below the destination,
    /// and no symbolic link is followed to it.
    fn write_hard_link(
        &self,
        safe: &CheckedEntry,
        walker: &mut SafeDirWalker<'_>,
        decoder: &mut EntryReader,
    ) -> Result<(), ArchiveStop> {
        let failed = self.failed(&safe.path, "write");
        let target = self.zip.hard_link_target(safe, decoder)?;
        let (first_directory, first_name) = parent_and_name(&target);
        let first_dir = walker.open(first_directory).and_then(duplicate).map_err(&failed)?;
        let metadata = EntryMetadata::at(&first_dir, first_name).map_err(&failed)?;
        if metadata.kind != FileKind::File {
            // A program has replaced the file since it was extracted.
            return Err(failed(Errno::LOOP).into());
        }
        let (directory, name) = parent_and_name(&safe.path);
        let dir = walker.open(directory).map_err(&failed)?;
        let own = || duplicate(dir).map_err(&failed);
        let linked = self.root.temp_files().create_hard_link(own()?, &first_dir, first_name);
        let temp = match linked {
            Ok(temp) => temp,
            // The file system does not support hard links, or allows no more links to this file.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                let (temp, copy) = self.root.temp_files().create(own()?).map_err(&failed)?;
                copy_file(&first_dir, first_name, &metadata, copy).map_err(&failed)?;
                temp
            }
            Err(errno) => return Err(failed(errno).into()),
        };
        Ok(temp.rename(dir, name, self.replace).map_err(&failed)?)
    }

    /// Returns the permission bits to restore.
    fn mode(&self, safe: &CheckedEntry, default: u32) -> Mode {
        let mode = safe.mode.unwrap_or(default);
        Mode::from_raw_mode(if self.preservation { mode } else { mode & !SET_ID })
    }

    /// Sets permissions and time of a directory that has been filled.
    fn apply_metadata(&self, number: usize, walker: &mut SafeDirWalker<'_>) -> Result<(), ArchiveError> {
        let safe = self.zip.entry(number)?;
        let failed = self.failed(&safe.path, "set the permissions of");
        let (directory, name) = parent_and_name(&safe.path);
        let dir = open_directory_at(walker.open(directory).map_err(&failed)?, name).map_err(&failed)?;
        if let Some(at) = safe.modified() {
            futimens(&dir, &times(at)).map_err(&failed)?;
        }
        fchmod(&dir, self.mode(&safe, DIRECTORY_MODE)).map_err(&failed)
    }

    /// Runs `work` for each entry on several threads until one fails. `start` makes the state of a
    /// thread.
    fn for_each_entry<T>(
        &self,
        start: impl Fn() -> T + Sync,
        work: impl Fn(&CheckedEntry, &mut T) -> Result<(), ArchiveStop> + Sync,
    ) -> Result<(), ArchiveStop> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let one = |number: usize, own: &mut T| work(&self.zip.entry(number)?, own);
        let worker = || {
            let mut own = start();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.zip.len() {
                    return;
                }
                if let Err(stopped) = one(number, &mut own) {
                    next.store(self.zip.len(), Ordering::Relaxed);
                    lock(&failure).get_or_insert(stopped);
                    return;
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..worker_count() {
                scope.spawn(worker);
            }
            worker();
        });
        failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// Returns the path of an entry relative to the root, for error messages.
    fn destination(&self, path: &[u8]) -> RelPath {
        let whole = self.path.parts().map(OsStrExt::as_bytes).chain([path]).collect::<Vec<_>>().join(&b'/');
        RelPath::parse(&whole).unwrap_or(RelPath::ROOT)
    }

    fn failed(&self, path: &[u8], operation: &'static str) -> impl Fn(Errno) -> ArchiveError + use<> {
        let path = self.destination(path);
        move |errno| map_errno(operation, &path)(errno).into()
    }
}

/// Splits a path into the parent directory and the name in it.
fn parent_and_name(path: &[u8]) -> (&[u8], &OsStr) {
    let at = path.iter().rposition(|b| *b == b'/');
    let (directory, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
    (directory, OsStr::from_bytes(name))
}

/// Copies a file with its permissions and time to the empty file `copy`.
fn copy_file(dir: &OwnedFd, name: &OsStr, metadata: &EntryMetadata, copy: OwnedFd) -> Result<(), Errno> {
    let (mut from, mut to) = (File::from(open_file_at(dir, name)?), File::from(copy));
    std::io::copy(&mut from, &mut to).map_err(|error| errno(&error))?;
    fchmod(&to, Mode::from_raw_mode(metadata.mode))?;
    futimens(&to, &times(metadata.modified))
}

fn times((seconds, nanos): UnixTime) -> Timestamps {
    modification_time(Timespec { tv_sec: seconds, tv_nsec: nanos.into() })
}

struct ExtractProgress<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    total_bytes: u64,
    last_report: Mutex<Instant>,
    events: &'a Sender<ExtractEvent>,
    /// Called with every report, because the admission gate may have rejected the extraction
    /// meanwhile.
    admission: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
}

impl<'a> ExtractProgress<'a> {
    fn new(
        total_bytes: u64,
        events: &'a Sender<ExtractEvent>,
        admission: &'a (dyn Fn() -> Result<(), Rejection> + Sync),
    ) -> Self {
        let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { entries, bytes, total_bytes, last_report: Mutex::new(Instant::now()), events, admission }
    }

    /// Adds bytes of content that were written.
    fn add_bytes(&self, bytes: usize) -> Result<(), ArchiveStop> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.report()
    }

    /// Adds an entry that was written.
    fn add_entry(&self) -> Result<(), ArchiveStop> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.report()
    }

    /// Sends a progress message if one is due. Returns an error if the extraction must stop.
    fn report(&self) -> Result<(), ArchiveStop> {
        if self.events.is_closed() {
            return Err(ArchiveStop::ReceiverDropped);
        }
        // Another thread holds the lock and reports right now.
        let Ok(mut last_report) = self.last_report.try_lock() else { return Ok(()) };
        if last_report.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        *last_report = Instant::now();
        (self.admission)()?;
        let entries = self.entries.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let progress = ArchiveProgress { entries, bytes, total_bytes: self.total_bytes };
        // A client that reads slowly misses reports instead of blocking the extraction.
        let _full = self.events.try_send(ExtractEvent::Progress(progress));
        Ok(())
    }
}

/// Opens directories below `base`. Caches the path that was opened last, because the next one is
/// often the same.
#[derive(Debug)]
struct SafeDirWalker<'a> {
    base: &'a OwnedFd,
    /// Parts of the cached path; `dirs` has a descriptor for each.
    parts: Vec<Vec<u8>>,
    dirs: Vec<OwnedFd>,
}

impl<'a> SafeDirWalker<'a> {
    fn new(base: &'a OwnedFd) -> Self {
        Self { base, parts: Vec::new(), dirs: Vec::new() }
    }

    /// Opens the directory at the path `directory`, relative to the base.
    fn open(&mut self, directory: &[u8]) -> Result<&OwnedFd, Errno> {
        self.descend(directory, false)
    }

    /// Like [`Self::open`], but creates missing directories.
    fn create(&mut self, directory: &[u8]) -> Result<&OwnedFd, Errno> {
        self.descend(directory, true)
    }

    fn descend(&mut self, directory: &[u8], create: bool) -> Result<&OwnedFd, Errno> {
        let parts = || directory.split(|b| *b == b'/').filter(|part| !part.is_empty());
        let same = self.parts.iter().zip(parts()).take_while(|(old, new)| old == new).count();
        self.parts.truncate(same);
        self.dirs.truncate(same);
        for part in parts().skip(same) {
            let dir = self.dirs.last().unwrap_or(self.base);
            let name = OsStr::from_bytes(part);
            let next = match openat(dir, name, OPEN_DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if create => {
                    mkdirat(dir, name, Mode::from_raw_mode(IMPLIED_MODE))?;
                    openat(dir, name, OPEN_DIRECTORY, Mode::empty())?
                }
                next => next?,
            };
            self.parts.push(part.to_vec());
            self.dirs.push(next);
        }
        Ok(self.dirs.last().unwrap_or(self.base))
    }
}

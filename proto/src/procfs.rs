//! What both programs read from /proc: processes of this machine, and paths through open
//! descriptors. Independent of the protocol, and of what the programs do with a process.
//!
//! The crate `procfs` is not used, because it parses all 52 fields of a process. Every process of a
//! workspace is read at least four times a minute.

use std::{
    fs::{self, DirEntry},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

/// Some fields of /proc/PID/stat. See proc_pid_stat(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcStat {
    /// Unique together with `start_ticks`; the kernel reuses process ids.
    pub pid: u32,
    /// Program name, cut to 15 bytes by the kernel.
    pub name: String,
    /// Process id of the parent, which reaps it.
    pub parent: u32,
    /// Process group; 0 if the kernel reports none.
    pub group: u32,
    /// Session; 0 if the kernel reports none.
    pub session: u32,
    /// Start time, in clock ticks since the machine's boot.
    pub start_ticks: u64,
    /// CPU time of the process itself, in clock ticks.
    pub own_ticks: u64,
    /// CPU time of the children it has reaped, in clock ticks.
    pub reaped_ticks: u64,
    pub resident_pages: u64,
    /// All threads have ended, and the process waits to be reaped.
    pub has_ended: bool,
}

impl ProcStat {
    /// Reads one process. Fails with `NotFound` if it does not exist.
    pub fn read(pid: u32) -> io::Result<Self> {
        Self::read_file(&format!("/proc/{pid}/stat"))
    }

    /// Reads the calling process.
    pub fn own() -> io::Result<Self> {
        Self::read_file("/proc/self/stat")
    }

    /// Reads all visible processes by ascending process id, each when the iterator reaches it.
    /// Blocks for about 10 µs per process. An error of one process usually means that it has ended.
    /// Fails if the list of processes cannot be read to its end.
    pub fn all() -> io::Result<impl Iterator<Item = io::Result<Self>>> {
        let mut pids = process_ids(fs::read_dir("/proc")?)?;
        pids.sort_unstable();
        Ok(pids.into_iter().map(Self::read))
    }

    fn read_file(path: &str) -> io::Result<Self> {
        // The name may contain bytes that are not UTF-8.
        let text = fs::read(path)?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Parses a line. The name is in parentheses and may itself contain parentheses and spaces.
    fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        // The manual's field 3, the state, is index 0 here.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        // Some kernels report -1 where a kernel thread has no value.
        let id = |field| number(field).map(|n| u32::try_from(n).unwrap_or(0));
        let count = |field| number(field).map(|n| n.max(0) as u64);
        // A process whose first thread has ended looks dead although its other threads run.
        let is_dead = matches!(*fields.first()?, "Z" | "X" | "x") && count(20)? <= 1;
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            parent: id(4)?,
            group: id(5)?,
            session: id(6)?,
            start_ticks: count(22)?,
            own_ticks: count(14)? + count(15)?,
            reaped_ticks: count(16)? + count(17)?,
            resident_pages: count(24)?,
            has_ended: is_dead,
        })
    }
}

/// Returns the process ids among the entries of /proc.
fn process_ids(entries: impl Iterator<Item = io::Result<DirEntry>>) -> io::Result<Vec<u32>> {
    let pid = |entry: DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(|entry| entry.map(pid).transpose()).collect()
}

/// Path of a Unix socket through a descriptor of its directory, because a socket address holds only
/// 107 bytes and paths may be longer.
#[derive(Debug)]
pub struct SocketPath {
    short: PathBuf,
    /// Open descriptor through which `short` leads.
    _directory: OwnedFd,
}

impl SocketPath {
    /// Opens the directory of `path`. The socket itself need not exist.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            let problem = "the path of a socket must name a file in a directory";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { short, _directory: directory })
    }

    /// Returns the path for a socket address, which is valid as long as `self`.
    pub fn short(&self) -> &Path {
        &self.short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_does_not_shift_fields() {
        let line = "42 (a) b) (c) S 7 43 44 0 -1 4194304 100 200 0 0 11 22 33 44 20 0 1 0 5555 1000 77 0";
        let process = ProcStat::parse(line).expect("parsed");
        assert_eq!((process.pid, process.name.as_str()), (42, "a) b) (c"));
        assert_eq!((process.parent, process.group, process.session), (7, 43, 44));
        assert_eq!((process.own_ticks, process.reaped_ticks), (33, 77));
        assert_eq!((process.start_ticks, process.resident_pages), (5555, 77));
        assert_eq!(ProcStat::parse("42 (cut off) S 7"), None);
        assert_eq!(ProcStat::parse("rubbish"), None);
    }

    #[test]
    fn process_runs_while_any_of_its_threads_runs() {
        let stat = |state: char, threads: u32| {
            format!("9 (x) {state} 1 9 9 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 {threads} 0 1 0 0")
        };
        let has_ended = |stat: String| ProcStat::parse(&stat).expect("readable").has_ended;
        assert!(!has_ended(stat('S', 1)) && !has_ended(stat('Z', 2)));
        assert!(has_ended(stat('Z', 1)) && has_ended(stat('X', 0)));
    }

    #[test]
    fn list_of_processes_that_breaks_off_is_an_error() {
        let broken = std::iter::once_with(|| Err(io::ErrorKind::OutOfMemory.into()));
        let ids = process_ids(fs::read_dir("/proc").expect("/proc").chain(broken));
        assert_eq!(ids.map_err(|error| error.kind()), Err(io::ErrorKind::OutOfMemory));
    }

    #[test]
    fn own_process_is_among_all() {
        let own = ProcStat::own().expect("/proc");
        assert_eq!(own.pid, std::process::id());
        assert_eq!(ProcStat::read(own.pid).expect("/proc").start_ticks, own.start_ticks);
        assert!(ProcStat::all().expect("/proc").flatten().any(|process| process.pid == own.pid));
    }
}

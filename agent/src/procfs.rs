//! Reads the workspace's processes, which are all descendants of the agent, from /proc. The agent
//! is PID 1 or a child subreaper, so every process of the workspace remains its descendant. This
//! module does not interpret the counters.
//!
//! Cumulative counters include short-lived processes. The kernel adds a reaped child's CPU time to
//! its parent's `cutime` and `cstime`, and its bytes to its parent's `io`. The sum over all live
//! processes and their reaped children is therefore complete.
//!
//! Bytes are `rchar + wchar`, which include reads and writes of every kind of file. `read_bytes`
//! and `write_bytes` miss sockets, pipes, tmpfs and page-cache hits, so a workspace would fall
//! asleep during an upload. Output that a job prints to its terminal is in `wchar` too. The agent
//! knows that amount and subtracts it (see [`super::cpu_io`]).

use std::{collections::HashMap, fs, io};

/// Counters of one process from /proc/PID/stat and /proc/PID/io.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStat {
    /// Unique together with `start`; the kernel reuses process ids.
    pub pid: i32,
    /// Start time, in clock ticks since boot.
    pub start: u64,
    /// Process id of the parent, which reaps it.
    pub parent: i32,
    /// Program name, cut to 15 bytes by the kernel.
    pub name: String,
    /// CPU time of the process itself, in clock ticks.
    pub own_ticks: u64,
    /// CPU time of the children it has reaped, in clock ticks.
    pub reaped_ticks: u64,
    pub resident_pages: u64,
    pub is_zombie: bool,
    /// Bytes read and written by the process and the children it has reaped. `None` if the agent
    /// may not read them.
    pub bytes: Option<u64>,
}

/// All descendants of the agent at one time, and the CPU time of those it has reaped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcSnapshot {
    /// Descendants of the agent, in no particular order.
    pub processes: Vec<ProcessStat>,
    /// CPU time of the children that the agent has reaped, in clock ticks.
    pub reaped_ticks: u64,
    /// Process id of the agent.
    pub agent: i32,
}

impl ProcessStat {
    /// Returns whether this process still exists. Compares the start time, so a reused process id
    /// does not match.
    pub fn is_alive(&self) -> bool {
        stat(&self.pid.to_string()).is_ok_and(|now| now.start == self.start)
    }
}

impl ProcSnapshot {
    /// Reads /proc. Blocks for about 10 µs per process of the machine, or of the container if there
    /// is one.
    pub fn take() -> io::Result<Self> {
        // Read the agent first, then the others by ascending pid, which usually means parents
        // first. A child that is reaped meanwhile is then missed rather than counted twice. The
        // next snapshot includes it in the counters of its parent.
        let agent = stat("self")?;
        let mut pids: Vec<i32> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != agent.pid)
            .collect();
        pids.sort_unstable();
        let all: Vec<_> = pids.iter().filter_map(|pid| stat(&pid.to_string()).ok()).collect();
        let mut processes = descendants(agent.pid, all);
        for process in &mut processes {
            process.bytes = bytes(process.pid);
        }
        Ok(Self { processes, reaped_ticks: agent.reaped_ticks, agent: agent.pid })
    }
}

/// Returns the start time of this process, in clock ticks since boot.
pub(crate) fn own_start() -> io::Result<u64> {
    Ok(stat("self")?.start)
}

fn descendants(of: i32, all: Vec<ProcessStat>) -> Vec<ProcessStat> {
    let mut children: HashMap<i32, Vec<ProcessStat>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}

fn stat(pid: &str) -> io::Result<ProcessStat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Parses proc_pid_stat(5). The name is in parentheses and may itself contain parentheses and
/// spaces.
fn parse_stat(text: &str) -> Option<ProcessStat> {
    let (pid, rest) = text.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    // The manual's field 3, the state, is index 0 here.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let ticks = |field| number(field).map(|n| n.max(0) as u64);
    Some(ProcessStat {
        pid: pid.parse().ok()?,
        start: ticks(22)?,
        parent: number(4)? as i32,
        name: name.to_owned(),
        own_ticks: ticks(14)? + ticks(15)?,
        reaped_ticks: ticks(16)? + ticks(17)?,
        resident_pages: ticks(24)?,
        is_zombie: fields.first() == Some(&"Z"),
        bytes: None,
    })
}

fn bytes(pid: i32) -> Option<u64> {
    parse_io(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?)
}

fn parse_io(text: &str) -> Option<u64> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<u64>().ok())
    };
    Some(field("rchar")?.saturating_add(field("wchar")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_does_not_shift_fields() {
        let line = "42 (a) b) (c) S 7 42 42 0 -1 4194304 100 200 0 0 11 22 33 44 20 0 1 0 5555 1000 77 0";
        let process = parse_stat(line).expect("parsed");
        assert_eq!((process.pid, process.parent, process.name.as_str()), (42, 7, "a) b) (c"));
        assert_eq!((process.own_ticks, process.reaped_ticks), (33, 77));
        assert_eq!((process.start, process.resident_pages), (5555, 77));
        assert_eq!(parse_stat("42 (cut off) S 7"), None);
    }

    #[test]
    fn bytes_are_sum_of_rchar_and_wchar() {
        assert_eq!(parse_io("rchar: 10\nwchar: 5\nsyscr: 1\nread_bytes: 4096\n"), Some(15));
        assert_eq!(parse_io(""), None);
    }

    #[test]
    fn only_descendants_are_found() {
        let process = |pid, parent| ProcessStat {
            pid,
            start: 0,
            parent,
            name: String::new(),
            own_ticks: 0,
            reaped_ticks: 0,
            resident_pages: 0,
            is_zombie: false,
            bytes: None,
        };
        let all = vec![process(1, 0), process(10, 1), process(11, 10), process(12, 11), process(20, 1)];
        let mut found: Vec<_> = descendants(10, all).into_iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [11, 12]);
    }

    #[test]
    fn child_process_is_found_with_its_bytes() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let walk = ProcSnapshot::take().expect("/proc");
        child.kill().expect("kill");
        child.wait().expect("reap");
        let seen = walk.processes.iter().find(|p| p.pid == child.id() as i32).expect("seen");
        assert_eq!(seen.parent, walk.agent);
        assert!(seen.bytes.is_some() && seen.start > 0);
    }
}

//! The workspace's processes, which are all descendants of the agent, and their counters. The agent
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

use podling_proto::procfs::ProcStat;

/// A process of the workspace, from /proc/PID/stat and /proc/PID/io.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStat {
    pub stat: ProcStat,
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
}

impl ProcSnapshot {
    /// Reads /proc. Blocks for about 10 µs per process of the machine, or of the container if there
    /// is one.
    pub fn take() -> io::Result<Self> {
        // Read the agent first, then the others by ascending pid, which usually means parents
        // first. A child that is reaped meanwhile is then missed rather than counted twice. The
        // next snapshot includes it in the counters of its parent.
        let agent = ProcStat::own()?;
        let processes = descendants(agent.pid, ProcStat::all()?.flatten());
        let with_bytes = |stat: ProcStat| ProcessStat { bytes: bytes(stat.pid), stat };
        let processes = processes.into_iter().map(with_bytes).collect();
        Ok(Self { processes, reaped_ticks: agent.reaped_ticks })
    }
}

fn descendants(of: u32, all: impl Iterator<Item = ProcStat>) -> Vec<ProcStat> {
    let mut children: HashMap<u32, Vec<ProcStat>> = HashMap::new();
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

fn bytes(pid: u32) -> Option<u64> {
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
    fn bytes_are_sum_of_rchar_and_wchar() {
        assert_eq!(parse_io("rchar: 10\nwchar: 5\nsyscr: 1\nread_bytes: 4096\n"), Some(15));
        assert_eq!(parse_io(""), None);
    }

    #[test]
    fn only_descendants_are_found() {
        let process = |pid, parent| ProcStat { pid, parent, ..ProcStat::default() };
        let all = [process(1, 0), process(10, 1), process(11, 10), process(12, 11), process(20, 1)];
        let mut found: Vec<_> = descendants(10, all.into_iter()).into_iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [11, 12]);
    }

    #[test]
    fn child_process_is_found_with_its_bytes() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let walk = ProcSnapshot::take().expect("/proc");
        child.kill().expect("kill");
        child.wait().expect("reap");
        let seen = walk.processes.iter().find(|p| p.stat.pid == child.id()).expect("seen");
        assert_eq!(seen.stat.parent, std::process::id());
        assert!(seen.bytes.is_some() && seen.stat.start_ticks > 0);
    }
}

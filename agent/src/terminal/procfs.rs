//! Processes of a terminal, read from `/proc`.

use std::{fs, path::PathBuf};

use rustix::process::Pid;

/// Returns the command name of the leader of a process group. If the leader is gone, as the first
/// program of a pipeline may be, returns the name of another member. Returns `None` if the group is
/// empty.
pub(super) fn command_name(group: Pid) -> Option<String> {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let number = group.as_raw_nonzero().get();
    let name = name(number).or_else(|| {
        let member = processes().into_iter().find(|process| process.group == number && process.is_alive)?;
        name(member.pid)
    })?;
    Some(name.trim_end().to_owned())
}

pub(super) fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()
}

/// Returns the living processes of a session. Reads one file for each process of the system.
///
/// If `leader_gone` is true, the leader was reaped. The kernel does not reuse the leader's number
/// while the session has members. If a process has that number nevertheless, it belongs to another
/// session, and the result is empty.
pub(super) fn session_members(leader: Pid, leader_gone: bool) -> Vec<Pid> {
    let sid = leader.as_raw_nonzero().get();
    let members: Vec<ProcessMembership> =
        processes().into_iter().filter(|process| process.session == sid && process.is_alive).collect();
    if leader_gone && members.iter().any(|process| process.pid == sid) {
        return Vec::new();
    }
    members.iter().filter_map(|process| Pid::from_raw(process.pid)).collect()
}

/// Group, session and liveness of a process, from `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct ProcessMembership {
    pid: i32,
    group: i32,
    session: i32,
    is_alive: bool,
}

fn processes() -> Vec<ProcessMembership> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse(pid, &fs::read_to_string(entry.path().join("stat")).ok()?)
    };
    entries.flatten().filter_map(read).collect()
}

/// Parses a `stat` line. The command name in it may contain any characters, including parentheses.
fn parse(pid: i32, stat: &str) -> Option<ProcessMembership> {
    const THREADS: usize = 17;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    // A process whose first thread has ended looks dead although its other threads run.
    let dead = matches!(*fields.first()?, "Z" | "X") && number(THREADS).is_none_or(|threads| threads <= 1);
    Some(ProcessMembership { pid, group: number(2)?, session: number(3)?, is_alive: !dead })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn stat_with_parentheses_in_command_is_parsed() {
        let read = parse(9, "9 (a) b (c) S 1 7 5 34816 7 0");
        assert_eq!(read, Some(ProcessMembership { pid: 9, group: 7, session: 5, is_alive: true }));
        assert_eq!(parse(9, "rubbish"), None);
    }

    #[test]
    fn process_is_alive_while_any_thread_runs() {
        let stat = |state: char, threads: u32| {
            format!("9 (x) {state} 1 9 9 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 {threads} 0 1 0 0")
        };
        let is_alive = |stat: String| parse(9, &stat).expect("readable").is_alive;
        assert!(is_alive(stat('S', 1)) && is_alive(stat('Z', 2)));
        assert!(!is_alive(stat('Z', 1)) && !is_alive(stat('X', 0)));
    }

    /// Starts a session of its own. The leader of the test's session may be in another PID
    /// namespace, where it has no number.
    #[test]
    fn session_members_are_found() {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", "echo begun; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("setsid starts");
        let mut said = [0; 6];
        let stdout = child.stdout.as_mut().expect("piped stdout");
        stdout.read_exact(&mut said).expect("the shell has started");
        let leader = Pid::from_child(&child);

        assert_eq!(session_members(leader, false), [leader]);
        assert_eq!(
            session_members(leader, true),
            [],
            "the number of a reaped leader belongs to another session"
        );
        assert!(
            super::command_name(leader).is_some_and(|name| name == "sh")
                && working_directory(leader).is_some()
        );

        drop(child.stdin.take());
        child.wait().expect("the shell exits");
        assert_eq!(session_members(leader, false), []);
    }
}

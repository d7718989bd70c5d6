//! Jobs: what runs in a terminal, read from `/proc`. Must not know terminals.

use std::{fs, path::PathBuf};

use rustix::process::Pid;

/// The command that leads this process group, by name; `None` if it is gone.
pub(super) fn command(group: Pid) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{}/comm", group.as_raw_nonzero())).ok()?;
    Some(name.trim_end().to_owned())
}

/// The folder this process is in.
pub(super) fn folder(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()
}

/// The living processes of a session. Costs a read per process of the system.
///
/// A session's number is not given to a new process while one of its members lives; `leader_gone` says that its leader was reaped,
/// and then a process of that number is a stranger's.
pub(super) fn session(leader: Pid, leader_gone: bool) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let sid = leader.as_raw_nonzero().get();
    let mut members = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((state, session)) = parse(&stat) else { continue };
        if session == sid && !matches!(state, "Z" | "X") {
            if pid == sid && leader_gone {
                return Vec::new();
            }
            members.extend(Pid::from_raw(pid));
        }
    }
    members
}

/// State and session of `/proc/<pid>/stat`. The command before them may hold anything, also parentheses.
fn parse(stat: &str) -> Option<(&str, i32)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((state, session))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_command_with_parentheses_in_its_name_is_read_rightly() {
        assert_eq!(parse("7 (a) b (c) S 1 7 5 34816 7 0"), Some(("S", 5)));
        assert_eq!(parse("rubbish"), None);
    }

    /// Not of the test's own session: its leader may be in another pid namespace, and then it has no number here.
    #[test]
    fn the_members_of_a_session_are_found() {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", "echo begun; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("setsid starts");
        let mut said = [0; 6];
        let stdout = child.stdout.as_mut().expect("its output");
        stdout.read_exact(&mut said).expect("it has begun");
        let leader = Pid::from_child(&child);

        assert_eq!(session(leader, false), [leader]);
        assert_eq!(session(leader, true), [], "a stranger with the number of a leader that is gone");
        assert!(super::command(leader).is_some_and(|name| name == "sh") && folder(leader).is_some());

        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(session(leader, false), []);
    }
}

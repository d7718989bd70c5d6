//! Ending every process of a workspace, whether its agent lives or not.
//!
//! Whose a process is follows from what it can hardly hide: the mark that agent, terminals and commands are started with (their
//! first environment, as the kernel keeps it), the session of a marked leader, and descent from such a process. It is looked
//! again until two looks in a row find none, for a process may start another while we look.
//!
//! What could escape: a process that was started with an empty environment, made a session of its own, *and* lost all its marked
//! ancestors before we look (while the agent lives nothing loses it: it is the subreaper, and ends its descendants itself). Also
//! one whose environment this user may not read (set-uid programs) under the same conditions. A pid namespace or a cgroup would
//! hold them; the local backend does without either because both need rights that a user does not have everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    time::Duration,
};

use podling_core::id::WorkspaceId;
use rustix::process::Signal;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    launch::WORKSPACE_VARIABLE,
    layout::WorkspacePaths,
    process::{HostBoot, ProcStat, ProcessHandle, is_resource_shortage},
    record,
};

/// For an agent to end its processes and itself: its own 5 s of grace, 2 s for those it kills, and a little.
const AGENT_GRACE: Duration = Duration::from_secs(9);
/// For processes without an agent, between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// After KILL only what hangs in the kernel is remaining.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const SCAN_INTERVAL: Duration = Duration::from_millis(20);

/// Why processes are remaining.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error("looking through /proc: {0}")]
    Proc(#[from] io::Error),
    #[error("these outlive even SIGKILL: {}", names(.0))]
    Left(Vec<ProcStat>),
}

/// Asks the agent to end everything, and waits for it for a while.
pub(super) async fn terminate_agent(paths: &WorkspacePaths, host: &HostBoot) {
    let launched = match record::find(paths, host) {
        Ok(Some(Ok(launched))) => launched,
        Ok(_) => return,
        Err(error) => {
            return tracing::warn!(%error, "failed to inspect agent; terminating it with the other processes");
        }
    };
    if let Err(error) = launched.process.signal(Signal::TERM) {
        tracing::warn!(%error, pid = launched.process.pid, "failed to signal agent");
        return;
    }
    // Deprecated because a descriptor may be closed behind its back: this one is owned and closed by nobody else.
    #[allow(deprecated)]
    let Ok(watched) = AsyncFd::with_interest(launched.process.into_pidfd(), Interest::READABLE) else {
        return;
    };
    // One that takes longer is ended with the rest.
    let _ended = timeout(AGENT_GRACE, watched.readable()).await;
}

/// Ends all that is remaining.
pub(super) async fn terminate_all(workspace: &WorkspaceId) -> Result<(), SweepError> {
    let started = Instant::now();
    let mut signalled = BTreeSet::new();
    let mut previous_scan_empty = false;
    loop {
        let remaining = workspace_processes(workspace).await?;
        if remaining.is_empty() {
            if previous_scan_empty {
                return Ok(());
            }
            previous_scan_empty = true;
            continue;
        }
        previous_scan_empty = false;
        let waited = started.elapsed();
        if waited >= GRACE + KILL_LIMIT {
            return Err(SweepError::Left(remaining));
        }
        for stat in &remaining {
            let Ok(Some(process)) = ProcessHandle::find(stat.pid, stat.start_ticks) else { continue };
            let signals: &[Signal] = if waited >= GRACE {
                &[Signal::KILL]
            } else if signalled.insert((stat.pid, stat.start_ticks)) {
                // CONT, for a stopped process hears nothing else.
                &[Signal::HUP, Signal::TERM, Signal::CONT]
            } else {
                &[]
            };
            for signal in signals {
                if let Err(error) = process.signal(*signal) {
                    tracing::warn!(%error, pid = stat.pid, name = stat.name, "failed to signal process");
                }
            }
        }
        sleep(SCAN_INTERVAL).await;
    }
}

/// The living processes of a workspace.
async fn workspace_processes(workspace: &WorkspaceId) -> io::Result<Vec<ProcStat>> {
    let mark = format!("{WORKSPACE_VARIABLE}={workspace}");
    let look = move || {
        let all = ProcStat::all()?;
        let mut marked = BTreeSet::new();
        for stat in &all {
            if has_workspace_variable(stat.pid, mark.as_bytes())? {
                marked.insert(stat.pid);
            }
        }
        Ok(select_members(all, &marked, std::process::id()))
    };
    spawn_blocking(look).await.map_err(io::Error::other)?
}

/// Those among all that the marked ones bring with them; never `own`, the process that asks, nor its ancestors.
fn select_members(all: Vec<ProcStat>, marked: &BTreeSet<u32>, own: u32) -> Vec<ProcStat> {
    let by_pid: BTreeMap<u32, &ProcStat> = all.iter().map(|stat| (stat.pid, stat)).collect();
    let mut spared = BTreeSet::from([1]);
    let mut ancestor = Some(own);
    while let Some(pid) = ancestor.filter(|pid| spared.insert(*pid)) {
        ancestor = by_pid.get(&pid).map(|stat| stat.parent);
    }
    let mut members: BTreeSet<u32> = marked.difference(&spared).copied().collect();
    loop {
        let before = members.len();
        for stat in &all {
            // A session is the workspace's if its leader is; if the leader is gone, if any member is marked. So one marked command
            // in somebody's own shell does not take the shell along.
            let leader_in = members.contains(&stat.session);
            let leader_gone = stat.session != 0 && !by_pid.contains_key(&stat.session);
            let brought = leader_gone
                && all.iter().any(|other| other.session == stat.session && marked.contains(&other.pid));
            if !spared.contains(&stat.pid) && (leader_in || brought || members.contains(&stat.parent)) {
                members.insert(stat.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    all.into_iter().filter(|stat| members.contains(&stat.pid) && !stat.is_zombie).collect()
}

fn has_workspace_variable(pid: u32, mark: &[u8]) -> io::Result<bool> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) => Ok(environ.split(|byte| *byte == 0).any(|variable| variable == mark)),
        Err(error) if is_resource_shortage(&error) => Err(error),
        // It has ended, or is another user's.
        Err(_) => Ok(false),
    }
}

fn names(stats: &[ProcStat]) -> String {
    stats.iter().map(|stat| format!("{} ({})", stat.name, stat.pid)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, parent: u32, session: u32) -> ProcStat {
        ProcStat { pid, name: "x".into(), parent, session, start_ticks: 1, is_zombie: false }
    }

    fn pids(all: Vec<ProcStat>, marked: &[u32]) -> Vec<u32> {
        select_members(all, &marked.iter().copied().collect(), 5).iter().map(|stat| stat.pid).collect()
    }

    #[test]
    fn descendants_and_sessions_of_the_marked_belong_to_it_and_nobody_else() {
        let all = || {
            vec![
                stat(1, 0, 1),
                stat(5, 1, 5),    // the control plane
                stat(10, 5, 10),  // marked: a session leader
                stat(11, 1, 10),  // lost its parent, kept its session
                stat(12, 11, 12), // its child in a session of its own
                stat(20, 1, 20),  // somebody's shell
                stat(21, 20, 20), // marked: a command in that shell
                stat(22, 21, 20), // its child
                stat(30, 1, 29),  // marked, its leader is gone
                stat(31, 1, 29),  // in the same session
            ]
        };
        assert_eq!(pids(all(), &[10]), [10, 11, 12]);
        assert_eq!(pids(all(), &[21]), [21, 22], "the shell is not taken along");
        assert_eq!(pids(all(), &[30]), [30, 31]);
        assert_eq!(pids(all(), &[]), [0; 0]);
    }

    #[test]
    fn the_control_plane_and_what_it_runs_in_are_spared_even_when_marked() {
        let all = vec![stat(1, 0, 1), stat(3, 1, 3), stat(5, 3, 3), stat(6, 5, 6)];
        assert_eq!(pids(all, &[3, 5]), [0; 0]);
    }

    #[test]
    fn one_that_waits_to_be_reaped_is_gone() {
        let all = vec![stat(1, 0, 1), ProcStat { is_zombie: true, ..stat(10, 1, 10) }];
        assert_eq!(pids(all, &[10]), [0; 0]);
    }
}

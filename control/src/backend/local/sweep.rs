//! Finds the agents that an earlier control plane started, and ends every process of a workspace,
//! with or without its agent. An agent that cannot be inspected is reported as unknown and does not
//! delay the others.
//!
//! Three signs assign a process to a workspace: the marker variable in its initial environment, the
//! session of a marked leader, and descent from such a process. A process may start another one
//! during a scan, so the sweep ends only after two scans in a row have found no process.
//!
//! A process escapes only if it was started with an empty environment, leads its own session, *and*
//! lost all marked ancestors before the scan. That cannot happen while the agent runs, because the
//! agent is the subreaper and ends its descendants itself. A process whose environment cannot be
//! read (a set-uid program) can escape under the same conditions. A pid namespace or a cgroup would
//! prevent that, but both need permissions that users do not have everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    time::Duration,
};

use podling_core::id::WorkspaceId;
use podling_proto::procfs::ProcStat;
use rustix::process::Signal;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    DataLayout, WorkspacePaths,
    launch::WORKSPACE_VARIABLE,
    process::{self, FoundAgent, HostBoot, ProcessHandle, all_processes, is_resource_shortage},
};

/// Time that an agent has to end after TERM: its own grace period of 5 s, 2 s for the processes
/// that it kills, and 2 s of slack.
const AGENT_GRACE: Duration = Duration::from_secs(9);
/// Time between TERM and KILL for the processes that remain after [`terminate_agent`].
const GRACE: Duration = Duration::from_secs(2);
/// Time to wait after KILL. Only a process that is stuck in the kernel takes longer to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two scans.
const SCAN_INTERVAL: Duration = Duration::from_millis(20);

/// The workspaces that a scan covers.
#[derive(Debug, Clone)]
pub(crate) enum AgentScan {
    /// All workspaces in the data directory.
    All,
    /// Workspaces whose agent could not be inspected before.
    Retry(BTreeSet<WorkspaceId>),
}

/// The result of one scan.
#[derive(Debug, Default)]
pub(crate) struct ScanResult {
    /// The agent that was started last, for each workspace that has had an agent.
    pub(crate) found: Vec<(WorkspaceId, FoundAgent)>,
    /// Workspaces whose agent could not be inspected.
    pub(crate) unknown: BTreeSet<WorkspaceId>,
}

impl AgentScan {
    /// Runs the scan. Blocks. Fails if the directory of workspaces cannot be read.
    pub(crate) fn run(self, layout: &DataLayout, host: &HostBoot) -> io::Result<ScanResult> {
        let (ids, is_first) = match self {
            Self::All => (layout.ids()?, true),
            Self::Retry(ids) => (ids.into_iter().collect(), false),
        };
        let mut result = ScanResult::default();
        for id in ids {
            match process::find(&layout.workspace(&id), host) {
                Ok(found) => result.found.extend(found.map(|found| (id, found))),
                Err(error) => {
                    // Logged by the first scan only, because a retry follows every second.
                    if is_first {
                        tracing::error!(
                            workspace = %id,
                            %error,
                            "failed to inspect agent; its workspace waits until a scan succeeds"
                        );
                    }
                    result.unknown.insert(id);
                }
            }
        }
        Ok(result)
    }
}

/// Why processes of the workspace may remain.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error("cannot read /proc: {0}")]
    Proc(#[from] io::Error),
    #[error("these processes still run after SIGKILL: {}", names(.0))]
    Left(Vec<ProcStat>),
}

/// Sends TERM to the agent and waits until it has ended, at most [`AGENT_GRACE`]. Logs errors
/// instead of returning them, because [`terminate_all`] follows.
pub(super) async fn terminate_agent(paths: &WorkspacePaths, host: &HostBoot) {
    let agent = match process::find(paths, host) {
        Ok(Some(Ok(agent))) => agent,
        Ok(_) => return,
        Err(error) => {
            return tracing::warn!(%error, "failed to inspect agent; terminating it with the other processes");
        }
    };
    if let Err(error) = agent.process.signal(Signal::TERM) {
        tracing::warn!(%error, pid = agent.process.pid, "failed to signal agent");
        return;
    }
    // Deprecated because other code may close the descriptor. This function owns it.
    #[allow(deprecated)]
    let Ok(watched) = AsyncFd::with_interest(agent.process.into_pidfd(), Interest::READABLE) else {
        return;
    };
    // An agent that takes longer is ended by `terminate_all`.
    let _ended = timeout(AGENT_GRACE, watched.readable()).await;
}

/// Ends all remaining processes of the workspace: TERM first, and KILL after [`GRACE`]. Fails if
/// processes remain [`KILL_LIMIT`] later.
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
                // A stopped process handles TERM only after CONT.
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

/// Returns the running processes of a workspace.
async fn workspace_processes(workspace: &WorkspaceId) -> io::Result<Vec<ProcStat>> {
    let mark = format!("{WORKSPACE_VARIABLE}={workspace}");
    let look = move || {
        let all = all_processes()?;
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

/// Selects the marked processes and all processes that belong to them by session or descent. Never
/// selects the calling process `own` or its ancestors.
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
            // A session belongs to the workspace if its leader does. If the leader has ended, one
            // marked member is enough. A marked command in a user's own shell therefore does not
            // end that shell.
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
    all.into_iter().filter(|stat| members.contains(&stat.pid) && !stat.has_ended).collect()
}

fn has_workspace_variable(pid: u32, mark: &[u8]) -> io::Result<bool> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) => Ok(environ.split(|byte| *byte == 0).any(|variable| variable == mark)),
        Err(error) if is_resource_shortage(&error) => Err(error),
        // The process has ended, or belongs to another user.
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
        ProcStat { pid, parent, session, ..ProcStat::default() }
    }

    fn pids(all: Vec<ProcStat>, marked: &[u32]) -> Vec<u32> {
        select_members(all, &marked.iter().copied().collect(), 5).iter().map(|stat| stat.pid).collect()
    }

    #[test]
    fn marked_processes_bring_descendants_and_sessions_only() {
        let all = || {
            vec![
                stat(1, 0, 1),
                stat(5, 1, 5),    // the control plane
                stat(10, 5, 10),  // marked: a session leader
                stat(11, 1, 10),  // lost its parent, kept its session
                stat(12, 11, 12), // its child in a session of its own
                stat(20, 1, 20),  // a user's own shell
                stat(21, 20, 20), // marked: a command in that shell
                stat(22, 21, 20), // its child
                stat(30, 1, 29),  // marked, its leader is gone
                stat(31, 1, 29),  // in the same session
            ]
        };
        assert_eq!(pids(all(), &[10]), [10, 11, 12]);
        assert_eq!(pids(all(), &[21]), [21, 22], "the shell is not selected");
        assert_eq!(pids(all(), &[30]), [30, 31]);
        assert_eq!(pids(all(), &[]), [0; 0]);
    }

    #[test]
    fn control_plane_and_its_ancestors_are_never_selected() {
        let all = vec![stat(1, 0, 1), stat(3, 1, 3), stat(5, 3, 3), stat(6, 5, 6)];
        assert_eq!(pids(all, &[3, 5]), [0; 0]);
    }

    #[test]
    fn zombies_are_not_selected() {
        let all = vec![stat(1, 0, 1), ProcStat { has_ended: true, ..stat(10, 1, 10) }];
        assert_eq!(pids(all, &[10]), [0; 0]);
    }
}

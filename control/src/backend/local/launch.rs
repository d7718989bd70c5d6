//! Starting an agent.

use std::{
    fs, io,
    path::Path,
    process::{Child, Command, Stdio},
};

use podling_core::workspace::Epoch;

use super::{
    LocalConfig,
    layout::{DataLayout, WorkspacePaths, write},
    process::{HostBoot, ProcStat, ProcessHandle},
    record::{AgentRecord, RunningAgent, find},
    reviewer::credential,
};
use crate::backend::StartPlan;

/// All that an agent gets of our environment: where programs are, language, time zone, and how loudly to log. Not HOME, not USER,
/// no session bus, no agent sockets, no secrets: what a workspace's programs see comes with its claim.
const INHERITED_VARIABLES: &[&str] = &["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PODLING_AGENT_LOG"];
/// Marks a workspace's processes: how they are found when their agent is gone.
pub(super) const WORKSPACE_VARIABLE: &str = "PODLING_WORKSPACE_ID";

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("its epoch {0} was started before and has ended")]
    UsedUp(Epoch),
    #[error("the agent of epoch {0} still lives")]
    AnotherLives(Epoch),
    #[error("the command that starts agents is empty")]
    NoCommand,
    #[error("{program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("it ended at once; its log says why")]
    EndedAtOnce,
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

/// Starts the agent unless it runs.
pub(super) fn ensure(
    config: &LocalConfig,
    layout: &DataLayout,
    paths: &WorkspacePaths,
    host: &HostBoot,
    plan: &StartPlan,
) -> Result<RunningAgent, LaunchError> {
    let io = |operation| move |source| LaunchError::Io { operation, source };
    match find(paths, host).map_err(io("looking for the one before"))? {
        Some(Ok(launched)) if launched.epoch == plan.epoch => return Ok(launched),
        Some(Ok(launched)) => return Err(LaunchError::AnotherLives(launched.epoch)),
        Some(Err(record)) if record.epoch == plan.epoch => return Err(LaunchError::UsedUp(plan.epoch)),
        Some(Err(_)) | None => {}
    }
    paths.make().map_err(io("making its folders"))?;
    // What the last one left would be taken for this one's.
    for stale in [&paths.socket, &paths.exit_record, &paths.own_record] {
        match fs::remove_file(stale) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LaunchError::Io {
                    operation: "clearing away what an earlier agent left",
                    source,
                });
            }
            _ => {}
        }
    }
    let credential = credential(&plan.workspace, &plan.secret);
    write(&paths.credential, credential.as_bytes()).map_err(io("writing its credential"))?;
    let log = paths.open_log().map_err(io("opening its log"))?;
    let (program, arguments) = config.agent_command.split_first().ok_or(LaunchError::NoCommand)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--own-session")
        .arg("--listen")
        .arg(unix(&paths.socket))
        .arg("--control")
        .arg(unix(&layout.control_socket))
        .arg("--control-ca")
        .arg(&config.control_ca)
        .arg("--credential-file")
        .arg(&paths.credential)
        .arg("--root")
        .arg(&paths.home)
        .arg("--state")
        .arg(&paths.state)
        .env_clear()
        .envs(INHERITED_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env(WORKSPACE_VARIABLE, plan.workspace.as_str())
        // Not ours, which may be unmounted or removed one day.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(io("opening its log"))?)
        .stderr(log);
    let child = command.spawn().map_err(|source| LaunchError::Spawn { program: program.clone(), source })?;
    config.agent_files.give_back(&child);
    let child = KillOnDrop(Some(child));
    let pid = child.pid();
    let start_ticks = ProcStat::of(pid).map_err(|_| LaunchError::EndedAtOnce)?.start_ticks;
    let record = AgentRecord { epoch: plan.epoch, pid, start_ticks, machine_boot: host.boot_id.clone() };
    let process = ProcessHandle::find(pid, start_ticks)
        .map_err(io("holding on to it"))?
        .ok_or(LaunchError::EndedAtOnce)?;
    let json = serde_json::to_vec(&record)
        .map_err(|e| LaunchError::Io { operation: "noting it", source: io::Error::other(e) })?;
    // If it cannot be noted it cannot be adopted.
    write(&paths.record, &json).map_err(io("noting it"))?;
    child.detach();
    Ok(RunningAgent { epoch: plan.epoch, process, boot_id: None })
}

/// A child that nobody would reap: if its start fails half-way it ends here, and what it has started is swept away by its mark.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// From here on its watcher reaps it, by its pidfd.
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself. Waiting is short: nothing outlives SIGKILL but what hangs in the kernel.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

fn unix(path: &Path) -> std::ffi::OsString {
    let mut address = std::ffi::OsString::from("unix:");
    address.push(path);
    address
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, sync::Arc};

    use podling_core::id::WorkspaceId;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{open_files::OpenFiles, samples::spec};

    /// Starts a program of this name.
    fn start(data: &Path, name: &str) -> Result<RunningAgent, LaunchError> {
        let (layout, host) = (DataLayout::make(data).unwrap(), HostBoot::this().unwrap());
        let workspace = WorkspaceId::from_bits(1);
        let paths = layout.of(&workspace);
        paths.make().unwrap();
        let program = data.join(name);
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let config = LocalConfig {
            data: data.to_owned(),
            // The agent's arguments are the shell's own.
            agent_command: ["/bin/sh".into(), "-c".into(), format!("exec {} 1000", program.display())].into(),
            control_ca: data.join("ca.pem"),
            agent_files: OpenFiles::limit().with_soft(300),
        };
        let spec = Arc::new(spec(1, "demo"));
        let (resources, cancellation) = (spec.resources, CancellationToken::new());
        let plan = StartPlan { workspace, epoch: 1, secret: "secret".into(), spec, resources, cancellation };
        ensure(&config, &layout, &paths, &host, &plan)
    }

    #[test]
    fn an_agent_may_have_as_many_files_open_as_before_we_raised_our_limit() {
        let data = tempfile::tempdir().unwrap();
        let launched = start(data.path(), "limited").unwrap();
        let limits = fs::read_to_string(format!("/proc/{}/limits", launched.process.pid)).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        launched.process.signal(rustix::process::Signal::KILL).unwrap();
        let ended = rustix::process::waitid(
            rustix::process::WaitId::PidFd(launched.process.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        assert!(ended.unwrap().is_some());
        assert_eq!(files.split_whitespace().nth(3), Some("300"), "{files}");
    }

    #[test]
    fn a_start_that_fails_half_way_leaves_no_process_not_even_a_dead_one() {
        let data = tempfile::tempdir().unwrap();
        let paths = DataLayout::make(data.path()).unwrap().of(&WorkspaceId::from_bits(1));
        // Where the record is written before it takes its name.
        fs::create_dir_all(paths.record.with_extension("new")).unwrap();
        let failed = start(data.path(), "half-way");
        assert!(matches!(failed, Err(LaunchError::Io { operation: "noting it", .. })), "{failed:?}");
        let left = ProcStat::all().unwrap().into_iter().filter(|stat| {
            let arguments = fs::read(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            // A dead one has no arguments any more.
            arguments.contains(&data.path().display().to_string()) || stat.name == "half-way"
        });
        let left: Vec<_> = left.collect();
        assert_eq!(left, []);
    }
}

//! Starts the agent process of a workspace and records it in `run/agent.json`. Waits until an agent
//! process has ended, and describes how it ended.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use podling_core::workspace::Epoch;
use podling_proto::procfs::ProcStat;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Deserialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{
    DataLayout, LocalConfig, WorkspacePaths, credential,
    process::{AgentRecord, HostBoot, ProcessHandle, RunningAgent, find, read, write},
};
use crate::backend::StartPlan;

/// The only variables that an agent inherits: search path, language, time zone and log level. HOME,
/// USER, session buses, agent sockets and secrets are not inherited. The claim carries the
/// environment of the workspace's programs.
const INHERITED_VARIABLES: &[&str] = &["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PODLING_AGENT_LOG"];
/// Environment variable with the workspace's id. All processes of the workspace inherit it, so that
/// `sweep` finds them without their agent.
pub(super) const WORKSPACE_VARIABLE: &str = "PODLING_WORKSPACE_ID";
/// Pause before an agent is watched again after an error, such as a lack of memory.
const WATCH_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why the agent could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("the agent of epoch {0} has already run and ended; it is not started twice")]
    UsedUp(Epoch),
    #[error("the agent of epoch {0} is still running")]
    AnotherRunning(Epoch),
    #[error(
        "the directory {0} with the files of the workspace does not exist; put it back, restore an archive \
         under a new name, or delete the workspace with podling rm --discard"
    )]
    HomeMissing(String),
    #[error("the agent command is empty; set it with --agent-command")]
    NoCommand,
    #[error("cannot run {program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("the agent ended at once; see its log")]
    EndedAtOnce,
    #[error("cannot {operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

/// Returns the running agent of this epoch. Starts the agent if none of the workspace runs. Creates
/// the workspace's directories, unless files are expected and the home directory is missing. Blocks.
pub(super) fn ensure(
    config: &LocalConfig,
    layout: &DataLayout,
    paths: &WorkspacePaths,
    host: &HostBoot,
    plan: &StartPlan,
) -> Result<RunningAgent, LaunchError> {
    let io = |operation| move |source| LaunchError::Io { operation, source };
    match find(paths, host).map_err(io("find out whether the previous agent runs"))? {
        Some(Ok(agent)) if agent.epoch == plan.epoch => return Ok(agent),
        Some(Ok(agent)) => return Err(LaunchError::AnotherRunning(agent.epoch)),
        Some(Err(record)) if record.epoch == plan.epoch => return Err(LaunchError::UsedUp(plan.epoch)),
        Some(Err(_)) | None => {}
    }
    let has_home = || paths.home.try_exists().map_err(io("find out whether the home directory exists"));
    if plan.expects_files && !has_home()? {
        return Err(LaunchError::HomeMissing(paths.home.display().to_string()));
    }
    paths.create().map_err(io("create the workspace's directories"))?;
    // Left in place, files of the previous agent would be mistaken for files of this agent.
    for stale in [&paths.socket, &paths.exit_record, &paths.self_record] {
        match fs::remove_file(stale) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LaunchError::Io { operation: "remove files of the previous agent", source });
            }
            _ => {}
        }
    }
    let credential = credential(&plan.workspace, &plan.secret);
    write(&paths.credential, credential.as_bytes()).map_err(io("write the agent's credential"))?;
    let log = paths.open_log().map_err(io("open the agent's log"))?;
    let (program, arguments) = config.agent_command.split_first().ok_or(LaunchError::NoCommand)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--own-session")
        .args([OsStr::new("--listen"), &unix_address(&paths.socket)])
        .args([OsStr::new("--control"), &unix_address(&layout.control_socket)])
        .args([OsStr::new("--control-ca"), config.control_ca.as_os_str()])
        .args([OsStr::new("--credential-file"), paths.credential.as_os_str()])
        .args([OsStr::new("--root"), paths.home.as_os_str()])
        .args([OsStr::new("--state"), paths.state.as_os_str()])
        .env_clear()
        .envs(INHERITED_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env(WORKSPACE_VARIABLE, plan.workspace.as_str())
        // The control plane's working directory may be unmounted or removed while the agent runs.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(io("open the agent's log"))?)
        .stderr(log);
    let child = command.spawn().map_err(|source| LaunchError::Spawn { program: program.clone(), source })?;
    config.agent_files.restore_for(&child);
    let child = KillOnDrop(Some(child));
    let pid = child.pid();
    let start_ticks = ProcStat::read(pid).map_err(|_| LaunchError::EndedAtOnce)?.start_ticks;
    let record = AgentRecord { epoch: plan.epoch, pid, start_ticks, machine_boot: host.boot_id.clone() };
    let process = ProcessHandle::find(pid, start_ticks)
        .map_err(io("open a pidfd of the agent"))?
        .ok_or(LaunchError::EndedAtOnce)?;
    let json = serde_json::to_vec(&record).map_err(|e| LaunchError::Io {
        operation: "write the agent's record",
        source: io::Error::other(e),
    })?;
    // Written before the child is detached, because an agent without a record cannot be adopted.
    write(&paths.record, &json).map_err(io("write the agent's record"))?;
    child.detach();
    Ok(RunningAgent { epoch: plan.epoch, process, boot_id: None })
}

/// Kills and reaps the child on drop, unless it was detached. `sweep` ends the child's descendants,
/// which it finds by [`WORKSPACE_VARIABLE`].
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// Leaves the child running. From now on the watcher reaps it through its pidfd.
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // The kill fails if the child has ended by itself. The wait is short, because only a
            // process that is stuck in the kernel outlives SIGKILL.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

fn unix_address(path: &Path) -> OsString {
    let mut address = OsString::from("unix:");
    address.push(path);
    address
}

/// The record that an agent writes when it exits by itself.
#[derive(Deserialize)]
struct AgentExitRecord {
    reason: String,
    code: u8,
}

/// Waits until the agent process has ended, and reaps it if it is a child. Returns how it ended, as
/// English text.
pub(super) async fn wait_end(process: ProcessHandle, paths: &WorkspacePaths) -> String {
    let mut pidfd = process.into_pidfd();
    let pidfd = loop {
        // Deprecated because other code may close the descriptor while it is registered. This
        // function owns it.
        #[allow(deprecated)]
        let watched = AsyncFd::try_with_interest(pidfd, Interest::READABLE);
        let (kept, error) = match watched {
            Ok(watched) => match watched.readable().await.map(|_| ()) {
                Ok(()) => break watched.into_inner(),
                Err(error) => (watched.into_inner(), error),
            },
            Err(error) => error.into_parts(),
        };
        // This error does not mean that the agent has ended.
        tracing::warn!(%error, "failed to watch agent; retrying");
        pidfd = kept;
        sleep(WATCH_RETRY_DELAY).await;
    };
    // An adopted agent is not a child, so only its exit record says how it ended.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    describe_end(status.ok().flatten().as_ref(), paths)
}

/// Describes how an agent ended, as English text. `status` is the wait status; `None` for an agent
/// that is not a child.
pub(super) fn describe_end(status: Option<&WaitIdStatus>, paths: &WorkspacePaths) -> String {
    // A record that cannot be read counts as missing.
    let record: Option<AgentExitRecord> = read(&paths.exit_record).ok().flatten();
    let signal = status.and_then(|status| status.terminating_signal());
    let code = status.and_then(WaitIdStatus::exit_status);
    match (signal, code, record) {
        (Some(signal), ..) => format!("killed by {}", signal_name(signal)),
        (None, Some(code), Some(record)) => format!("{} (exit code {code})", record.reason),
        (None, None, Some(record)) => format!("{} (exit code {})", record.reason, record.code),
        (None, Some(code), None) => format!("exit code {code}; see its log"),
        (None, None, None) => "killed".into(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, sync::Arc};

    use podling_core::id::WorkspaceId;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        backend::{StartPurpose, local::process::all_processes},
        open_files::OpenFiles,
        samples::spec,
    };

    /// Starts `sleep 1000` as the agent, under this program name. The directories exist.
    fn start(data: &Path, name: &str) -> Result<RunningAgent, LaunchError> {
        let layout = DataLayout::create(data).unwrap();
        layout.workspace(&WorkspaceId::from_bits(1)).create().unwrap();
        start_expecting(data, name, true)
    }

    fn start_expecting(data: &Path, name: &str, expects_files: bool) -> Result<RunningAgent, LaunchError> {
        let (layout, host) = (DataLayout::create(data).unwrap(), HostBoot::current().unwrap());
        let workspace = WorkspaceId::from_bits(1);
        let paths = layout.workspace(&workspace);
        let program = data.join(name);
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let config = LocalConfig {
            data: data.to_owned(),
            // The shell ignores the arguments that are meant for an agent.
            agent_command: ["/bin/sh".into(), "-c".into(), format!("exec {} 1000", program.display())].into(),
            control_ca: data.join("ca.pem"),
            agent_files: OpenFiles::limit().with_soft(300),
        };
        let spec = Arc::new(spec(1, "demo"));
        let (resources, cancellation) = (spec.resources, CancellationToken::new());
        let (secret, purpose) = ("secret".into(), StartPurpose::Serve);
        let epoch = 1;
        let plan =
            StartPlan { workspace, epoch, purpose, expects_files, secret, spec, resources, cancellation };
        ensure(&config, &layout, &paths, &host, &plan)
    }

    #[test]
    fn start_that_expects_files_fails_without_a_home() {
        let data = tempfile::tempdir().unwrap();
        let missing = start_expecting(data.path(), "no-home", true).err().unwrap();
        let home = data.path().canonicalize().unwrap().join("workspaces");
        assert!(missing.to_string().contains(&home.display().to_string()), "{missing}");
        assert!(missing.to_string().contains("podling rm --discard"), "{missing}");
        assert_eq!(fs::read_dir(home).unwrap().count(), 0, "nothing hides that the files are missing");
        let agent = start_expecting(data.path(), "first", false).unwrap();
        agent.process.signal(rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn agent_gets_the_original_open_file_limit() {
        let data = tempfile::tempdir().unwrap();
        let agent = start(data.path(), "limited").unwrap();
        let limits = fs::read_to_string(format!("/proc/{}/limits", agent.process.pid)).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        agent.process.signal(rustix::process::Signal::KILL).unwrap();
        let ended = rustix::process::waitid(
            rustix::process::WaitId::PidFd(agent.process.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        assert!(ended.unwrap().is_some());
        assert_eq!(files.split_whitespace().nth(3), Some("300"), "{files}");
    }

    #[test]
    fn failed_start_leaves_no_process_and_no_zombie() {
        let data = tempfile::tempdir().unwrap();
        let paths = DataLayout::create(data.path()).unwrap().workspace(&WorkspaceId::from_bits(1));
        // A directory in place of the record blocks its replacement.
        fs::create_dir_all(&paths.record).unwrap();
        let failed = start(data.path(), "half-way");
        assert!(
            matches!(failed, Err(LaunchError::Io { operation: "write the agent's record", .. })),
            "{failed:?}"
        );
        let left = all_processes().unwrap().into_iter().filter(|stat| {
            let arguments = fs::read(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            // The arguments of a zombie are empty, but its name remains.
            arguments.contains(&data.path().display().to_string()) || stat.name == "half-way"
        });
        let left: Vec<_> = left.collect();
        assert_eq!(left, []);
    }
}

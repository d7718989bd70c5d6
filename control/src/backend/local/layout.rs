//! Paths of the local backend in the data directory. ARCHITECTURE.md shows them as a tree.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use podling_core::id::WorkspaceId;

/// Size of an agent's log, in bytes, from which the next start of the agent rotates it. One older
/// log is retained.
const LOG_BYTES: u64 = 1024 * 1024;

/// Paths below the data directory that all workspaces share.
#[derive(Debug, Clone)]
pub(super) struct DataLayout {
    pub(super) workspaces: PathBuf,
    pub(super) control_socket: PathBuf,
}

/// Directories and files of one workspace.
#[derive(Debug, Clone)]
pub(super) struct WorkspacePaths {
    root: PathBuf,
    /// The user's HOME, which contains the files of the workspace.
    pub(super) home: PathBuf,
    /// Directory of the agent's own files.
    pub(super) state: PathBuf,
    run: PathBuf,
    /// Unix socket that the agent listens on.
    pub(super) socket: PathBuf,
    /// Credential with which the agent authenticates to the control plane.
    pub(super) credential: PathBuf,
    /// Record of the agent process that the control plane started. The control plane writes it.
    pub(super) record: PathBuf,
    /// Process and boot id of the agent. The agent writes it.
    pub(super) self_record: PathBuf,
    /// Reason and exit code of an agent that ended by itself. The agent writes it.
    pub(super) exit_record: PathBuf,
    log: PathBuf,
}

/// Returns the path of the unix socket on which the control plane listens for agents.
pub fn control_socket(data: &Path) -> PathBuf {
    data.join("run/control.sock")
}

impl DataLayout {
    pub(super) fn create(data: &Path) -> io::Result<Self> {
        // Agents receive these paths. They have another working directory, so the paths must be
        // absolute.
        private_dir(data)?;
        let data = data.canonicalize()?;
        let layout = Self { workspaces: data.join("workspaces"), control_socket: control_socket(&data) };
        private_dir(&layout.workspaces)?;
        Ok(layout)
    }

    pub(super) fn workspace(&self, id: &WorkspaceId) -> WorkspacePaths {
        let root = self.workspaces.join(id.as_str());
        let (state, run) = (root.join("state"), root.join("run"));
        WorkspacePaths {
            home: root.join("home"),
            socket: run.join("agent.sock"),
            credential: run.join("credential"),
            record: run.join("agent.json"),
            self_record: state.join("agent.json"),
            exit_record: state.join("exit.json"),
            log: root.join("agent.log"),
            state,
            run,
            root,
        }
    }

    /// Returns the ids of all workspaces that have a directory.
    pub(super) fn ids(&self) -> io::Result<Vec<WorkspaceId>> {
        let names = fs::read_dir(&self.workspaces)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}

impl WorkspacePaths {
    pub(super) fn create(&self) -> io::Result<()> {
        [&self.root, &self.home, &self.state, &self.run].into_iter().try_for_each(|path| private_dir(path))
    }

    /// Opens the log for appending. Rotates the log first if it has at least [`LOG_BYTES`].
    pub(super) fn open_log(&self) -> io::Result<fs::File> {
        if fs::symlink_metadata(&self.log).is_ok_and(|meta| meta.len() >= LOG_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)
    }
}

/// Replaces a file atomically, with mode 0600. The file is not synced to disk: its content
/// describes a process, which does not outlive a crash of the machine either.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    io::Write::write_all(&mut file, content)?;
    fs::rename(&beside, path)
}

fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

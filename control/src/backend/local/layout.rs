//! Where the local backend keeps what: the drawing is in ARCHITECTURE.md.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use podling_core::id::WorkspaceId;

/// From this size on a log is put aside when an agent starts; one older log is kept.
const LOG_BYTES: u64 = 1024 * 1024;

/// The data dir.
#[derive(Debug, Clone)]
pub(super) struct DataLayout {
    pub(super) workspaces: PathBuf,
    pub(super) control_socket: PathBuf,
}

/// The dirs and files of one workspace.
#[derive(Debug, Clone)]
pub(super) struct WorkspacePaths {
    root: PathBuf,
    /// The user's HOME.
    pub(super) home: PathBuf,
    /// The agent's own.
    pub(super) state: PathBuf,
    run: PathBuf,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// What it proves itself with.
    pub(super) credential: PathBuf,
    /// What we noted of the agent we started.
    pub(super) record: PathBuf,
    /// What it noted of itself.
    pub(super) own_record: PathBuf,
    /// What it left at its end.
    pub(super) exit_record: PathBuf,
    log: PathBuf,
}

/// Where agents dial.
pub fn control_socket(data: &Path) -> PathBuf {
    data.join("run/control.sock")
}

impl DataLayout {
    pub(super) fn make(data: &Path) -> io::Result<Self> {
        // Agents are told these paths and live elsewhere.
        private_dir(data)?;
        let data = data.canonicalize()?;
        let layout = Self { workspaces: data.join("workspaces"), control_socket: control_socket(&data) };
        private_dir(&layout.workspaces)?;
        Ok(layout)
    }

    pub(super) fn of(&self, id: &WorkspaceId) -> WorkspacePaths {
        let root = self.workspaces.join(id.as_str());
        let (state, run) = (root.join("state"), root.join("run"));
        WorkspacePaths {
            home: root.join("home"),
            socket: run.join("agent.sock"),
            credential: run.join("credential"),
            record: run.join("agent.json"),
            own_record: state.join("agent.json"),
            exit_record: state.join("exit.json"),
            log: root.join("agent.log"),
            state,
            run,
            root,
        }
    }

    /// Those that have a dir.
    pub(super) fn ids(&self) -> io::Result<Vec<WorkspaceId>> {
        let names = fs::read_dir(&self.workspaces)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}

impl WorkspacePaths {
    pub(super) fn make(&self) -> io::Result<()> {
        [&self.root, &self.home, &self.state, &self.run].into_iter().try_for_each(|path| private_dir(path))
    }

    /// The log, to be added to; a long one is put aside first.
    pub(super) fn open_log(&self) -> io::Result<fs::File> {
        if fs::symlink_metadata(&self.log).is_ok_and(|meta| meta.len() >= LOG_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)
    }
}

/// Writes a file whole, for its owner alone. Not synced to disk: it speaks of a process, which a crash of the host ends too.
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

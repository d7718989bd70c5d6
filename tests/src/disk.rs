//! Small or read-only disks, and a launcher under which root has to obey file permissions.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Arguments of setpriv that drop the capabilities with which root bypasses file permissions.
const OVERRIDE: &str = "-dac_override,-dac_read_search";

/// A small tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a tmpfs of this size, in the syntax of `mount` ("24m").
    ///
    /// # Errors
    ///
    /// Returns why the machine cannot mount it.
    pub fn new(size: &str) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("podling-disk-").tempdir().expect("a directory");
        let at = dir.path().join("data");
        std::fs::create_dir(&at).expect("a directory");
        let options = format!("size={size},mode=0700");
        mount(&["-t", "tmpfs", "-o", &options, "podling"], &at)?;
        Ok(Self { path: at, _dir: dir })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Remounts the disk read-only or writable.
    pub fn set_read_only(&self, yes: bool) {
        mount(&["-o", if yes { "remount,ro" } else { "remount,rw" }], &self.path).expect("remount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

fn mount(args: &[&str], at: &Path) -> Result<(), String> {
    match Command::new("mount").args(args).arg(at).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("mount: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("mount: {error}")),
    }
}

/// Returns a command prefix under which a program obeys file permissions, even if the tests run as
/// root. Empty if they do not run as root.
///
/// # Errors
///
/// Returns why the machine cannot drop the capabilities.
pub fn launcher_without_dac_override() -> Result<Vec<String>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let launcher = ["setpriv", "--bounding-set", OVERRIDE, "--inh-caps", OVERRIDE];
    match Command::new(launcher[0]).args(&launcher[1..]).arg("true").output() {
        Ok(output) if output.status.success() => Ok(launcher.map(str::to_owned).to_vec()),
        Ok(output) => Err(format!("setpriv: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("setpriv: {error}")),
    }
}

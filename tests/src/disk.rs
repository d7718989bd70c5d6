//! Disks of a story's own that are small, full or cannot be written to, and users to whom permissions mean something.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What lets root pass by permissions.
const OVERRIDE: &str = "-dac_override,-dac_read_search";

/// A small file system, gone with the story.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Of a size as `mount` takes it ("24m"); else why there can be none.
    pub fn new(size: &str) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("podling-disk-").tempdir().expect("a folder");
        let at = folder.path().join("data");
        std::fs::create_dir(&at).expect("a folder");
        let options = format!("size={size},mode=0700");
        mount(&["-t", "tmpfs", "-o", &options, "podling"], &at)?;
        Ok(Self { at, _folder: folder })
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Lets nobody write to it any more, or again.
    pub fn read_only(&self, yes: bool) {
        mount(&["-o", if yes { "remount,ro" } else { "remount,rw" }], &self.at).expect("it can be remounted");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

fn mount(args: &[&str], at: &Path) -> Result<(), String> {
    match Command::new("mount").args(args).arg(at).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("mount: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("mount: {error}")),
    }
}

/// What a program is started through so that permissions mean something to it, also where the tests run as root; else why there is
/// no such way.
pub fn launcher_without_dac_override() -> Result<Vec<String>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let through = ["setpriv", "--bounding-set", OVERRIDE, "--inh-caps", OVERRIDE];
    match Command::new(through[0]).args(&through[1..]).arg("true").output() {
        Ok(output) if output.status.success() => Ok(through.map(str::to_owned).to_vec()),
        Ok(output) => Err(format!("setpriv: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("setpriv: {error}")),
    }
}

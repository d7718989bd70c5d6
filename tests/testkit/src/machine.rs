//! What a test needs of its machine: the binaries under test, tests that cannot run here, small or
//! read-only disks, and a launcher under which root has to obey file permissions.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Environment variable with the path of the file in which `cargo xtask` collects skipped tests.
const SKIPPED_TESTS: &str = "PODLING_SKIPPED_TESTS";
/// Arguments of setpriv that drop the capabilities with which root bypasses file permissions.
const OVERRIDE: &str = "-dac_override,-dac_read_search";

/// A small tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// Returns the path of `podling`, `podling-agent` or `podling-control`. Panics if it is not built.
pub fn program(name: &str) -> PathBuf {
    let mut dir = env::current_exe().expect("path of this program");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask stories`", path.display());
    path
}

/// Reports that `what` is skipped, and why. Panics in CI, where no test may be skipped.
pub fn report_skipped(what: &str, why: &str) {
    let line = format!("{what}: {why}");
    eprintln!("skipped: {line}");
    assert!(!env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "skipped in CI: {line}");
    let Some(path) = env::var_os(SKIPPED_TESTS) else { return };
    let written = OpenOptions::new().append(true).open(path).and_then(|mut file| writeln!(file, "{line}"));
    written.expect("append to the list of skipped tests");
}

impl SmallDisk {
    /// Mounts a tmpfs of this size, in the syntax of `mount` ("24m"). If the machine cannot mount it,
    /// reports that `what` is skipped and returns `None`.
    pub fn new_or_skip(size: &str, what: &str) -> Option<Self> {
        Self::new(size).map_err(|why| report_skipped(what, &why)).ok()
    }

    fn new(size: &str) -> Result<Self, String> {
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
    succeeded("mount", Command::new("mount").args(args).arg(at).output())
}

/// Returns a command prefix under which a program obeys file permissions, even if the tests run as
/// root. Empty if they do not run as root. If the machine cannot drop the capabilities, reports that
/// `what` is skipped and returns `None`.
pub fn launcher_without_dac_override(what: &str) -> Option<Vec<String>> {
    if !rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let launcher = ["setpriv", "--bounding-set", OVERRIDE, "--inh-caps", OVERRIDE];
    let output = Command::new(launcher[0]).args(&launcher[1..]).arg("true").output();
    match succeeded("setpriv", output) {
        Ok(()) => Some(launcher.map(str::to_owned).to_vec()),
        Err(why) => {
            report_skipped(what, &why);
            None
        }
    }
}

fn succeeded(program: &str, output: io::Result<Output>) -> Result<(), String> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

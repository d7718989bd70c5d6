//! `podling-agent install DIR` copies the agent into a directory, from where a container of another
//! image runs it. An init container runs this subcommand if the workspace's image has no agent.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use podling_proto::log::LogFormat;

use crate::entry::{PROGRAM, early_format};

/// File name of the copy.
const NAME: &str = "podling-agent";
/// Executable by every user, because the user of the other image is not known.
const MODE: u32 = 0o755;

/// Copy this program into a directory, from where containers of other images run it
#[derive(Debug, Parser)]
#[command(name = "podling-agent install", version)]
struct InstallArgs {
    /// Existing directory to copy the program into
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the subcommand; `words` are the program's name and the directory.
pub(crate) fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<_> = words.into_iter().collect();
    let format = early_format(&words);
    let directory = match InstallArgs::try_parse_from(words) {
        Ok(args) => args.directory,
        Err(error) if format == LogFormat::Json && error.use_stderr() => {
            format.report(PROGRAM, &error.render().to_string());
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    match install(&directory) {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = format!("cannot copy the agent to {}: {error}", directory.display());
            format.report(PROGRAM, &message);
            ExitCode::FAILURE
        }
    }
}

/// Copies the program atomically, even over a copy that is running. Idempotent.
fn install(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join(NAME);
    let part = directory.join(format!(".{NAME}.{}", std::process::id()));
    let copied = copy(&part).and_then(|()| fs::rename(&part, &path));
    if copied.is_err() {
        // Fails if the file does not exist. It is deleted with the directory in any case.
        let _gone = fs::remove_file(&part);
    }
    copied.map(|()| path)
}

fn copy(to: &Path) -> io::Result<()> {
    // The path of the running program may name another file by now.
    let mut own = File::open("/proc/self/exe")?;
    let mut file = File::create(to)?;
    io::copy(&mut own, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_is_atomic_executable_and_repeatable() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let path = install(directory.path()).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
            assert!(fs::read(&path).unwrap() == fs::read("/proc/self/exe").unwrap());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn install_does_not_create_missing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert_eq!(install(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!missing.exists());
    }
}

//! Finds a program as a shell does, and checks whether its file can be executed.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::SpawnError;

/// Bytes of a file in which the kernel looks for an interpreter line (BINPRM_BUF_SIZE).
const SHEBANG_BYTES: usize = 256;

/// Resolves a program's name against PATH, or a path against `cwd`, as a shell does.
pub(super) fn find(name: &str, cwd: &Path, path: &str) -> Result<PathBuf, SpawnError> {
    if name.contains('/') {
        let file = cwd.join(name);
        return match file.metadata() {
            Ok(_) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(SpawnError::NotExecutable { program: name.into(), problem: "permission denied" })
            }
            Err(_) => Err(SpawnError::NotFound { program: name.into(), searched: None }),
        };
    }
    let candidates = || path.split(':').map(|dir| cwd.join(dir).join(name));
    candidates()
        .find(|file| is_executable(file))
        // Like a shell, returns a file that exists but is not executable, for a better error.
        .or_else(|| candidates().find(|file| file.is_file()))
        .ok_or_else(|| SpawnError::NotFound { program: name.into(), searched: Some(path.to_owned()) })
}

/// Fails if the file certainly cannot be executed. Only `exec` detects the remaining errors.
pub(super) fn runnable(name: &str, path: &Path) -> Result<(), SpawnError> {
    let not = |problem| SpawnError::NotExecutable { program: name.to_owned(), problem };
    let meta = path.metadata().map_err(|_| not("cannot read its metadata"))?;
    if meta.is_dir() {
        return Err(not("is a directory"));
    }
    if !is_executable(path) {
        return Err(not("permission denied; make it executable with chmod +x"));
    }
    let mut head = Vec::with_capacity(SHEBANG_BYTES);
    // A program may be executable but not readable. Then only the kernel knows its interpreter.
    if let Ok(file) = File::open(path) {
        let _read = file.take(SHEBANG_BYTES as u64).read_to_end(&mut head);
    }
    if !head.is_empty() && !head.starts_with(b"#!") && !is_program(&head) && !has_other_formats() {
        // The C library would run such a file with sh, which prints misleading errors.
        return Err(not("is neither a program for this machine nor a script with a #! line"));
    }
    match interpreter(&head) {
        Some(interpreter) if !is_executable(Path::new(OsStr::from_bytes(interpreter))) => {
            Err(SpawnError::BadInterpreter {
                program: name.to_owned(),
                interpreter: String::from_utf8_lossy(interpreter).into_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Returns the interpreter that a `#!` line names.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii_start();
    line.split(|b| b.is_ascii_whitespace() && *b != b'\r').next().filter(|word| !word.is_empty())
}

/// Returns whether `head` begins an ELF file for this machine, or for its 32-bit variant.
fn is_program(head: &[u8]) -> bool {
    const MACHINE: std::ops::Range<usize> = 18..20;
    const ARM: [u8; 2] = [40, 0];
    const I386: [u8; 2] = [3, 0];
    let mut own = [0; 20];
    // The agent's own executable runs on this machine, so its header shows the machine type.
    let known = File::open("/proc/self/exe").and_then(|mut file| file.read_exact(&mut own)).is_ok();
    head.starts_with(b"\x7fELF")
        && head
            .get(MACHINE)
            .is_some_and(|machine| !known || machine == &own[MACHINE] || machine == ARM || machine == I386)
}

/// Returns whether further formats are registered in binfmt_misc. Only the kernel then knows which
/// files it can run.
fn has_other_formats() -> bool {
    // `register` and `status` always exist.
    std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2)
}

pub(super) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreter_is_parsed_as_by_the_kernel() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#! /usr/bin/env python3\n"), Some(&b"/usr/bin/env"[..]));
        assert_eq!(
            interpreter(b"#!/bin/sh\r\n"),
            Some(&b"/bin/sh\r"[..]),
            "a DOS line ending is part of the name"
        );
        assert_eq!(interpreter(b"\x7fELF"), None);
    }
}

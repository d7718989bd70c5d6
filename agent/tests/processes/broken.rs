//! Programs that cannot start. Each failure has its own reason, and no process is left.

use std::{os::unix::fs::PermissionsExt, path::Path};

use podling_agent::{process::ProcessSpec, spawn::Program};
use podling_proto::error::{Reason, WireError};

use super::{ProcessFixture, all};

fn script(path: &Path, content: &[u8], mode: u32) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn failed_start_has_a_specific_reason() {
    let fixture = ProcessFixture::new();
    let home = fixture.home.path();
    script(&home.join("plain"), b"echo hi\n", 0o644);
    script(&home.join("bad-interpreter"), b"#!/no/such/shell\n", 0o755);
    script(&home.join("dos"), b"#!/bin/sh\r\necho hi\r\n", 0o755);
    script(&home.join("garbage"), b"\x7fELFnonsense", 0o755);
    script(&home.join("file"), b"", 0o644);
    std::fs::create_dir(home.join("folder")).unwrap();
    let program = |argv: &[&str]| Program {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        ..Program::default()
    };
    let within = |cwd: &str| Program { cwd: cwd.into(), ..program(&["true"]) };
    let with = |key: &str| Program { env: [(key.to_owned(), "x".to_owned())].into(), ..program(&["true"]) };
    let stories = [
        (program(&["no-such-program"]), Reason::ProgramNotFound),
        (program(&["./missing"]), Reason::ProgramNotFound),
        (program(&["./plain"]), Reason::ProgramNotExecutable),
        (program(&["./folder"]), Reason::ProgramNotExecutable),
        (program(&["./garbage"]), Reason::ProgramNotExecutable),
        (program(&["./bad-interpreter"]), Reason::ProgramBadInterpreter),
        (program(&["./dos"]), Reason::ProgramBadInterpreter),
        (within("nowhere"), Reason::BadCwd),
        (within("file"), Reason::BadCwd),
        (program(&[]), Reason::BadField),
        (program(&["true", "a\0b"]), Reason::BadField),
        (with("A=B"), Reason::BadField),
    ];
    for (program, expected) in stories {
        let error = fixture
            .processes
            .start(ProcessSpec { program: program.clone(), ..ProcessSpec::default() })
            .await
            .unwrap_err();
        let wire = WireError::from(error);
        assert_eq!(wire.reason(), expected, "{program:?}: {}", wire.message());
    }
    assert_eq!(fixture.processes.list().len(), 0);
    assert_eq!(all(fixture.sh("exit 0")).await.code(), Some(0), "other processes still start");
}

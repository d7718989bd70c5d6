//! Compares `deploy/crds` with the definitions that the control plane's types generate.

use std::{fs, path::Path};

fn is_json(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "json"))
}

#[test]
fn deployed_crds_match_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let definitions = podling_control::kubernetes::definitions().unwrap();
    assert_eq!(
        fs::read_dir(&directory).unwrap().filter(is_json).count(),
        definitions.len(),
        "deploy/crds has one file for each definition"
    );
    for (name, text) in definitions {
        let deployed = fs::read_to_string(directory.join(name)).unwrap();
        assert!(
            deployed == text,
            "{name} must match the types; run: cargo run -p podling-control --example crds"
        );
    }
}

//! Compares `deploy/crds` with the definitions that the control plane's types generate.

use std::{fs, path::Path};

#[path = "../examples/crds/definitions.rs"]
mod definitions;

fn is_definition(entry: &std::io::Result<fs::DirEntry>) -> bool {
    let text = entry.as_ref().ok().and_then(|entry| fs::read_to_string(entry.path()).ok());
    text.is_some_and(|text| text.contains("kind: CustomResourceDefinition\n"))
}

#[test]
fn deployed_crds_match_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let definitions = definitions::definitions().unwrap();
    assert_eq!(
        fs::read_dir(&directory).unwrap().filter(is_definition).count(),
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

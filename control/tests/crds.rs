//! The definitions that are deployed are made of the types that are served.

use std::{fs, path::Path};

fn is_json(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "json"))
}

#[test]
fn what_is_deployed_is_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let definitions = podling_control::kubernetes::definitions().unwrap();
    assert_eq!(
        fs::read_dir(&folder).unwrap().filter(is_json).count(),
        definitions.len(),
        "a file more or less"
    );
    for (name, text) in definitions {
        let deployed = fs::read_to_string(folder.join(name)).unwrap();
        assert!(
            deployed == text,
            "{name} is not what the types say: cargo run -p podling-control --example crds"
        );
    }
}

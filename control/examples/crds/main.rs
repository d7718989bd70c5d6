//! Writes the definitions of Podling's resources into `deploy/crds`, from `control/src/kubernetes`.

mod definitions;

use std::{fs, path::Path};

fn main() -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    fs::create_dir_all(&directory)?;
    for (name, text) in definitions::definitions()? {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

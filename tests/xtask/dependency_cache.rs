//! Caches compiled dependencies outside of any checkout, so that a fresh clone compiles only the
//! crates of this workspace.
//!
//! The cache contains crates of the registry with cargo's fingerprints. Cargo verifies each
//! fingerprint (version, features, profile, compiler) as it does for its own output, and recompiles
//! crates that do not match. Crates of this workspace are never cached, because their fingerprints
//! are file times, which mean nothing in another checkout.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{program, test_programs::workspace_packages};

/// Directories below the target directory that the gate's builds fill.
const PROFILES: [&str; 2] = ["debug", "x86_64-unknown-linux-musl/debug"];
const FINGERPRINTS: &str = ".fingerprint";
const BUILD_SCRIPTS: &str = "build";
const LIBRARIES: &str = "deps";
/// File of a profile that cargo locks while it builds.
const CARGO_LOCK: &str = ".cargo-lock";
/// Prefix of a dependency of every build. A target directory without it is fresh.
const EVERYWHERE: &str = "tokio-";
/// Entries that have not been used for this long are removed.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Hexadecimal digits of the hash that cargo appends to names.
const HASH_DIGITS: usize = 16;

/// The cache's entry for this workspace's dependencies.
#[derive(Debug)]
pub(crate) struct DependencyCache {
    entry: PathBuf,
    target: PathBuf,
    /// Whether the target directory had no dependencies when the gate began. Only then does it hold
    /// exactly what the gate needs.
    is_fresh: bool,
}

impl DependencyCache {
    /// Finds the entry for this workspace, which may not exist yet. Returns `None` if there is no
    /// cache directory.
    pub(crate) fn open() -> Result<Option<Self>> {
        let Some(cache) = program::cache_dir() else { return Ok(None) };
        let entry = cache.join("dependencies").join(key()?);
        let target = program::target_dir();
        let mut is_fresh = true;
        for profile in PROFILES {
            is_fresh &= !has_compiled(&target.join(profile))?;
        }
        Ok(Some(Self { entry, target, is_fresh }))
    }

    /// Copies the entry into a fresh target directory. Prints errors instead of returning them,
    /// because cargo then compiles what is missing.
    pub(crate) fn restore(&self) {
        if let Err(error) = self.try_restore() {
            println!("cannot copy dependencies from the cache, so cargo compiles them: {error:#}");
        }
    }

    /// Copies the compiled dependencies into a new cache entry. Does nothing if the entry exists,
    /// or if the target directory had dependencies when the gate began. Prints errors instead of
    /// returning them.
    pub(crate) fn save(&self) {
        if let Err(error) = self.try_save() {
            println!("cannot save dependencies in the cache: {error:#}");
        }
    }

    fn try_restore(&self) -> Result<()> {
        if !self.is_fresh {
            return Ok(());
        }
        if !self.entry.is_dir() {
            println!("no compiled dependencies in {}, so cargo compiles them", self.entry.display());
            return Ok(());
        }
        let began = Instant::now();
        for profile in PROFILES {
            copy_profile(&self.entry.join(profile), &self.target.join(profile), |_| true)?;
        }
        // A new time protects the entry from `prune`.
        let _ = Command::new("touch").arg(&self.entry).status();
        println!("dependencies copied from {} in {:.1} s", self.entry.display(), seconds(began));
        Ok(())
    }

    fn copy_to(&self, entry: &Path) -> Result<()> {
        let ours = workspace_names()?;
        for profile in PROFILES {
            let from = self.target.join(profile);
            // A profile is missing if the gate built nothing for it, such as images on a machine
            // without a node.
            let Ok(lock) = File::open(from.join(CARGO_LOCK)) else { continue };
            // While the lock is held, no cargo writes into the directory.
            lock.lock()?;
            copy_profile(&from, &entry.join(profile), |name| !is_one_of(name, &ours))?;
        }
        Ok(())
    }

    fn try_save(&self) -> Result<()> {
        if self.entry.is_dir() || !self.is_fresh {
            return Ok(());
        }
        let began = Instant::now();
        let parent = self.entry.parent().expect("an entry lies in the cache");
        fs::create_dir_all(parent)?;
        let part = parent.join(format!("part.{}", std::process::id()));
        let copied = self.copy_to(&part);
        if copied.is_err() {
            let _ = fs::remove_dir_all(&part);
        }
        copied?;
        // Another gate may have made the same entry first.
        if fs::rename(&part, &self.entry).is_err() {
            fs::remove_dir_all(&part)?;
        }
        prune(parent)?;
        println!("dependencies saved as {} in {:.1} s", self.entry.display(), seconds(began));
        Ok(())
    }
}

/// Returns whether dependencies were compiled for this profile.
fn has_compiled(profile: &Path) -> Result<bool> {
    let Ok(entries) = fs::read_dir(profile.join(FINGERPRINTS)) else { return Ok(false) };
    for entry in entries {
        if entry?.file_name().to_string_lossy().starts_with(EVERYWHERE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the name of the entry, which is a hash of the compiler's version, Cargo.lock, and all
/// manifests with their profiles and features. An entry of that name fits well, but cargo's
/// fingerprints decide which crates are used.
fn key() -> Result<String> {
    let compiler = program::program("rustc").arg("-vV").output().context("cannot run rustc")?;
    let mut hasher = DefaultHasher::new();
    compiler.stdout.hash(&mut hasher);
    let mut files = vec![program::root().join("Cargo.lock"), program::root().join(".cargo/config.toml")];
    files.extend(
        workspace_packages()?
            .iter()
            .filter_map(|package| package["manifest_path"].as_str().map(PathBuf::from)),
    );
    files.push(program::root().join("Cargo.toml"));
    for file in files {
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
    }
    std::env::var_os("RUSTFLAGS").hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Returns the crate names of this workspace's packages and targets.
fn workspace_names() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in workspace_packages()? {
        let targets = package["targets"].as_array().cloned().unwrap_or_default();
        let all = targets.iter().chain([&package]).filter_map(|named| named["name"].as_str());
        names.extend(all.map(plain));
    }
    Ok(names)
}

/// Returns whether a file belongs to one of these crates, such as `libserde-0123456789abcdef.rlib`
/// or `serde-0123456789abcdef`. Also returns true if its name does not have cargo's form.
fn is_one_of(file: &str, names: &BTreeSet<String>) -> bool {
    let stem = file.split('.').next().unwrap_or(file);
    let Some((name, hash)) = stem.rsplit_once('-') else { return true };
    if hash.len() != HASH_DIGITS {
        return true;
    }
    let name = plain(name);
    names.contains(&name) || name.strip_prefix("lib").is_some_and(|name| names.contains(name))
}

/// Returns the crate name of a package.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Copies the output of one profile. Fingerprints come last. Cargo ignores files without a
/// fingerprint, so an interrupted copy does no harm.
fn copy_profile(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    for kind in [LIBRARIES, BUILD_SCRIPTS, FINGERPRINTS] {
        copy_some(&from.join(kind), &to.join(kind), &is_wanted)?;
    }
    Ok(())
}

/// Copies the entries of a directory whose name `is_wanted`, with their times, which cargo
/// compares.
fn copy_some(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let wanted: Vec<_> =
        names.filter(|name| name.to_str().is_some_and(&is_wanted)).map(|name| from.join(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let status =
        Command::new("cp").args(["-a", "-t"]).arg(to).args(wanted).status().context("cannot run cp")?;
    ensure!(status.success(), "cp: {status}");
    Ok(())
}

/// Removes entries that have not been used for [`UNUSED`].
fn prune(entries: &Path) -> Result<()> {
    for entry in fs::read_dir(entries)?.flatten() {
        let used = entry.metadata()?.modified()?;
        if SystemTime::now().duration_since(used).is_ok_and(|age| age > UNUSED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_crates_are_distinguished_from_registry_crates() {
        let names = BTreeSet::from(["podling_agent".to_owned(), "files".to_owned()]);
        let is_ours = |file| is_one_of(file, &names);
        for own in [
            "podling-agent-0123456789abcdef",
            "libpodling_agent-0123456789abcdef.rlib",
            "podling_agent-0123456789abcdef.d",
            "files-0123456789abcdef",
            // These names do not have cargo's form.
            "something",
            "tokio-old",
        ] {
            assert!(is_ours(own), "{own}");
        }
        for other in [
            "tokio-0123456789abcdef",
            "libtokio-0123456789abcdef.rmeta",
            "proc_macro2-0123456789abcdef.d",
            "libc-0123456789abcdef",
            "liblibc-0123456789abcdef.rlib",
            "libprost_derive-0123456789abcdef.so",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn selected_entries_are_copied_with_their_times() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a/b")).expect("a directory");
        fs::write(from.join("a/b/c"), "text").expect("a file");
        fs::write(from.join("d"), "text").expect("a file");
        copy_some(&from, &to, |name| name == "a").expect("copy");
        assert!(!to.join("d").exists());
        let time =
            |file: PathBuf| fs::metadata(file).expect("file exists").modified().expect("file has a time");
        assert_eq!(time(to.join("a/b/c")), time(from.join("a/b/c")));
        copy_some(&from.join("none"), &to, |_| true).expect("a missing directory is no error");
    }
}

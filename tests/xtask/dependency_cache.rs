//! A cache of compiled dependencies, outside of any checkout: a fresh clone does not compile what the registry's crates were compiled to
//! before.
//!
//! It holds crates of the registry alone, with cargo's fingerprints of them. Cargo compares those (version, features, profile, compiler) as
//! it does with what it compiled itself, and compiles what does not match; so a wrong entry costs time and nothing else. Crates of
//! this workspace are never cached: their fingerprints rest on times of files, which say nothing about another checkout.

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

/// What the gate's builds leave: folders below the target directory, each with these three.
const PROFILES: [&str; 3] = ["debug", "dist-tested", "x86_64-unknown-linux-musl/dist-tested"];
const FINGERPRINTS: &str = ".fingerprint";
const BUILD_SCRIPTS: &str = "build";
const LIBRARIES: &str = "deps";
/// Cargo holds a lock on this file of a profile while it builds.
const CARGO_LOCK: &str = ".cargo-lock";
/// A dependency that every build of the workspace has: a target directory without it is a fresh one.
const EVERYWHERE: &str = "tokio-";
/// An entry that was not used for so long goes.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Cargo puts this many digits behind the name of whatever it makes.
const HASH_DIGITS: usize = 16;

/// The entry for this workspace's dependencies.
#[derive(Debug)]
pub(crate) struct DependencyCache {
    entry: PathBuf,
    target: PathBuf,
    /// Nothing was compiled there yet when this gate began: what it holds at the end is what the gate needs, and nothing older.
    is_fresh: bool,
}

impl DependencyCache {
    /// `None` where there is no place for a cache.
    pub(crate) fn open() -> Result<Option<Self>> {
        let Some(cache) = program::cache_dir() else { return Ok(None) };
        let entry = cache.join("dependencies").join(key()?);
        let target = program::target_dir();
        let is_fresh = !has_compiled(&target.join(PROFILES[0]))?;
        Ok(Some(Self { entry, target, is_fresh }))
    }

    /// Copies the entry, if there is one, into a fresh target directory. What fails is only printed.
    pub(crate) fn restore(&self) {
        if let Err(error) = self.try_restore() {
            println!("no dependencies could be copied from the cache: {error:#}");
        }
    }

    /// Copies the dependencies of a fresh target directory into a new entry, if there is none. What fails is only printed.
    pub(crate) fn save(&self) {
        if let Err(error) = self.try_save() {
            println!("dependencies could not be saved in the cache: {error:#}");
        }
    }

    fn try_restore(&self) -> Result<()> {
        if !self.entry.is_dir() || !self.is_fresh {
            return Ok(());
        }
        let began = Instant::now();
        for profile in PROFILES {
            copy_profile(&self.entry.join(profile), &self.target.join(profile), |_| true)?;
        }
        // It is in use, so it stays.
        let _ = Command::new("touch").arg(&self.entry).status();
        println!("dependencies copied from {} in {:.1} s", self.entry.display(), seconds(began));
        Ok(())
    }

    fn copy_to(&self, entry: &Path) -> Result<()> {
        let ours = workspace_names()?;
        for profile in PROFILES {
            let from = self.target.join(profile);
            // A machine that runs no node has built nothing for one.
            let Ok(lock) = File::open(from.join(CARGO_LOCK)) else { continue };
            // No cargo writes there meanwhile.
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
        // Another gate may have been faster: its entry is as good.
        if fs::rename(&part, &self.entry).is_err() {
            fs::remove_dir_all(&part)?;
        }
        prune(parent)?;
        println!("dependencies saved as {} in {:.1} s", self.entry.display(), seconds(began));
        Ok(())
    }
}

/// Whether dependencies were compiled for this profile.
fn has_compiled(profile: &Path) -> Result<bool> {
    let Ok(entries) = fs::read_dir(profile.join(FINGERPRINTS)) else { return Ok(false) };
    for entry in entries {
        if entry?.file_name().to_string_lossy().starts_with(EVERYWHERE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Says which entry fits: the compiler, the versions of all crates, and the manifests, which have profiles and features.
fn key() -> Result<String> {
    let compiler = program::program("rustc").arg("-vV").output().context("running rustc")?;
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
        fs::read(&file).with_context(|| format!("reading {}", file.display()))?.hash(&mut hasher);
    }
    std::env::var_os("RUSTFLAGS").hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// The names that cargo gives what it makes of the packages of this workspace, as they stand in names of files.
fn workspace_names() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in workspace_packages()? {
        let targets = package["targets"].as_array().cloned().unwrap_or_default();
        let all = targets.iter().chain([&package]).filter_map(|named| named["name"].as_str());
        names.extend(all.map(plain));
    }
    Ok(names)
}

/// Whether this is what cargo makes of one of these: `libserde-0123456789abcdef.rlib`, `serde-0123456789abcdef`.
fn is_one_of(file: &str, names: &BTreeSet<String>) -> bool {
    let stem = file.split('.').next().unwrap_or(file);
    let Some((name, hash)) = stem.rsplit_once('-') else { return true };
    if hash.len() != HASH_DIGITS {
        return true;
    }
    let name = plain(name);
    names.contains(&name) || name.strip_prefix("lib").is_some_and(|name| names.contains(name))
}

/// A package's name as a crate's name is written.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Copies what cargo made for a profile. The fingerprints come last: without them nothing that was copied counts.
fn copy_profile(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    for kind in [LIBRARIES, BUILD_SCRIPTS, FINGERPRINTS] {
        copy_some(&from.join(kind), &to.join(kind), &is_wanted)?;
    }
    Ok(())
}

/// Copies what a folder holds and the filter lets pass, with the times of all files: cargo compares them.
fn copy_some(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let wanted: Vec<_> =
        names.filter(|name| name.to_str().is_some_and(&is_wanted)).map(|name| from.join(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let status = Command::new("cp").args(["-a", "-t"]).arg(to).args(wanted).status().context("running cp")?;
    ensure!(status.success(), "cp: {status}");
    Ok(())
}

/// Removes entries that were not used for long.
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
    fn own_crates_are_told_from_the_registrys() {
        let names = BTreeSet::from(["podling_agent".to_owned(), "files".to_owned()]);
        let is_ours = |file| is_one_of(file, &names);
        for own in [
            "podling-agent-0123456789abcdef",
            "libpodling_agent-0123456789abcdef.rlib",
            "podling_agent-0123456789abcdef.d",
            "files-0123456789abcdef",
            // Not what cargo makes.
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
    fn entry_holds_what_is_wanted_with_its_times() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/b")).expect("a folder");
        fs::write(from.join("a/b/c"), "text").expect("a file");
        fs::write(from.join("d"), "text").expect("a file");
        copy_some(&from, &to, |name| name == "a").expect("it is copied");
        assert!(!to.join("d").exists());
        let time = |file: PathBuf| fs::metadata(file).expect("it is there").modified().expect("it has one");
        assert_eq!(time(to.join("a/b/c")), time(from.join("a/b/c")));
        copy_some(&from.join("none"), &to, |_| true).expect("nothing to copy is no error");
    }
}

//! Templates: what a new workspace is made of. Two are built in, others come as TOML files.
//!
//! Must not know who asks for one, or how its command is run.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use podling_core::{policy::Policy, workspace::Resources};

mod built_in;
mod follower;
mod parse;

pub use follower::TemplateFollower;

/// What a new workspace is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// For people, one line.
    pub description: String,
    /// The workspace's own command (an IDE); empty: none.
    pub command: Vec<String>,
    /// The environment of its terminals and processes.
    pub env: BTreeMap<String, String>,
    /// How long what may last.
    pub policy: Policy,
    /// What a workspace takes of its owner's share while it is awake.
    pub resources: Resources,
}

/// All templates, by name.
#[derive(Debug, Clone)]
pub struct Templates {
    by_name: BTreeMap<String, Arc<Template>>,
    default: String,
}

/// Why the templates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file says something that is not allowed.
    #[error("template {file}: {problem}", file = file.display())]
    Bad {
        /// Which file.
        file: PathBuf,
        /// Which key, and what is allowed.
        problem: String,
    },
    /// A file or folder cannot be read.
    #[error("reading templates from {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The default is none of them.
    #[error("the default template {name:?} does not exist; there are {known}")]
    NoDefault {
        /// As asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl Templates {
    /// Those built in, then those in the TOML files of each folder: the later replaces an earlier of the same name. A folder
    /// that is not there holds none.
    pub fn load(folders: &[PathBuf], default: &str) -> Result<Self, TemplateError> {
        let mut by_name = built_in::all();
        for folder in folders {
            for file in toml_files(folder)? {
                let (name, template) = load_file(&file)?;
                by_name.insert(name, Arc::new(template));
            }
        }
        if !by_name.contains_key(default) {
            let known = by_name.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(TemplateError::NoDefault { name: default.to_owned(), known });
        }
        Ok(Self { by_name, default: default.to_owned() })
    }

    /// These.
    pub fn new(by_name: BTreeMap<String, Arc<Template>>, default: &str) -> Self {
        Self { by_name, default: default.to_owned() }
    }

    /// The template of this name; the empty name is the default. With the name it really has.
    pub fn get(&self, name: &str) -> Option<(&str, &Arc<Template>)> {
        let name = if name.is_empty() { &self.default } else { name };
        self.by_name.get_key_value(name).map(|(name, template)| (name.as_str(), template))
    }

    /// The names there are, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

/// Sorted, so that two starts see the same.
fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let read = |source| TemplateError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(read(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_file(file: &Path) -> Result<(String, Template), TemplateError> {
    let bad = |problem| TemplateError::Bad { file: file.to_owned(), problem };
    let name = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    // The file's name is the template's, and a template's name is made like a workspace's.
    if name.parse::<podling_core::id::Name>().is_err() {
        return Err(bad(
            "its file name is the template's name: 1 to 63 of a-z, 0-9 and \"-\", beginning with a letter"
                .into(),
        ));
    }
    let text =
        fs::read_to_string(file).map_err(|source| TemplateError::Read { path: file.to_owned(), source })?;
    Ok((name.to_owned(), parse::template(&text).map_err(bad)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_adds_a_template_and_may_replace_one_that_is_built_in() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("ide.toml"), "command = [\"code-server\"]\n").expect("write");
        fs::write(folder.path().join("shell.toml"), "description = \"ours\"\n").expect("write");
        let templates = Templates::load(&[folder.path().to_owned()], "ide").expect("templates");
        assert_eq!(templates.names().collect::<Vec<_>>(), ["ide", "python", "shell"]);
        let (name, ide) = templates.get("").expect("default");
        assert_eq!((name, ide.command.as_slice()), ("ide", &["code-server".to_owned()][..]));
        assert_eq!(templates.get("shell").expect("shell").1.description, "ours");
    }

    #[test]
    fn a_broken_file_is_named_with_its_key() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("ide.toml");
        fs::write(&file, "[policy]\nidle_timeout = \"soon\"\n").expect("write");
        let error = Templates::load(&[folder.path().to_owned()], "shell").expect_err("bad").to_string();
        assert!(error.contains("ide.toml") && error.contains("policy.idle_timeout"), "{error}");
    }

    #[test]
    fn an_unknown_default_is_answered_with_those_there_are() {
        let error = Templates::load(&[], "pyton").expect_err("unknown").to_string();
        assert!(error.contains("pyton") && error.contains("python, shell"), "{error}");
    }
}

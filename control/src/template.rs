//! Templates of workspaces. Two are built in. Others are TOML files or Kubernetes resources.

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

/// Defaults of new workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// One-line description for users.
    pub description: String,
    /// Command of the workspace, such as an IDE; empty if it has none.
    pub command: Vec<String>,
    /// Environment variables of terminals and processes.
    pub env: BTreeMap<String, String>,
    /// Timeouts and caps of the workspaces.
    pub policy: Policy,
    /// CPU and memory that a workspace requests from its owner's quota while it is awake.
    pub resources: Resources,
}

#[derive(Debug, Clone)]
pub struct Templates {
    by_name: BTreeMap<String, Arc<Template>>,
    default: String,
}

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file has an invalid value.
    #[error("template {file} is not valid: {problem}", file = file.display())]
    Bad {
        file: PathBuf,
        /// The key with the invalid value, and its allowed values.
        problem: String,
    },
    #[error("cannot read templates from {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The default template does not exist.
    #[error("the default template {name:?} does not exist; the templates are {known}")]
    NoDefault { name: String, known: String },
}

impl Templates {
    /// Loads the built-in templates, then the TOML files of each directory. A later template
    /// replaces an earlier one of the same name. A missing directory is not an error. Fails if a
    /// file is not valid or no template has the name `default`.
    pub fn load(directories: &[PathBuf], default: &str) -> Result<Self, TemplateError> {
        let mut by_name = built_in::all();
        for directory in directories {
            for file in toml_files(directory)? {
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

    pub fn new(by_name: BTreeMap<String, Arc<Template>>, default: &str) -> Self {
        Self { by_name, default: default.to_owned() }
    }

    /// Returns the template of this name, with its name. The empty name selects the default
    /// template.
    pub fn get(&self, name: &str) -> Option<(&str, &Arc<Template>)> {
        let name = if name.is_empty() { &self.default } else { name };
        self.by_name.get_key_value(name).map(|(name, template)| (name.as_str(), template))
    }

    /// Returns the names of all templates, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

/// Returns the TOML files of a directory, sorted so that their order is the same at each start.
fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let read = |source| TemplateError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
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
    // The file name without its extension is the template's name. It follows the rules of names of
    // workspaces.
    if name.parse::<podling_core::id::WorkspaceName>().is_err() {
        return Err(bad(
            "its file name is not a template name; use 1 to 63 of a-z, 0-9 and \"-\", beginning with a letter"
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
    fn file_adds_or_replaces_template() {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("ide.toml"), "command = [\"code-server\"]\n").expect("write");
        fs::write(directory.path().join("shell.toml"), "description = \"ours\"\n").expect("write");
        let templates = Templates::load(&[directory.path().to_owned()], "ide").expect("templates");
        assert_eq!(templates.names().collect::<Vec<_>>(), ["ide", "python", "shell"]);
        let (name, ide) = templates.get("").expect("default");
        assert_eq!((name, ide.command.as_slice()), ("ide", &["code-server".to_owned()][..]));
        assert_eq!(templates.get("shell").expect("shell").1.description, "ours");
    }

    #[test]
    fn invalid_file_error_names_file_and_key() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("ide.toml");
        fs::write(&file, "[policy]\nidle_timeout = \"soon\"\n").expect("write");
        let error = Templates::load(&[directory.path().to_owned()], "shell").expect_err("bad").to_string();
        assert!(error.contains("ide.toml") && error.contains("policy.idle_timeout"), "{error}");
    }

    #[test]
    fn unknown_default_error_lists_templates() {
        let error = Templates::load(&[], "pyton").expect_err("unknown").to_string();
        assert!(error.contains("pyton") && error.contains("python, shell"), "{error}");
    }
}

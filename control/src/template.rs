//! Templates of workspaces. Two are built in and need no file. Others are TOML files or Kubernetes
//! resources.

mod follower;
mod parse;

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use podling_core::{policy::Policy, workspace::Resources};
use tokio::{sync::watch, task::spawn_blocking};

pub use self::follower::{TemplateFollower, TemplateLookup, TemplateSpecs};

/// Longest file of a template, in bytes. A longer one is not valid.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

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
    /// Size of a new workspace's volume. `None` if workspaces have no volume of their own.
    pub storage_bytes: Option<u64>,
}

/// The templates of a control plane by name, valid or not.
#[derive(Debug, Clone)]
pub struct Templates {
    known: BTreeMap<String, Result<Arc<Template>, InvalidTemplate>>,
    default: String,
}

/// The problem of a template that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidTemplate {
    /// File of the template. `None` if the template is a resource.
    pub file: Option<PathBuf>,
    /// Line with the problem, from 1. `None` if the problem concerns the whole template.
    pub line: Option<usize>,
    /// The problem, with the key and its allowed values.
    pub problem: String,
}

/// Why a template cannot be used, or why the templates cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot read templates from {path}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("template {name} is not valid: {invalid}; correct it and try again")]
    Invalid { name: String, invalid: InvalidTemplate },
    #[error("template {name:?} does not exist; templates: {known}")]
    NotFound {
        name: String,
        /// The names of all templates, for display.
        known: String,
    },
    /// The default template does not exist.
    #[error("the default template {name:?} does not exist; the templates are {known}")]
    NoDefault { name: String, known: String },
}

impl Templates {
    /// Loads the built-in templates, then the TOML files of each directory. A later template
    /// replaces an earlier one of the same name, even if it is not valid. A missing directory is
    /// not an error.
    pub fn load(directories: &[PathBuf], default: &str) -> Result<Self, TemplateError> {
        let mut known = built_in();
        for directory in directories {
            for file in toml_files(directory)? {
                let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let loaded = load_file(&name, &file).map(Arc::new);
                known.insert(name, loaded);
            }
        }
        Ok(Self { known, default: default.to_owned() })
    }

    /// Logs each template that is not valid. Fails if the default template does not exist. A
    /// default template that is not valid is only logged, because a user can correct its file.
    pub fn check(&self) -> Result<(), TemplateError> {
        for (template, known) in &self.known {
            if let Err(invalid) = known {
                tracing::error!(template, problem = %invalid, "template is not valid");
            }
        }
        match self.get("") {
            Err(TemplateError::NotFound { name, known }) => Err(TemplateError::NoDefault { name, known }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Returns the template of this name, with its name. The empty name selects the default
    /// template.
    pub fn get(&self, name: &str) -> Result<(&str, &Arc<Template>), TemplateError> {
        let name = if name.is_empty() { &self.default } else { name };
        match self.known.get_key_value(name) {
            Some((name, Ok(template))) => Ok((name, template)),
            Some((name, Err(invalid))) => {
                Err(TemplateError::Invalid { name: name.clone(), invalid: invalid.clone() })
            }
            None => Err(TemplateError::NotFound { name: name.to_owned(), known: self.names() }),
        }
    }

    /// Returns the names of all templates for display. Those that are not valid come last.
    fn names(&self) -> String {
        let names = |is_valid: bool| {
            let named = self.known.iter().filter(|(_, known)| known.is_ok() == is_valid);
            named.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
        };
        match (names(true), names(false)) {
            (valid, invalid) if invalid.is_empty() => valid,
            (valid, invalid) => format!("{valid}; not valid: {invalid}"),
        }
    }
}

impl fmt::Display for InvalidTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ", line {line}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)
    }
}

/// Returns the TOML files of a directory, sorted so that their order is always the same. Hidden
/// files, which editors create beside a file that is being edited, are skipped.
fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let failed = |source| TemplateError::Directory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !is_hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_file(name: &str, file: &Path) -> Result<Template, InvalidTemplate> {
    let invalid = |line, problem| InvalidTemplate { file: Some(file.to_owned()), line, problem };
    let unreadable = |error: io::Error| invalid(None, format!("cannot read the file: {error}"));
    // The file name without its extension is the template's name. It follows the rules of names of
    // workspaces.
    if name.parse::<podling_core::id::WorkspaceName>().is_err() {
        let problem = "its file name is not a template name; use 1 to 63 of a-z, 0-9 and \"-\", beginning \
                       with a letter";
        return Err(invalid(None, problem.to_owned()));
    }
    // Reading a FIFO would never end.
    if !fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(invalid(None, "it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(unreadable)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(None, format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        invalid(Some(line), "it is not UTF-8 text".to_owned())
    })?;
    parse::template(&text).map_err(|problem| invalid(problem.line(&text), problem.text))
}

/// The source of templates. Clones share it.
#[derive(Debug, Clone)]
pub enum TemplateSource {
    /// TOML files, which are read each time, so that a changed file needs no restart.
    Files {
        /// Later directories override earlier ones.
        directories: Arc<[PathBuf]>,
        /// Name of the default template.
        default: Arc<str>,
    },
    /// Resources, which a watch keeps up to date.
    Resources(watch::Receiver<Arc<Templates>>),
}

impl TemplateSource {
    /// Returns the present templates. Fails only if a directory with templates cannot be read.
    pub async fn current(&self) -> Result<Arc<Templates>, TemplateError> {
        match self {
            Self::Files { directories, default } => {
                let (directories, default) = (directories.clone(), default.clone());
                let read = spawn_blocking(move || Templates::load(&directories, &default)).await;
                // The task is never cancelled. It ends early only by a panic, which continues here.
                read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map(Arc::new)
            }
            Self::Resources(templates) => Ok(templates.borrow().clone()),
        }
    }
}

/// Returns the templates `shell` and `python`.
fn built_in() -> BTreeMap<String, Result<Arc<Template>, InvalidTemplate>> {
    let template = |description: &str, env: &[(&str, String)]| {
        Ok(Arc::new(Template {
            description: description.to_owned(),
            command: Vec::new(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            policy: Policy::default(),
            resources: Resources::default(),
            storage_bytes: None,
        }))
    };
    // A terminal without a command opens $SHELL, which is the Python interpreter in this template.
    // If Python is not installed, the terminal opens the user's ordinary shell.
    let interpreter = python().map(|path| ("SHELL", path.display().to_string()));
    // Otherwise Python would buffer the output of scripts that run without a terminal.
    let unbuffered = ("PYTHONUNBUFFERED", "1".to_owned());
    let python_env: Vec<_> = interpreter.into_iter().chain([unbuffered]).collect();
    BTreeMap::from([
        ("shell".to_owned(), template("A shell in a home of its own", &[])),
        ("python".to_owned(), template("A Python terminal: opens python3 from PATH", &python_env)),
    ])
}

fn python() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join("python3")).find(|file| {
        file.is_absolute()
            && file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &[u8])], default: &str) -> Templates {
        let directory = tempfile::tempdir().expect("directory");
        for (name, content) in files {
            fs::write(directory.path().join(name), content).expect("write");
        }
        Templates::load(&[directory.path().to_owned()], default).expect("templates")
    }

    fn error(templates: &Templates, name: &str) -> String {
        templates.get(name).expect_err("not usable").to_string()
    }

    #[test]
    fn file_adds_or_replaces_template() {
        let templates = load(
            &[("ide.toml", b"command = [\"code-server\"]\n"), ("shell.toml", b"description = \"ours\"\n")],
            "ide",
        );
        assert_eq!(templates.names(), "ide, python, shell");
        let (name, ide) = templates.get("").expect("default");
        assert_eq!((name, ide.command.as_slice()), ("ide", &["code-server".to_owned()][..]));
        assert_eq!(templates.get("shell").expect("shell").1.description, "ours");
    }

    #[test]
    fn invalid_file_affects_only_its_own_template() {
        let templates = load(
            &[
                ("ide.toml", b"# ours\n[policy]\nidle_timeout = \"soon\"\n"),
                ("text.toml", b"command = [\"x\"]\ndescription = \"\xff\"\n"),
                ("half.toml", b"command = [\"x\"]\n[env\n"),
                ("Upper.toml", b""),
                ("shell.toml", b"comand = []\n"),
                ("good.toml", b""),
                (".good.toml", b"an editor's"),
            ],
            "shell",
        );
        for (name, place) in [
            ("ide", "ide.toml, line 3: policy.idle_timeout"),
            ("text", "text.toml, line 2: it is not UTF-8"),
            ("half", "half.toml, line 2: "),
            ("Upper", "Upper.toml: its file name"),
            ("shell", "shell.toml, line 1: unknown key comand"),
            ("", "shell.toml, line 1: "),
        ] {
            let error = error(&templates, name);
            assert!(error.contains(place) && error.ends_with("correct it and try again"), "{name}: {error}");
        }
        assert!(templates.get("good").is_ok() && templates.get("python").is_ok());
        assert!(
            error(&templates, "goood").ends_with("good, python; not valid: Upper, half, ide, shell, text")
        );
        assert!(templates.check().is_ok(), "a default template that is not valid can be corrected later");
    }

    #[test]
    fn template_that_is_no_regular_file_is_invalid() {
        let directory = tempfile::tempdir().expect("directory");
        fs::create_dir(directory.path().join("dir.toml")).expect("a directory");
        let fifo = directory.path().join("fifo.toml");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a FIFO");
        std::os::unix::fs::symlink("nowhere", directory.path().join("link.toml")).expect("a link");
        let templates = Templates::load(&[directory.path().to_owned()], "shell").expect("templates");
        for name in ["dir", "fifo", "link"] {
            assert!(error(&templates, name).contains(&format!("{name}.toml: ")), "{name}");
        }
    }

    #[tokio::test]
    async fn changed_file_is_read_without_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let directories = Arc::from([directory.path().to_owned()]);
        let source = TemplateSource::Files { directories, default: Arc::from("shell") };
        assert!(source.current().await.expect("templates").get("ide").is_err());
        fs::write(directory.path().join("ide.toml"), "description = \"new\"\n").expect("write");
        let now = source.current().await.expect("templates");
        assert_eq!(now.get("ide").expect("ide").1.description, "new");
        fs::remove_file(directory.path().join("ide.toml")).expect("remove");
        assert!(source.current().await.expect("templates").get("ide").is_err());
    }

    #[test]
    fn unknown_default_error_lists_templates() {
        let error =
            Templates::load(&[], "pyton").expect("templates").check().expect_err("unknown").to_string();
        assert!(error.contains("pyton") && error.contains("python, shell"), "{error}");
    }
}

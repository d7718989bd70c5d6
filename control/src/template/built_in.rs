//! The built-in templates, which need no file.

use std::{collections::BTreeMap, env, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use podling_core::{policy::Policy, workspace::Resources};

use super::Template;

/// Returns the templates `shell` and `python`.
pub(super) fn all() -> BTreeMap<String, Arc<Template>> {
    let template = |description: &str, env: &[(&str, String)]| {
        Arc::new(Template {
            description: description.to_owned(),
            command: Vec::new(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            policy: Policy::default(),
            resources: Resources::default(),
            storage_bytes: None,
        })
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

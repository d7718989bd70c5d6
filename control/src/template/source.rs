//! Where templates come from, and when they are read.

use std::{path::PathBuf, sync::Arc};

use tokio::{sync::watch, task::spawn_blocking};

use super::{TemplateError, Templates};

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

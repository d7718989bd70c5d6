//! Where backups lie: objects with names in one folder or below one prefix. Must not know what is in them.

use std::{collections::HashSet, ops::Range, path::Path as FilePath, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use url::Url;

use super::{
    error::{BackupError, OpenError},
    folder::{Folder, FolderUpload, StagedFile},
    limits::LISTED,
    objects::ObjectUpload,
};

#[derive(Debug, Clone)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    folder: Option<Folder>,
    /// For people.
    name: String,
}

/// An object that is being written and does not show yet.
#[derive(Debug)]
pub(super) enum Upload {
    Folder(FolderUpload),
    Objects(ObjectUpload),
}

/// An object that is stored whole and does not show yet.
#[derive(Debug)]
pub(super) enum Staged {
    Folder(StagedFile),
    Objects(ObjectUpload),
}

impl Place {
    pub(super) fn open(text: &str) -> Result<Self, OpenError> {
        let wrong = |problem: &str| OpenError::Url { url: text.to_owned(), problem: problem.to_owned() };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if url.password().is_some() {
            // Not even repeated: it would be in the log.
            let (url, problem) =
                (format!("{}:…", url.scheme()), "credentials belong into the environment".to_owned());
            return Err(OpenError::Url { url, problem });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("there is something after \"?\" or \"#\""));
        }
        match url.scheme() {
            "file" => {
                let path = url
                    .to_file_path()
                    .map_err(|()| wrong("after file:// comes an absolute path, without a host"))?;
                Self::folder(&path)
            }
            "s3" | "gs" | "az" => Self::cloud(&url),
            _ => Err(wrong("its kind is not known")),
        }
    }

    fn folder(path: &FilePath) -> Result<Self, OpenError> {
        let folder = Folder::open(path)?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| OpenError::Folder {
            path: path.display().to_string(),
            problem: "cannot be used".to_owned(),
            source: Some(std::io::Error::other(error)),
        })?;
        let name = format!("the backup store {}", path.display());
        Ok(Self { store: Arc::new(store), prefix: Path::default(), folder: Some(folder), name })
    }

    #[cfg(feature = "cloud")]
    fn cloud(url: &Url) -> Result<Self, OpenError> {
        let (store, prefix) = super::cloud::open(url)?;
        Ok(Self::objects(store, prefix, url.as_str()))
    }

    #[cfg(not(feature = "cloud"))]
    fn cloud(url: &Url) -> Result<Self, OpenError> {
        Err(OpenError::NotBuilt { url: url.to_string() })
    }

    /// Any object store.
    pub(super) fn objects(store: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        Self { store, prefix, folder: None, name: format!("the backup store {name}") }
    }

    /// For people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// All names there are; not those below them.
    pub(super) async fn names(&self) -> Result<HashSet<String>, BackupError> {
        let names = match &self.folder {
            Some(folder) => folder.names().await?,
            None => {
                let prefix = (!self.prefix.is_root()).then_some(&self.prefix);
                let listed = self.store.list_with_delimiter(prefix).await;
                let listed = listed.map_err(|e| BackupError::store(&self.name, "listing", "it", e))?;
                let name = |object: &object_store::ObjectMeta| object.location.filename().map(str::to_owned);
                listed.objects.iter().filter_map(name).collect()
            }
        };
        if names.len() > LISTED {
            return Err(BackupError::TooMany { place: self.name.clone(), most: LISTED });
        }
        Ok(names.into_iter().collect())
    }

    /// Of an object, in bytes.
    pub(super) async fn size(&self, object: &str) -> Result<u64, BackupError> {
        let meta = self.store.head(&self.path(object)).await;
        meta.map(|meta| meta.size).map_err(|e| BackupError::store(&self.name, "looking at", object, e))
    }

    pub(super) async fn exists(&self, object: &str) -> Result<bool, BackupError> {
        match self.size(object).await {
            Ok(_) => Ok(true),
            Err(BackupError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bytes of an object, as they are stored: never fewer than asked for.
    pub(super) async fn range(&self, object: &str, range: Range<u64>) -> Result<Bytes, BackupError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let failed = |e| BackupError::store(&self.name, "reading", object, e);
        let bytes = self.store.get_range(&self.path(object), range.clone()).await.map_err(failed)?;
        if bytes.len() as u64 != range.end - range.start {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(BackupError::io(&self.name, &format!("reading {object}"), short));
        }
        Ok(bytes)
    }

    pub(super) async fn upload(&self, object: &str) -> Result<Upload, BackupError> {
        if let Some(folder) = &self.folder {
            return Ok(Upload::Folder(folder.upload(object).await?));
        }
        let upload = self.store.put_multipart(&self.path(object)).await;
        let upload = upload.map_err(|e| BackupError::store(&self.name, "writing", object, e))?;
        Ok(Upload::Objects(ObjectUpload::new(&self.name, object, upload)))
    }

    /// It is gone afterwards, also when it was before.
    pub(super) async fn remove(&self, object: &str) -> Result<(), BackupError> {
        match self.store.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BackupError::store(&self.name, "removing", object, error)),
        }
    }

    fn path(&self, object: &str) -> Path {
        self.prefix.clone().join(object)
    }
}

// === impl Upload ===

impl Upload {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        match self {
            Self::Folder(file) => file.write(bytes).await,
            Self::Objects(upload) => upload.write(bytes).await,
        }
    }

    /// Stores what was written so that it survives whatever comes. If it fails, nothing is left.
    pub(super) async fn stage(self) -> Result<Staged, BackupError> {
        match self {
            Self::Folder(file) => Ok(Staged::Folder(file.stage().await?)),
            Self::Objects(mut upload) => match upload.stage().await {
                Ok(()) => Ok(Staged::Objects(upload)),
                Err(error) => {
                    upload.abort().await;
                    Err(error)
                }
            },
        }
    }

    /// Nothing of it stays.
    pub(super) async fn discard(self) {
        match self {
            Self::Folder(file) => drop(file),
            Self::Objects(upload) => upload.abort().await,
        }
    }
}

// === impl Staged ===

impl Staged {
    /// It shows from here on. If it fails, nothing is left.
    pub(super) async fn publish(self) -> Result<(), BackupError> {
        match self {
            Self::Folder(file) => file.publish().await,
            Self::Objects(mut upload) => {
                let completed = upload.complete().await;
                if completed.is_err() {
                    upload.abort().await;
                }
                completed
            }
        }
    }

    /// Nothing of it stays.
    pub(super) async fn discard(self) {
        match self {
            Self::Folder(file) => drop(file),
            Self::Objects(upload) => upload.abort().await,
        }
    }
}

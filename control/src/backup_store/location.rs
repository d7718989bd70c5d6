//! The location of the backup store: a local directory, or a prefix of a bucket. It contains named
//! objects.

use std::{collections::HashSet, ops::Range, path::Path as FilePath, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use url::Url;

use super::{
    error::{BackupStoreError, OpenStoreError},
    limits::MAX_LISTED_OBJECTS,
    local_dir::{LocalDir, LocalFileWriter, StagedFile},
    multipart::MultipartWriter,
};

#[derive(Debug, Clone)]
pub(super) struct StorageLocation {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    local_dir: Option<LocalDir>,
    /// Name of the store in errors, such as "the backup store /backups".
    name: String,
}

/// An object that is being written and not visible yet.
#[derive(Debug)]
pub(super) enum ObjectWriter {
    LocalDir(LocalFileWriter),
    Multipart(MultipartWriter),
}

/// An object that is completely stored but not visible yet.
#[derive(Debug)]
pub(super) enum StagedObject {
    LocalDir(StagedFile),
    Multipart(MultipartWriter),
}

impl StorageLocation {
    pub(super) fn open(text: &str) -> Result<Self, OpenStoreError> {
        let wrong = |problem: &str| OpenStoreError::Url { url: text.to_owned(), problem: problem.to_owned() };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if url.password().is_some() {
            // Errors are logged, so this one must not contain the URL with its password.
            let (url, problem) = (
                format!("{}:…", url.scheme()),
                "credentials belong in the environment, not in the URL".to_owned(),
            );
            return Err(OpenStoreError::Url { url, problem });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it must not contain \"?\" or \"#\""));
        }
        match url.scheme() {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| wrong("file:// needs an absolute path and no host"))?;
                Self::local_dir(&path)
            }
            "s3" | "gs" | "az" => Self::cloud(&url),
            _ => Err(wrong("its scheme is not supported")),
        }
    }

    fn local_dir(path: &FilePath) -> Result<Self, OpenStoreError> {
        let local_dir = LocalDir::open(path)?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| OpenStoreError::Directory {
            path: path.display().to_string(),
            problem: "cannot be used".to_owned(),
            source: Some(std::io::Error::other(error)),
        })?;
        let name = format!("the backup store {}", path.display());
        Ok(Self { store: Arc::new(store), prefix: Path::default(), local_dir: Some(local_dir), name })
    }

    #[cfg(feature = "cloud")]
    fn cloud(url: &Url) -> Result<Self, OpenStoreError> {
        let (store, prefix) = super::cloud::open(url)?;
        Ok(Self::objects(store, prefix, url.as_str()))
    }

    #[cfg(not(feature = "cloud"))]
    fn cloud(url: &Url) -> Result<Self, OpenStoreError> {
        Err(OpenStoreError::NotBuilt { url: url.to_string() })
    }

    pub(super) fn objects(store: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        Self { store, prefix, local_dir: None, name: format!("the backup store {name}") }
    }

    /// Returns the name of the store in errors.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the names of all objects directly in this location.
    pub(super) async fn names(&self) -> Result<HashSet<String>, BackupStoreError> {
        let names = match &self.local_dir {
            Some(local_dir) => local_dir.names().await?,
            None => {
                let prefix = (!self.prefix.is_root()).then_some(&self.prefix);
                let listed = self.store.list_with_delimiter(prefix).await;
                let listed = listed.map_err(|e| BackupStoreError::store(&self.name, "listing", "it", e))?;
                let name = |object: &object_store::ObjectMeta| object.location.filename().map(str::to_owned);
                listed.objects.iter().filter_map(name).collect()
            }
        };
        if names.len() > MAX_LISTED_OBJECTS {
            return Err(BackupStoreError::TooMany { location: self.name.clone(), most: MAX_LISTED_OBJECTS });
        }
        Ok(names.into_iter().collect())
    }

    /// Returns the size of an object, in bytes.
    pub(super) async fn size(&self, object: &str) -> Result<u64, BackupStoreError> {
        let meta = self.store.head(&self.path(object)).await;
        meta.map(|meta| meta.size).map_err(|e| BackupStoreError::store(&self.name, "inspecting", object, e))
    }

    pub(super) async fn exists(&self, object: &str) -> Result<bool, BackupStoreError> {
        match self.size(object).await {
            Ok(_) => Ok(true),
            Err(BackupStoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a range of an object. Fails if the object ends within the range.
    pub(super) async fn range(&self, object: &str, range: Range<u64>) -> Result<Bytes, BackupStoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let failed = |e| BackupStoreError::store(&self.name, "reading", object, e);
        let bytes = self.store.get_range(&self.path(object), range.clone()).await.map_err(failed)?;
        if bytes.len() as u64 != range.end - range.start {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(BackupStoreError::io(&self.name, &format!("reading {object}"), short));
        }
        Ok(bytes)
    }

    pub(super) async fn upload(&self, object: &str) -> Result<ObjectWriter, BackupStoreError> {
        if let Some(local_dir) = &self.local_dir {
            return Ok(ObjectWriter::LocalDir(local_dir.upload(object).await?));
        }
        let upload = self.store.put_multipart(&self.path(object)).await;
        let upload = upload.map_err(|e| BackupStoreError::store(&self.name, "writing", object, e))?;
        Ok(ObjectWriter::Multipart(MultipartWriter::new(&self.name, object, upload)))
    }

    /// Removes an object. Succeeds if it does not exist.
    pub(super) async fn remove(&self, object: &str) -> Result<(), BackupStoreError> {
        match self.store.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BackupStoreError::store(&self.name, "removing", object, error)),
        }
    }

    fn path(&self, object: &str) -> Path {
        self.prefix.clone().join(object)
    }
}

// === impl ObjectWriter ===

impl ObjectWriter {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupStoreError> {
        match self {
            Self::LocalDir(file) => file.write(bytes).await,
            Self::Multipart(upload) => upload.write(bytes).await,
        }
    }

    /// Makes the object durable. If this fails, nothing of the object remains.
    pub(super) async fn stage(self) -> Result<StagedObject, BackupStoreError> {
        match self {
            Self::LocalDir(file) => Ok(StagedObject::LocalDir(file.stage().await?)),
            Self::Multipart(mut upload) => match upload.stage().await {
                Ok(()) => Ok(StagedObject::Multipart(upload)),
                Err(error) => {
                    upload.abort().await;
                    Err(error)
                }
            },
        }
    }

    /// Removes the part that was written.
    pub(super) async fn discard(self) {
        match self {
            Self::LocalDir(file) => drop(file),
            Self::Multipart(upload) => upload.abort().await,
        }
    }
}

// === impl StagedObject ===

impl StagedObject {
    /// Makes the object visible. If this fails, nothing of the object remains.
    pub(super) async fn publish(self) -> Result<(), BackupStoreError> {
        match self {
            Self::LocalDir(file) => file.publish().await,
            Self::Multipart(mut upload) => {
                let completed = upload.complete().await;
                if completed.is_err() {
                    upload.abort().await;
                }
                completed
            }
        }
    }

    /// Removes the part that was written.
    pub(super) async fn discard(self) {
        match self {
            Self::LocalDir(file) => drop(file),
            Self::Multipart(upload) => upload.abort().await,
        }
    }
}

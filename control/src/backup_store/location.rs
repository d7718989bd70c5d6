//! The location of the backup store: a local directory, or a prefix of a bucket. It contains named
//! objects. Their names derive from the key of an archive.
//!
//! Credentials of buckets come from the environment variables that the tools of each cloud use. The
//! URL never contains credentials, because it is logged.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use rustix::fs::{Advice, fadvise};
use tempfile::TempPath;
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    task::JoinSet,
};
use url::Url;

use super::{
    BLOCK_BYTES, MAX_LISTED_OBJECTS, blocking,
    error::{BackupStoreError, OpenStoreError},
};

pub(super) const PART_PREFIX: &str = ".incoming-";
const PART_SUFFIX: &str = ".part";
/// Age of a partial file, since its last write, from which it is removed. Only a crash leaves such
/// a file.
const PART_STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// Size of an upload's part, in bytes. Clouds accept at most 10,000 parts of at least 5 MiB, so
/// this size suffices for the largest archive. A writer holds at most two parts in memory: the one
/// that it fills and the one that it sends.
const PART_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct StorageLocation {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    local_dir: Option<LocalDir>,
    /// Name of the store in errors, such as "the backup store /backups".
    name: String,
}

/// An object that is being written and not visible yet.
#[derive(Debug)]
pub(crate) enum ObjectWriter {
    LocalDir(LocalFileWriter),
    Multipart(MultipartWriter),
}

/// An object that is completely stored but not visible yet.
#[derive(Debug)]
pub(crate) struct StagedObject(ObjectWriter);

impl StorageLocation {
    pub(crate) fn open(text: &str) -> Result<Self, OpenStoreError> {
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

    /// Opens a bucket. Not by `object_store::parse_url_opts`, which reads fewer variables of the
    /// environment than `from_env` does.
    #[cfg(feature = "cloud")]
    fn cloud(url: &Url) -> Result<Self, OpenStoreError> {
        use object_store::{
            ObjectStoreScheme, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
            gcp::GoogleCloudStorageBuilder,
        };
        // The HTTP client needs an installed TLS provider. This call fails if one is installed
        // already, which is sufficient.
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let text = url.as_str();
        let unknown = |problem: String| OpenStoreError::Url { url: text.to_owned(), problem };
        let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|error| unknown(error.to_string()))?;
        let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                AmazonS3Builder::from_env().with_url(text).build().map(|store| Arc::new(store) as _)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                GoogleCloudStorageBuilder::from_env().with_url(text).build().map(|store| Arc::new(store) as _)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                MicrosoftAzureBuilder::from_env().with_url(text).build().map(|store| Arc::new(store) as _)
            }
            _ => return Err(unknown("its scheme is not supported".to_owned())),
        };
        let unusable = |error| OpenStoreError::Cloud { url: text.to_owned(), source: Box::new(error) };
        Ok(Self::objects(store.map_err(unusable)?, prefix, text))
    }

    #[cfg(not(feature = "cloud"))]
    fn cloud(url: &Url) -> Result<Self, OpenStoreError> {
        Err(OpenStoreError::NotBuilt { url: url.to_string() })
    }

    pub(crate) fn objects(store: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        Self { store, prefix, local_dir: None, name: format!("the backup store {name}") }
    }

    /// Returns the name of the store in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the names of all objects directly in this location.
    pub(crate) async fn names(&self) -> Result<HashSet<String>, BackupStoreError> {
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
    pub(crate) async fn size(&self, object: &str) -> Result<u64, BackupStoreError> {
        let meta = self.store.head(&self.path(object)).await;
        meta.map(|meta| meta.size).map_err(|e| BackupStoreError::store(&self.name, "inspecting", object, e))
    }

    pub(crate) async fn exists(&self, object: &str) -> Result<bool, BackupStoreError> {
        match self.size(object).await {
            Ok(_) => Ok(true),
            Err(BackupStoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a range of an object. Fails if the object ends within the range.
    pub(crate) async fn range(&self, object: &str, range: Range<u64>) -> Result<Bytes, BackupStoreError> {
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

    pub(crate) async fn upload(&self, object: &str) -> Result<ObjectWriter, BackupStoreError> {
        if let Some(local_dir) = &self.local_dir {
            return Ok(ObjectWriter::LocalDir(local_dir.upload(object).await?));
        }
        let upload = self.store.put_multipart(&self.path(object)).await;
        let upload = upload.map_err(|e| BackupStoreError::store(&self.name, "writing", object, e))?;
        Ok(ObjectWriter::Multipart(MultipartWriter::new(&self.name, object, upload)))
    }

    /// Removes an object. Succeeds if it does not exist.
    pub(crate) async fn remove(&self, object: &str) -> Result<(), BackupStoreError> {
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
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupStoreError> {
        match self {
            Self::LocalDir(file) => file.write(bytes).await,
            Self::Multipart(upload) => upload.write(bytes).await,
        }
    }

    /// Makes the object durable. If this fails, nothing of the object remains.
    pub(crate) async fn stage(mut self) -> Result<StagedObject, BackupStoreError> {
        let staged = match &mut self {
            Self::LocalDir(file) => file.stage().await,
            Self::Multipart(upload) => upload.stage().await,
        };
        if let Err(error) = staged {
            self.discard().await;
            return Err(error);
        }
        Ok(StagedObject(self))
    }

    /// Removes the part that was written.
    pub(crate) async fn discard(self) {
        match self {
            Self::LocalDir(file) => drop(file),
            Self::Multipart(upload) => upload.abort().await,
        }
    }
}

// === impl StagedObject ===

impl StagedObject {
    /// Makes the object visible. If this fails, nothing of the object remains.
    pub(crate) async fn publish(self) -> Result<(), BackupStoreError> {
        match self.0 {
            ObjectWriter::LocalDir(file) => file.publish().await,
            ObjectWriter::Multipart(mut upload) => {
                let completed = upload.complete().await;
                if completed.is_err() {
                    upload.abort().await;
                }
                completed
            }
        }
    }

    /// Removes the part that was written.
    pub(crate) async fn discard(self) {
        self.0.discard().await;
    }
}

#[derive(Debug, Clone)]
struct LocalDir {
    path: PathBuf,
    location: String,
}

/// A file that is being written under a temporary name. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct LocalFileWriter {
    location: String,
    target: PathBuf,
    temporary: TempPath,
    file: BufWriter<tokio::fs::File>,
}

impl LocalDir {
    /// Opens the directory. Creates it with mode 0700 if it is missing and its parent exists.
    /// Removes stale partial files. Fails if users other than the owner can write to the directory.
    fn open(path: &FilePath) -> Result<Self, OpenStoreError> {
        let fault = |problem: &str, source| OpenStoreError::Directory {
            path: path.display().to_string(),
            problem: problem.to_owned(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(fault(
                    "has no parent directory; mount its disk or create the parent",
                    Some(error),
                ));
            }
            Err(error) => return Err(fault("cannot be created", Some(error))),
        }
        let meta = fs::metadata(path).map_err(|error| fault("cannot be inspected", Some(error)))?;
        if !meta.is_dir() {
            return Err(fault("is not a directory", None));
        }
        if meta.mode() & 0o022 != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(fault(
                &format!(
                    "is writable by other users (mode {mode:o}); run `chmod 700` on it to protect archives"
                ),
                None,
            ));
        }
        // Reads the directory, so that an unreadable one is reported at the start and not at the
        // first archive.
        remove_stale(path).map_err(|error| fault("cannot be read", Some(error)))?;
        Ok(Self { path: path.to_owned(), location: format!("the backup store {}", path.display()) })
    }

    /// Returns the names of the regular files, except names that are not UTF-8. Stops after one
    /// more than [`MAX_LISTED_OBJECTS`].
    async fn names(&self) -> Result<Vec<String>, BackupStoreError> {
        let path = self.path.clone();
        let names = blocking(move || {
            let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
            let name = |entry: io::Result<fs::DirEntry>| match entry {
                Ok(entry) => Some(Ok(entry.file_name().into_string().ok().filter(|_| is_file(&entry))?)),
                Err(error) => Some(Err(error)),
            };
            fs::read_dir(path)?.filter_map(name).take(MAX_LISTED_OBJECTS + 1).collect()
        });
        names.await.map_err(|e| BackupStoreError::io(&self.location, "listing it", e))
    }

    async fn upload(&self, name: &str) -> Result<LocalFileWriter, BackupStoreError> {
        let (path, location) = (self.path.clone(), self.location.clone());
        let made = blocking(move || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PART_PREFIX).suffix(PART_SUFFIX).permissions(Permissions::from_mode(0o600));
            builder.tempfile_in(path)
        });
        let made = made.await.map_err(|e| BackupStoreError::io(&location, "creating a file", e))?;
        let (file, temporary) = made.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(BLOCK_BYTES);
        let file = BufWriter::with_capacity(BLOCK_BYTES, file);
        Ok(LocalFileWriter { location, target: self.path.join(name), temporary, file })
    }
}

fn remove_stale(path: &FilePath) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|name| name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX));
        let stale = || entry.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        if ours && stale().is_ok_and(|age| age > PART_STALE) {
            tracing::info!(file = %entry.path().display(), "removing partial file of an interrupted write");
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, file = %entry.path().display(), "failed to remove partial file");
            }
        }
    }
    Ok(())
}

impl LocalFileWriter {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupStoreError> {
        self.file.write_all(bytes).await.map_err(|e| BackupStoreError::io(&self.location, "writing", e))
    }

    /// Syncs the file to disk and drops it from the page cache, so that a proof reads the stored
    /// bytes and not cached ones.
    async fn stage(&mut self) -> Result<(), BackupStoreError> {
        let failed = |e| BackupStoreError::io(&self.location, "syncing to disk", e);
        self.file.flush().await.map_err(|e| BackupStoreError::io(&self.location, "writing", e))?;
        let file = self.file.get_ref().try_clone().await.map_err(failed)?.into_std().await;
        let synced = blocking(move || {
            file.sync_all()?;
            // Some file systems ignore this advice.
            let _not_taken = fadvise(&file, 0, None, Advice::DontNeed);
            Ok(())
        });
        synced.await.map_err(failed)
    }

    /// Renames the staged file to its final name, durably. Fails if a file of that name exists.
    async fn publish(self) -> Result<(), BackupStoreError> {
        let Self { location, target, temporary, .. } = self;
        let renamed = blocking(move || {
            temporary.persist_noclobber(&target).map_err(|error| error.error)?;
            let synced = File::open(target.parent().unwrap_or(FilePath::new("/")))
                .and_then(|directory| directory.sync_all());
            if synced.is_err() {
                // The name may not survive a power failure, so the file is not treated as stored.
                let _also_failing = fs::remove_file(&target);
            }
            synced
        });
        renamed.await.map_err(|e| BackupStoreError::io(&location, "naming a file", e))
    }
}

/// An object that is being written. The caller must complete or abort it.
#[derive(Debug)]
pub(crate) struct MultipartWriter {
    location: String,
    name: String,
    upload: Box<dyn MultipartUpload>,
    part: BytesMut,
    /// The upload of the previous part, if it is not finished.
    in_flight: JoinSet<object_store::Result<()>>,
}

impl MultipartWriter {
    fn new(location: &str, name: &str, upload: Box<dyn MultipartUpload>) -> Self {
        let (location, name) = (location.to_owned(), name.to_owned());
        Self { location, name, upload, part: BytesMut::new(), in_flight: JoinSet::new() }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), BackupStoreError> {
        while !bytes.is_empty() {
            if self.part.capacity() == 0 {
                self.part.reserve(PART_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
            if self.part.len() == PART_BYTES {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Waits until the previous part is uploaded, then starts to upload the current one.
    async fn send(&mut self) -> Result<(), BackupStoreError> {
        self.wait_for_part().await?;
        let part = std::mem::take(&mut self.part).freeze();
        self.in_flight.spawn(self.upload.put_part(part.into()));
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<(), BackupStoreError> {
        while let Some(part) = self.in_flight.join_next().await {
            part.unwrap_or_else(|error| Err(error.into())).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Uploads the last part and waits until all parts are uploaded.
    async fn stage(&mut self) -> Result<(), BackupStoreError> {
        if !self.part.is_empty() {
            self.send().await?;
        }
        self.wait_for_part().await
    }

    /// Makes the object visible.
    async fn complete(&mut self) -> Result<(), BackupStoreError> {
        self.upload.complete().await.map(|_| ()).map_err(|error| self.failed(error))
    }

    async fn abort(mut self) {
        self.in_flight.shutdown().await;
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, object = self.name, "failed to abort unfinished upload");
        }
    }

    fn failed(&self, error: object_store::Error) -> BackupStoreError {
        BackupStoreError::store(&self.location, "writing", &self.name, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_created_private_below_existing_parent() {
        let parent = tempfile::tempdir().expect("directory");
        let path = parent.path().join("backups");
        LocalDir::open(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o777, 0o700);
        LocalDir::open(&path).expect("there already");
        let error = LocalDir::open(&path.join("a/b")).expect_err("no parent").to_string();
        assert!(error.contains("a/b") && error.contains("parent"), "{error}");
    }

    #[test]
    fn directory_writable_by_others_is_rejected() {
        let directory = tempfile::tempdir().expect("directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("chmod");
        let error = LocalDir::open(directory.path()).expect_err("shared").to_string();
        assert!(error.contains("1777") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn file_is_rejected_as_directory() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert!(LocalDir::open(file.path()).expect_err("file").to_string().contains("is not a directory"));
    }

    #[test]
    fn open_removes_only_stale_partial_files() {
        let directory = tempfile::tempdir().expect("directory");
        let make = |name: &str, days: u32| {
            let file = File::create(directory.path().join(name)).expect("file");
            let then = std::time::SystemTime::now() - PART_STALE * days;
            file.set_modified(then).expect("time");
        };
        make(".incoming-old.part", 2);
        make(".incoming-new.part", 0);
        make("other.part", 2);
        LocalDir::open(directory.path()).expect("open");
        let left = |name: &str| directory.path().join(name).exists();
        assert!(!left(".incoming-old.part") && left(".incoming-new.part") && left("other.part"));
    }
}

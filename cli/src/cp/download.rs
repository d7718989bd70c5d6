//! From a workspace to here.

use std::{
    fs::{File as StdFile, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::SystemTime,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use podling_proto::agent::v1::{Entry, ReadFileRequest, ReadFileResponse};
use tokio::{
    fs,
    io::{AsyncWriteExt as _, BufWriter},
    time::sleep,
};
use tonic::{Status, Streaming};

use super::{
    AT_ONCE, TRIES,
    place::RemotePath,
    plan::{File, Plan},
};
use crate::{
    backoff::{Backoff, is_broken_link},
    client::Inside,
    failure::Failure,
    stdio::Stdio,
    unfinished::Unfinished,
};

/// Carries out a plan.
pub async fn download(
    inside: &Inside,
    plan: Plan<RemotePath, PathBuf>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    for folder in &plan.folders {
        let making = || Failure::io(format!("cannot make the folder {}", folder.display()));
        fs::create_dir_all(folder).await.map_err(making())?;
    }
    let copies = stream::iter(plan.files).map(|file| async move { one(inside, &file, bar).await });
    copies.buffer_unordered(AT_ONCE).try_collect().await
}

/// A file to standard output; answers with its length.
pub async fn to_stdout(inside: &Inside, from: &RemotePath, bar: &ProgressBar) -> Result<u64, Failure> {
    let stdout = Stdio::stdout().map_err(Failure::io("cannot write to standard output"))?;
    let mut reader = Reader::new(inside, from);
    while let Some(data) = reader.next().await? {
        match stdout.write_all(&data).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            result => result.map_err(Failure::io("cannot write to standard output"))?,
        }
        bar.inc(data.len() as u64);
    }
    Ok(reader.offset)
}

async fn one(inside: &Inside, file: &File<RemotePath, PathBuf>, bar: &ProgressBar) -> Result<(), Failure> {
    bar.set_message(file.from.show());
    let unfinished = Unfinished::beside(&file.to);
    let writing = || Failure::io(format!("cannot write {}", file.to.display()));
    let options = StdFile::options().write(true).create_new(true).clone();
    let created = fs::OpenOptions::from(options).open(unfinished.path()).await.map_err(writing())?;
    let mut local = BufWriter::new(created);
    let mut reader = Reader::new(inside, &file.from);
    while let Some(data) = reader.next().await? {
        local.write_all(&data).await.map_err(writing())?;
        bar.inc(data.len() as u64);
    }
    local.flush().await.map_err(writing())?;
    let local = local.into_inner().into_std().await;
    // Permissions of this side's owner, group and others; nothing that runs as somebody else.
    local.set_permissions(Permissions::from_mode(file.mode & 0o777)).map_err(writing())?;
    if let Some(modified) = file.modified {
        local.set_modified(modified).map_err(writing())?;
    }
    fs::rename(unfinished.path(), &file.to).await.map_err(writing())
}

/// Reads a file over as many links as it takes.
struct Reader<'a> {
    inside: &'a Inside,
    path: &'a RemotePath,
    offset: u64,
    first: Option<Version>,
    stream: Option<Streaming<ReadFileResponse>>,
    backoff: Backoff,
    tries: u32,
}

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: Option<SystemTime>,
}

impl<'a> Reader<'a> {
    fn new(inside: &'a Inside, path: &'a RemotePath) -> Self {
        Self { inside, path, offset: 0, first: None, stream: None, backoff: Backoff::default(), tries: 0 }
    }

    /// The next piece; `None` at the end of a file that was read whole.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        loop {
            match self.message().await {
                Ok(Some(message)) => {
                    self.check(message.stat)?;
                    (self.tries, self.backoff) = (0, Backoff::default());
                    self.offset += message.data.len() as u64;
                    if !message.data.is_empty() {
                        return Ok(Some(message.data));
                    }
                }
                Ok(None) if self.first.is_some_and(|first| self.offset < first.size) => {
                    return Err(self.changed());
                }
                Ok(None) => return Ok(None),
                Err(status) if is_broken_link(&status) && self.tries < TRIES => {
                    self.stream = None;
                    self.tries += 1;
                    sleep(self.backoff.step()).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn message(&mut self) -> Result<Option<ReadFileResponse>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request =
                    ReadFileRequest { path: Some(self.path.wire()), offset: self.offset, length: 0 };
                self.stream.insert(self.inside.files().read(request).await?.into_inner())
            }
        };
        stream.message().await
    }

    /// A stream that goes on after a broken link must go on with the same file.
    fn check(&mut self, stat: Option<Entry>) -> Result<(), Failure> {
        let Some(stat) = stat else { return Ok(()) };
        let modified = stat.modified.and_then(|at| SystemTime::try_from(at).ok());
        let version = Version { size: stat.size, modified };
        match self.first.replace(version) {
            Some(first) if first != version && self.offset > 0 => Err(self.changed()),
            _ => Ok(()),
        }
    }

    fn changed(&self) -> Failure {
        Failure::Other(format!("{} changed while it was read; nothing was written", self.path.show()))
    }
}

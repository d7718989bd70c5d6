//! `podling export`: saves a workspace as a zip.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _, path::PathBuf};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};
use podling_proto::agent::v1::{
    ArchiveDone, ArchiveProgress, CreateArchiveRequest, create_archive_response::Message,
};
use ring::digest::{Context as Digest, SHA256};
use serde::Serialize;
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
};

use super::cp::endpoint;
use crate::{
    client::Context,
    failure::{self, CommandFailure},
    local_file::{self, LocalStream, PartialFile},
    notice, output,
    signal::until_signal,
    spinner::WakeSpinner,
};

const EXAMPLES: &str = "\
Example:
  podling export demo demo.zip --path src --ignore '*.pyc' --ignore target/";

/// Save a workspace or one of its directories as a zip
///
/// The zip contains permissions, modification times, symbolic links and empty directories. Files
/// that cannot be read, or that change while they are read, are listed. In that case the zip is
/// still written, and the exit code is 6.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// Name or id of the workspace
    workspace: String,
    /// File to write, or "-" for standard output [default: WORKSPACE.zip]
    file: Option<PathBuf>,
    /// Export only this directory, relative to the root of the workspace
    #[arg(long, value_name = "DIR")]
    path: Option<OsString>,
    /// Skip paths that match this .gitignore pattern; may be repeated
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Skip paths that the workspace's own .gitignore and .ignore files exclude
    #[arg(long)]
    ignore_files: bool,
}

/// Result of an export, as `--json` prints it.
#[derive(Debug, Serialize)]
struct ExportSummary {
    file: String,
    entries: u64,
    bytes: u64,
    archive_bytes: u64,
    sha256: String,
    skipped: Vec<IncompleteEntry>,
    skipped_count: u64,
}

#[derive(Debug, Serialize)]
struct IncompleteEntry {
    path: String,
    why: String,
}

/// Permission bits of the zip, to which the umask applies.
const FILE_MODE: u32 = 0o666;

/// Destination of the zip.
enum ZipSink {
    Stream(LocalStream),
    File { file: File, partial_file: PartialFile, path: PathBuf },
}

impl ExportArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        until_signal(self.export(context)).await
    }

    async fn export(self, context: &Context) -> Result<u8, CommandFailure> {
        let path = endpoint::parse_remote(self.path.as_deref().unwrap_or_default().as_bytes())?;
        let file = self.file.unwrap_or_else(|| PathBuf::from(format!("{}.zip", self.workspace)));
        let client = context.client().await?;
        let workspace = client.find(&self.workspace).await?;
        let workspace_client = client.workspace_client_for(&workspace);
        // The gateway holds the call until the workspace is awake or restored.
        let wake_spinner = WakeSpinner::new(client, workspace.id);
        let request = CreateArchiveRequest {
            path: Some(endpoint::to_wire(&path)),
            preservation: false,
            ignore: self.ignore,
            ignore_files: self.ignore_files,
        };
        let mut answers =
            wake_spinner.show_during(workspace_client.archives().create(request)).await?.into_inner();
        let to_stdout = file.as_os_str() == "-";
        let mut sink = ZipSink::open(file).await?;
        let mut bar = output::bytes_bar(None);
        let mut digest = Digest::new(&SHA256);
        let mut end = None;
        while let Some(answer) = answers.message().await? {
            match answer.message {
                Some(Message::Data(data)) => {
                    digest.update(&data);
                    sink.write(&data).await?;
                }
                Some(Message::Progress(progress)) => update_bar(&mut bar, progress),
                Some(Message::Done(last)) => end = Some(last),
                // Entries repeat the manifest of the zip.
                Some(Message::Entry(_)) | None => {}
            }
        }
        bar.finish_and_clear();
        let end = end.ok_or_else(|| {
            CommandFailure::Other(format!(
                "cannot export {}: the stream ended early; try again",
                self.workspace
            ))
        })?;
        if digest.finish().as_ref() != end.archive_sha256 {
            return Err(CommandFailure::Other(format!(
                "cannot export {}: the zip arrived with a wrong checksum; try again",
                self.workspace
            )));
        }
        let summary = ExportSummary::new(sink.finish().await?, end);
        summary.report(context.json(), to_stdout)?;
        Ok(if summary.skipped_count > 0 { failure::INCOMPLETE } else { failure::OK })
    }
}

fn update_bar(bar: &mut ProgressBar, progress: ArchiveProgress) {
    if progress.total_bytes > 0 && bar.length().is_none() {
        bar.finish_and_clear();
        *bar = output::bytes_bar(Some(progress.total_bytes));
    }
    bar.set_position(progress.bytes);
    bar.set_message(format!("{} entries", progress.entries));
}

impl ZipSink {
    async fn open(path: PathBuf) -> Result<Self, CommandFailure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stream(LocalStream::stdout()?));
        }
        if local_file::is_special(&path) {
            return Ok(Self::Stream(LocalStream::sink(&path).await?));
        }
        if path.is_dir() {
            let message = format!("cannot write {}: it is a directory; name a file in it", path.display());
            return Err(CommandFailure::Usage(message));
        }
        let path = local_file::replaced_path(path);
        let created = PartialFile::create_beside(&path, FILE_MODE);
        let (partial_file, file) =
            created.map_err(CommandFailure::io(format!("cannot write {}", path.display())))?;
        Ok(Self::File { file: File::from_std(file), partial_file, path })
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), CommandFailure> {
        match self {
            Self::Stream(sink) => sink.write_all(data).await,
            Self::File { file, path, .. } => {
                let written = file.write_all(data).await;
                written.map_err(CommandFailure::io(format!("cannot write {}", path.display())))
            }
        }
    }

    /// Completes the file and gives it its name. Returns the name.
    async fn finish(self) -> Result<String, CommandFailure> {
        let (mut file, partial_file, path) = match self {
            Self::Stream(sink) => return Ok(sink.name().to_owned()),
            Self::File { file, partial_file, path } => (file, partial_file, path),
        };
        let write_error = || CommandFailure::io(format!("cannot write {}", path.display()));
        file.flush().await.map_err(write_error())?;
        file.sync_all().await.map_err(write_error())?;
        fs::rename(partial_file.path(), &path).await.map_err(write_error())?;
        Ok(path.display().to_string())
    }
}

impl ExportSummary {
    fn new(file: String, done: ArchiveDone) -> Self {
        let skipped = done.skipped.into_iter().map(|skipped| IncompleteEntry {
            path: match output::plain(&String::from_utf8_lossy(&skipped.path)) {
                path if path.is_empty() => ".".to_owned(),
                path => path,
            },
            why: output::plain(&skipped.reason),
        });
        Self {
            file,
            entries: done.entries,
            bytes: done.bytes,
            archive_bytes: done.archive_bytes,
            sha256: done.archive_sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            skipped: skipped.collect(),
            skipped_count: done.skipped_count,
        }
    }

    fn report(&self, json: bool, to_stdout: bool) -> Result<(), CommandFailure> {
        for skipped in &self.skipped {
            notice!("incomplete: {}: {}", skipped.path, skipped.why);
        }
        let unnamed = self.skipped_count.saturating_sub(self.skipped.len() as u64);
        if unnamed > 0 {
            notice!("incomplete: {unnamed} more");
        }
        if to_stdout {
            return Ok(());
        }
        if json {
            return output::json(self);
        }
        let (content, zip) = (HumanBytes(self.bytes), HumanBytes(self.archive_bytes));
        output::line(&format!("{}: {} entries, {content} in {zip}", output::plain(&self.file), self.entries))
    }
}

//! `podling cp`: copies files between this machine and a workspace.
//!
//! [`plan`] lists the files of a [`tree`]. [`copy`] copies them, in the direction of [`upload`] or
//! [`download`]. Paths in a workspace are relative to its root.

pub mod copy;
pub mod download;
pub mod endpoint;
pub mod plan;
pub mod skipped;
pub mod tree;
pub mod upload;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::HumanBytes;
use podling_proto::{agent::v1::FileKind, error::Reason};

use self::{
    copy::CopyTally,
    download::Download,
    endpoint::CopyEndpoint,
    plan::{CopyDirectory, SymlinkPolicy},
    skipped::CopyFailure,
    tree::{FileLister, LocalTree, RemoteTree},
    upload::Upload,
};
use crate::{
    client::{Context, WorkspaceClient},
    failure::{self, CommandFailure},
    local_file::{self, LocalStream},
    notice,
    output::{self, counted},
    signal::until_signal,
    spinner::WakeSpinner,
};

const EXAMPLES: &str = "\
Examples:
  podling cp src demo:            copy the directory src into the root of demo
  podling cp demo:out/log.txt .   copy a file to the current directory
  podling cp demo:data.csv -      print a file
  podling cp ./12:30.log demo:    copy a local file whose name contains a colon";

/// Copy files and directories to or from a workspace
///
/// One side is NAME:PATH, where PATH is relative to the root of the workspace. The other side is a
/// local path, or "-" for standard input or output. A local path with a colon is written ./PATH.
///
/// A directory is copied with its contents. If the destination is an existing directory or ends
/// with "/", SRC is copied into it; otherwise the copy gets the name DST. SRC/. copies only the
/// contents. A file arrives completely or not at all, and keeps its permissions and modification
/// time. A new directory gets the permissions of its source.
///
/// A path inside a directory that cannot be copied is left out and listed with the reason, and the
/// other paths are copied. The exit code is then 6.
///
/// SRC itself may be a symbolic link, which is followed. Symbolic links inside a directory are left
/// out and listed; -L copies their targets. A link to a directory that contains it is left out.
///
/// If SRC is a pipe or a device on this machine, its content is copied. If DST is one, the content
/// is written to it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CpArgs {
    /// Source: NAME:PATH, a local path, or "-" for standard input
    #[arg(value_name = "SRC")]
    from: OsString,
    /// Destination: NAME:PATH, a local path, or "-" for standard output
    #[arg(value_name = "DST")]
    to: OsString,
    /// Copy the targets of symbolic links inside directories
    #[arg(short = 'L', long)]
    follow: bool,
    /// Leave out symbolic links inside directories without listing them
    #[arg(long, conflicts_with = "follow")]
    skip_links: bool,
}

impl CpArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let mut tally = CopyTally::default();
        let copied = until_signal(self.copy(context, &mut tally)).await;
        for skipped in &tally.skipped {
            notice!("left out: {}: {}", skipped.path, skipped.why);
        }
        if let Err(failure) = copied {
            if tally.planned_files > 1 {
                notice!("podling: stopped after {} of {} files", tally.files, tally.planned_files);
            }
            return Err(failure);
        }
        // The summary must not be mixed with the content of a file.
        if self.to != "-" {
            report(&tally, context.json())?;
        }
        Ok(if tally.skipped.is_empty() { failure::OK } else { failure::INCOMPLETE })
    }

    async fn copy(&self, context: &Context, tally: &mut CopyTally) -> Result<(), CommandFailure> {
        match (CopyEndpoint::parse(&self.from)?, CopyEndpoint::parse(&self.to)?) {
            (CopyEndpoint::Remote { workspace, path, .. }, CopyEndpoint::Stdio) => {
                let (workspace_client, wake_spinner) = connect(context, &workspace, &self.from).await?;
                let stdout = LocalStream::stdout()?;
                let copied = download::download_to_stream(&workspace_client, &path, &stdout, tally);
                wake_spinner.show_during(copied).await
            }
            (CopyEndpoint::Remote { workspace, path, .. }, CopyEndpoint::Local(to)) => {
                let (workspace_client, wake_spinner) = connect(context, &workspace, &self.from).await?;
                if local_file::is_special(&to) {
                    let sink = LocalStream::sink(&to).await?;
                    let copied = download::download_to_stream(&workspace_client, &path, &sink, tally);
                    return wake_spinner.show_during(copied).await;
                }
                wake_spinner.show_during(self.download(&workspace_client, path, to, tally)).await
            }
            (CopyEndpoint::Stdio, CopyEndpoint::Remote { workspace, path, .. }) => {
                let (workspace_client, wake_spinner) = connect(context, &workspace, &self.to).await?;
                let stdin = LocalStream::stdin()?;
                let copied = upload::upload_from_stream(&workspace_client, &stdin, &path, tally);
                wake_spinner.show_during(copied).await
            }
            (CopyEndpoint::Local(from), CopyEndpoint::Remote { workspace, path, is_directory }) => {
                let (workspace_client, wake_spinner) = connect(context, &workspace, &self.to).await?;
                let copied = self.upload(&workspace_client, &from, path, is_directory, tally);
                wake_spinner.show_during(copied).await
            }
            (CopyEndpoint::Remote { .. }, CopyEndpoint::Remote { .. }) => {
                let message = "cannot copy between two workspaces; \
                               copy to a local path first, and from there to the other workspace";
                Err(CommandFailure::Usage(message.to_owned()))
            }
            _ => {
                let message = "cannot copy between two local paths; write one of them as NAME:PATH";
                Err(CommandFailure::Usage(message.to_owned()))
            }
        }
    }

    fn symlinks(&self) -> SymlinkPolicy {
        match (self.follow, self.skip_links) {
            (true, _) => SymlinkPolicy::Follow,
            (false, true) => SymlinkPolicy::Ignore,
            (false, false) => SymlinkPolicy::Skip,
        }
    }

    async fn upload(
        &self,
        workspace_client: &WorkspaceClient,
        from: &Path,
        to: PathBuf,
        is_directory: bool,
        tally: &mut CopyTally,
    ) -> Result<(), CommandFailure> {
        let to = if names_contents(from.as_os_str()) {
            to
        } else if is_directory || is_remote_directory(workspace_client, &to).await? {
            to.join(local_name(from)?)
        } else {
            to
        };
        let parent = to.parent().filter(|_| is_directory);
        let parent = parent.map(|to| CopyDirectory { from: from.to_owned(), to: to.to_owned(), mode: None });
        if local_file::is_special(from) {
            let source = LocalStream::source(from).await?;
            if let Some(parent) = parent {
                upload::make_directory(workspace_client, &parent.to, 0).await?;
            }
            return upload::upload_from_stream(workspace_client, &source, &to, tally).await;
        }
        let mut plan = plan::plan_copy(&LocalTree, from, &to, self.symlinks()).await?;
        if plan.directories.is_empty() {
            plan.directories.extend(parent);
        }
        copy::copy_all(&Upload(workspace_client), plan, tally).await
    }

    async fn download(
        &self,
        workspace_client: &WorkspaceClient,
        from: PathBuf,
        to: PathBuf,
        tally: &mut CopyTally,
    ) -> Result<(), CommandFailure> {
        let into = !names_contents(&self.from) && (to.as_os_str().as_bytes().ends_with(b"/") || to.is_dir());
        // The root of a workspace has no name, so its contents are copied.
        let target = match from.file_name().filter(|_| into) {
            Some(name) => to.join(name),
            None => local_file::replaced_path(to.clone()),
        };
        let mut plan =
            plan::plan_copy(&RemoteTree(workspace_client), &from, &target, self.symlinks()).await?;
        if into && plan.directories.is_empty() {
            plan.directories.push(CopyDirectory { from: to.clone(), to, mode: None });
        }
        copy::copy_all(&Download(workspace_client), plan, tally).await
    }
}

/// Connects to the workspace that `argument` names, and returns the spinner that shows what a copy
/// waits for. If there is no such workspace, but a local file has the name `argument`, the failure
/// says how to write that file.
async fn connect(
    context: &Context,
    workspace: &str,
    argument: &OsStr,
) -> Result<(WorkspaceClient, WakeSpinner), CommandFailure> {
    let client = context.client().await?;
    let missing = match client.find(workspace).await {
        Ok(found) => {
            let workspace_client = client.workspace_client_for(&found);
            return Ok((workspace_client, WakeSpinner::new(client, found.id)));
        }
        Err(failure) if failure.exit_code() == failure::NOT_FOUND => failure,
        Err(failure) => return Err(failure),
    };
    if !Path::new(argument).exists() {
        return Err(missing);
    }
    let file = output::plain(&argument.to_string_lossy());
    Err(missing.with_advice(format!("to copy the local file {file}, write it as ./{file}")))
}

fn report(tally: &CopyTally, json: bool) -> Result<(), CommandFailure> {
    if json {
        return output::json(tally);
    }
    let (files, bytes) = (counted(tally.files as u64, "file", "files"), HumanBytes(tally.bytes));
    match tally.skipped.len() {
        0 => output::line(&format!("copied {files}, {bytes}")),
        skipped => {
            let skipped = counted(skipped as u64, "path was", "paths were");
            output::line(&format!("copied {files}, {bytes}; {skipped} left out"))
        }
    }
}

/// Returns whether the path names the contents of a directory, not the directory itself.
fn names_contents(path: &OsStr) -> bool {
    path == "." || path.as_bytes().ends_with(b"/.")
}

fn local_name(path: &Path) -> Result<OsString, CommandFailure> {
    // A path such as ".." has no name of its own, but its target has one.
    let whole = || path.canonicalize().ok()?.file_name().map(OsStr::to_owned);
    path.file_name().map(OsStr::to_owned).or_else(whole).ok_or_else(|| {
        CommandFailure::Usage(format!(
            "{} has no file name; name the destination, for example NAME:PATH",
            path.display()
        ))
    })
}

async fn is_remote_directory(
    workspace_client: &WorkspaceClient,
    path: &Path,
) -> Result<bool, CommandFailure> {
    match RemoteTree(workspace_client).stat(path, true).await {
        Ok(entry) => Ok(entry.kind() == FileKind::Directory),
        Err(missing) if missing.failure.reason() == Some(Reason::PathNotFound) => Ok(false),
        Err(CopyFailure { failure, .. }) => Err(failure),
    }
}

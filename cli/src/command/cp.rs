//! `podling cp`: copies files between this machine and a workspace.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::HumanBytes;
use podling_proto::agent::v1::FileKind;
use serde::Serialize;

use crate::{
    client::WorkspaceClient,
    context::Context,
    cp::{
        download,
        endpoint::{CopyEndpoint, RemotePath},
        plan::{self, SymlinkPolicy},
        upload,
    },
    failure::{self, CommandFailure},
    output,
};

const EXAMPLES: &str = "\
Examples:
  podling cp src demo:            copy the directory src into the root of demo
  podling cp demo:out/log.txt .   copy a file to the current directory
  podling cp demo:data.csv -      print a file";

/// Copy files and directories to or from a workspace
///
/// One side is NAME:PATH, where PATH is relative to the root of the workspace. The other side is a
/// local path, or "-" for standard input or output.
///
/// A directory is copied with its contents. If the destination is an existing directory or ends
/// with "/", SRC is copied into it; otherwise the copy gets the name DST. SRC/. copies only the
/// contents. A file arrives completely or not at all, and keeps its permissions and modification
/// time.
///
/// SRC itself may be a symbolic link, which is followed. Symbolic links inside a directory are
/// skipped and listed; -L copies their targets.
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
}

/// Result of a copy, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
struct CopySummary {
    files: usize,
    directories: usize,
    bytes: u64,
    skipped: Vec<SkippedPath>,
}

#[derive(Debug, Serialize)]
struct SkippedPath {
    path: String,
    why: &'static str,
}

impl CpArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let parse = |text: &OsStr| {
            CopyEndpoint::parse(text).map_err(|error| CommandFailure::Usage(error.to_string()))
        };
        let symlinks = if self.follow { SymlinkPolicy::Follow } else { SymlinkPolicy::Skip };
        let (from, to) = (parse(&self.from)?, parse(&self.to)?);
        let to_stdout = to == CopyEndpoint::Stdio;
        let summary = match (from, to) {
            (
                CopyEndpoint::Remote { workspace, path, .. },
                to @ (CopyEndpoint::Local(_) | CopyEndpoint::Stdio),
            ) => {
                let workspace_client = context.client().await?.workspace_client(&workspace).await?;
                let contents = names_contents(&self.from);
                match to {
                    CopyEndpoint::Local(to) => {
                        download_path(&workspace_client, path, to, contents, symlinks).await?
                    }
                    _ => download_stdout(&workspace_client, &path).await?,
                }
            }
            (
                from @ (CopyEndpoint::Local(_) | CopyEndpoint::Stdio),
                CopyEndpoint::Remote { workspace, path, is_directory },
            ) => {
                let workspace_client = context.client().await?.workspace_client(&workspace).await?;
                match from {
                    CopyEndpoint::Local(from) => {
                        upload_path(&workspace_client, &from, path, is_directory, symlinks).await?
                    }
                    _ => upload_stdin(&workspace_client, &path).await?,
                }
            }
            (CopyEndpoint::Remote { .. }, CopyEndpoint::Remote { .. }) => {
                let message = "cannot copy between two workspaces; \
                             copy to a local path first, and from there to the other workspace";
                return Err(CommandFailure::Usage(message.to_owned()));
            }
            _ => {
                let message =
                    "cannot copy between two local paths; write one of them as NAME:PATH".to_owned();
                return Err(CommandFailure::Usage(message));
            }
        };
        report(&summary, context.json() && !to_stdout, to_stdout)?;
        Ok(0)
    }
}

async fn upload_path(
    workspace_client: &WorkspaceClient,
    from: &Path,
    to: RemotePath,
    is_directory: bool,
    symlinks: SymlinkPolicy,
) -> Result<CopySummary, CommandFailure> {
    let to = if names_contents(from.as_os_str()) {
        to
    } else if is_directory || is_remote_directory(workspace_client, &to).await? {
        to.join(&local_name(from)?)
    } else {
        to
    };
    let mut plan = plan::plan_upload(from, to.clone(), symlinks)?;
    if is_directory && plan.directories.is_empty() {
        plan.directories.extend(to.parent());
    }
    let summary = CopySummary::of(&plan);
    let bar = output::bytes_bar(Some(plan.bytes()));
    upload::upload(workspace_client, plan, &bar).await?;
    bar.finish_and_clear();
    Ok(summary)
}

async fn download_path(
    workspace_client: &WorkspaceClient,
    from: RemotePath,
    to: PathBuf,
    contents: bool,
    symlinks: SymlinkPolicy,
) -> Result<CopySummary, CommandFailure> {
    let into = !contents && (to.as_os_str().as_bytes().ends_with(b"/") || to.is_dir());
    // The root of a workspace has no name, so its contents are copied.
    let target = match from.name().filter(|_| into) {
        Some(name) => to.join(name),
        None => to.clone(),
    };
    let mut plan = plan::plan_download(workspace_client, from, target, symlinks).await?;
    if into && plan.directories.is_empty() {
        plan.directories.push(to);
    }
    let summary = CopySummary::of(&plan);
    let bar = output::bytes_bar(Some(plan.bytes()));
    download::download(workspace_client, plan, &bar).await?;
    bar.finish_and_clear();
    Ok(summary)
}

async fn upload_stdin(
    workspace_client: &WorkspaceClient,
    to: &RemotePath,
) -> Result<CopySummary, CommandFailure> {
    let bar = output::bytes_bar(None);
    let bytes = upload::upload_stdin(workspace_client, to, &bar).await?;
    bar.finish_and_clear();
    Ok(CopySummary { files: 1, bytes, ..CopySummary::default() })
}

async fn download_stdout(
    workspace_client: &WorkspaceClient,
    from: &RemotePath,
) -> Result<CopySummary, CommandFailure> {
    let bar = output::bytes_bar(None);
    let bytes = download::download_to_stdout(workspace_client, from, &bar).await?;
    bar.finish_and_clear();
    Ok(CopySummary { files: 1, bytes, ..CopySummary::default() })
}

impl CopySummary {
    fn of<F, T>(plan: &plan::CopyPlan<F, T>) -> Self {
        let skipped =
            plan.skipped.iter().map(|(path, why)| SkippedPath { path: path.clone(), why }).collect();
        Self { files: plan.files.len(), directories: plan.directories.len(), bytes: plan.bytes(), skipped }
    }
}

fn report(summary: &CopySummary, json: bool, quiet: bool) -> Result<(), CommandFailure> {
    for skipped in &summary.skipped {
        eprintln!("skipped: {}: {}", skipped.path, skipped.why);
    }
    if json {
        output::json(summary)
    } else if quiet {
        Ok(())
    } else {
        let files = if summary.files == 1 { "1 file" } else { &format!("{} files", summary.files) };
        output::line(&format!("copied {files}, {}", HumanBytes(summary.bytes)))
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
    path: &RemotePath,
) -> Result<bool, CommandFailure> {
    match plan::stat(workspace_client, path).await {
        Ok(entry) => Ok(entry.kind() == FileKind::Directory),
        Err(failure) if failure.exit_code() == failure::NOT_FOUND => Ok(false),
        Err(failure) => Err(failure),
    }
}

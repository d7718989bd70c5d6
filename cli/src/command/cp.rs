//! `podling cp`: files and folders between here and a workspace.

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
    client::Inside,
    context::Context,
    cp::{
        download,
        place::{Place, RemotePath},
        plan::{self, Links},
        upload,
    },
    failure::{self, Failure},
    output,
};

/// Copy files and folders between here and a workspace
///
/// One side is NAME:PATH, with PATH relative to the workspace's root; the other is a path here, or "-" for standard input
/// or output. A folder is copied with all that is in it: to a folder that exists (or a path that ends with "/") it goes
/// inside, otherwise it gets that name; SRC/. copies what is in it. A file arrives whole or not at all, with its permissions
/// and its time of change.
///
/// A symbolic link that is named is followed. Links inside a folder are left out and listed; -L copies what they point to.
#[derive(Debug, Args)]
pub struct Cp {
    /// Where from: NAME:PATH, a path here, or "-".
    from: OsString,
    /// Where to.
    to: OsString,
    /// Copy what symbolic links inside folders point to.
    #[arg(short = 'L', long)]
    follow: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Done {
    files: usize,
    folders: usize,
    bytes: u64,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
struct Skipped {
    path: String,
    why: &'static str,
}

impl Cp {
    /// Copies.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let place = |text: &OsStr| Place::parse(text).map_err(|error| Failure::Usage(error.to_string()));
        let links = if self.follow { Links::Follow } else { Links::Skip };
        let (from, to) = (place(&self.from)?, place(&self.to)?);
        let to_stdout = to == Place::Stdio;
        let done = match (from, to) {
            (Place::There { workspace, path, .. }, to @ (Place::Here(_) | Place::Stdio)) => {
                let inside = context.client().await?.inside(&workspace).await?;
                let contents = is_contents(&self.from);
                match to {
                    Place::Here(to) => get(&inside, path, to, contents, links).await?,
                    _ => get_stdout(&inside, &path).await?,
                }
            }
            (from @ (Place::Here(_) | Place::Stdio), Place::There { workspace, path, folder }) => {
                let inside = context.client().await?.inside(&workspace).await?;
                match from {
                    Place::Here(from) => put(&inside, &from, path, folder, links).await?,
                    _ => put_stdin(&inside, &path).await?,
                }
            }
            (Place::There { .. }, Place::There { .. }) => {
                let words =
                    "one of the two must be here: copy to a path here first, and from there to the other";
                return Err(Failure::Usage(words.to_owned()));
            }
            _ => {
                let words = "one of the two must be in a workspace: NAME:PATH".to_owned();
                return Err(Failure::Usage(words));
            }
        };
        report(&done, context.json() && !to_stdout, to_stdout)?;
        Ok(0)
    }
}

async fn put(
    inside: &Inside,
    from: &Path,
    to: RemotePath,
    folder: bool,
    links: Links,
) -> Result<Done, Failure> {
    let to = if is_contents(from.as_os_str()) {
        to
    } else if folder || is_folder(inside, &to).await? {
        to.join(&local_name(from)?)
    } else {
        to
    };
    let mut plan = plan::from_here(from, to.clone(), links)?;
    if folder && plan.folders.is_empty() {
        plan.folders.extend(to.parent());
    }
    let done = Done::of(&plan);
    let bar = output::bytes_bar(Some(plan.bytes()));
    upload::upload(inside, plan, &bar).await?;
    bar.finish_and_clear();
    Ok(done)
}

async fn get(
    inside: &Inside,
    from: RemotePath,
    to: PathBuf,
    contents: bool,
    links: Links,
) -> Result<Done, Failure> {
    let into = !contents && (to.as_os_str().as_bytes().ends_with(b"/") || to.is_dir());
    // The root has no name of its own: what is in it is copied.
    let target = match from.name().filter(|_| into) {
        Some(name) => to.join(name),
        None => to.clone(),
    };
    let mut plan = plan::from_there(inside, from, target, links).await?;
    if into && plan.folders.is_empty() {
        plan.folders.push(to);
    }
    let done = Done::of(&plan);
    let bar = output::bytes_bar(Some(plan.bytes()));
    download::download(inside, plan, &bar).await?;
    bar.finish_and_clear();
    Ok(done)
}

async fn put_stdin(inside: &Inside, to: &RemotePath) -> Result<Done, Failure> {
    let bar = output::bytes_bar(None);
    let bytes = upload::from_stdin(inside, to, &bar).await?;
    bar.finish_and_clear();
    Ok(Done { files: 1, bytes, ..Done::default() })
}

async fn get_stdout(inside: &Inside, from: &RemotePath) -> Result<Done, Failure> {
    let bar = output::bytes_bar(None);
    let bytes = download::to_stdout(inside, from, &bar).await?;
    bar.finish_and_clear();
    Ok(Done { files: 1, bytes, ..Done::default() })
}

impl Done {
    fn of<F, T>(plan: &plan::Plan<F, T>) -> Self {
        let skipped = plan.skipped.iter().map(|(path, why)| Skipped { path: path.clone(), why }).collect();
        Self { files: plan.files.len(), folders: plan.folders.len(), bytes: plan.bytes(), skipped }
    }
}

fn report(done: &Done, json: bool, quiet: bool) -> Result<(), Failure> {
    for skipped in &done.skipped {
        eprintln!("left out: {}: {}", skipped.path, skipped.why);
    }
    if json {
        output::json(done)
    } else if quiet {
        Ok(())
    } else {
        let files = if done.files == 1 { "1 file" } else { &format!("{} files", done.files) };
        output::line(&format!("copied {files}, {}", HumanBytes(done.bytes)))
    }
}

/// Whether what is in the folder is meant, and not the folder.
fn is_contents(path: &OsStr) -> bool {
    path == "." || path.as_bytes().ends_with(b"/.")
}

fn local_name(path: &Path) -> Result<OsString, Failure> {
    // "..", say, has none; the folder it stands for has.
    let whole = || path.canonicalize().ok()?.file_name().map(OsStr::to_owned);
    path.file_name().map(OsStr::to_owned).or_else(whole).ok_or_else(|| {
        Failure::Usage(format!("{} has no name that it could have there; say one", path.display()))
    })
}

async fn is_folder(inside: &Inside, path: &RemotePath) -> Result<bool, Failure> {
    match plan::stat(inside, path).await {
        Ok(entry) => Ok(entry.kind() == FileKind::Folder),
        Err(failure) if failure.exit_code() == failure::NOT_FOUND => Ok(false),
        Err(failure) => Err(failure),
    }
}

//! Tests that create archives of a workspace and extract zips into one, including malicious zips.

#[path = "archives/changes.rs"]
mod changes;
#[path = "archives/crafted.rs"]
mod crafted;
#[path = "archives/create.rs"]
mod create;
#[path = "archives/extract.rs"]
mod extract;
#[path = "archives/hostile.rs"]
mod hostile;
#[path = "archives/http.rs"]
mod http;
#[path = "archives/round_trip.rs"]
mod round_trip;
/// Shared with the end-to-end tests, so that skipped tests appear in the same summary.
#[path = "../../tests/src/skipped.rs"]
#[allow(unreachable_pub, reason = "public items of the tests' library")]
mod skipped;
#[path = "archives/tools.rs"]
mod tools;
#[path = "archives/wire.rs"]
mod wire;

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use podling_agent::{
    admission::AdmissionGate,
    archive::{
        ArchiveError, ArchiveSummary, ArchivedEntry, Archives, CreateEvent, CreateOptions, ExtractEvent,
        ExtractOptions,
    },
    files::{RelPath, WorkspaceRoot},
};

/// Time limit of any single step.
const DEADLINE: Duration = Duration::from_secs(20);

/// A workspace, with a directory beside it that must stay out of reach.
struct ArchiveFixture {
    dir: tempfile::TempDir,
    archives: Archives,
    gate: Arc<AdmissionGate>,
}

/// A complete archive: its zip, manifest and summary.
struct CreatedZip {
    zip: Vec<u8>,
    lines: Vec<ArchivedEntry>,
    done: ArchiveSummary,
}

impl ArchiveFixture {
    fn new() -> Self {
        // Uses memory where possible, because a disk would only slow the tests down.
        let place = Path::new("/dev/shm");
        let dir = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() }.unwrap();
        for directory in ["home", "state", "outside"] {
            std::fs::create_dir(dir.path().join(directory)).unwrap();
        }
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let home = dir.path().join("home");
        let (archives, gate) = archives(&home, &dir.path().join("state"));
        Self { dir, archives, gate }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn path(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.home().join(OsStr::from_bytes(name.as_ref()))
    }

    /// Writes a file directly, without the agent.
    fn put(&self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn directory(&self, name: &str) {
        std::fs::create_dir_all(self.path(name)).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        std::os::unix::fs::symlink(target, self.path(name)).unwrap();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Returns the sorted names in a directory, read from the file system instead of through the
    /// agent.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    async fn create(&self, path: &str) -> CreatedZip {
        self.create_with(path, CreateOptions { preservation: true, ..CreateOptions::default() }).await
    }

    async fn create_with(&self, path: &str, options: CreateOptions) -> CreatedZip {
        create(&self.archives, path, options).await.unwrap()
    }

    async fn extract(&self, zip: &[u8], path: &str) -> Result<(u64, u64), ArchiveError> {
        self.extract_with(zip, path, ExtractOptions::default()).await
    }

    async fn extract_with(
        &self,
        zip: &[u8],
        path: &str,
        options: ExtractOptions,
    ) -> Result<(u64, u64), ArchiveError> {
        let mut receiving = self.archives.receive(p(path), options).await?;
        for piece in zip.chunks(300_000) {
            receiving.push(piece.to_vec().into()).await?;
        }
        let said: Vec<_> = receiving.extract().await?.try_collect().await?;
        match said.last() {
            Some(ExtractEvent::Done { entries, bytes }) => Ok((*entries, *bytes)),
            other => panic!("the last event was {other:?}"),
        }
    }
}

/// Serves archives of any directory, for tests with directories that cannot be created.
fn archives(home: &Path, state: &Path) -> (Archives, Arc<AdmissionGate>) {
    let gate = Arc::new(AdmissionGate::new());
    (Archives::new(WorkspaceRoot::open(home).unwrap(), gate.clone(), state), gate)
}

async fn create(archives: &Archives, path: &str, options: CreateOptions) -> Result<CreatedZip, ArchiveError> {
    let events = archives.create(p(path), options).await?;
    collect(events).await
}

/// Collects the events of an archive until the summary, which must be the last one.
async fn collect(
    events: impl futures_util::Stream<Item = Result<CreateEvent, ArchiveError>>,
) -> Result<CreatedZip, ArchiveError> {
    let mut events = std::pin::pin!(events);
    let (mut zip, mut lines) = (Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event? {
            CreateEvent::Data(data) => zip.extend_from_slice(&data),
            CreateEvent::Entry(line) => lines.push(line),
            CreateEvent::Progress(_) => {}
            CreateEvent::Summary(done) => {
                assert!(events.next().await.is_none(), "the summary is the last event");
                return Ok(CreatedZip { zip, lines, done });
            }
        }
    }
    panic!("stream ended without a summary");
}

impl CreatedZip {
    fn names(&self) -> Vec<String> {
        self.lines.iter().map(|line| String::from_utf8_lossy(&line.path).into_owned()).collect()
    }

    fn line(&self, path: impl AsRef<[u8]>) -> &ArchivedEntry {
        self.lines.iter().find(|line| line.path == path.as_ref()).expect("a line")
    }

    /// Returns the path and the reason of each skipped entry.
    fn skipped(&self) -> Vec<(String, &str)> {
        let skipped = self.done.skipped.iter();
        skipped.map(|s| (String::from_utf8_lossy(&s.path).into_owned(), s.reason.as_str())).collect()
    }
}

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

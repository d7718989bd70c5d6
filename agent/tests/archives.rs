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
#[path = "archives/wire.rs"]
mod wire;

use std::{ops::Deref, path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use podling_agent::{
    admission::AdmissionGate,
    archive::{
        ArchiveError, ArchiveSummary, ArchivedEntry, Archives, CreateEvent, CreateOptions, ExtractEvent,
        ExtractOptions,
    },
    files::{RelPath, WorkspaceRoot},
};
use podling_testkit::{tree::HomeDir, zips::ListedEntry};

/// Time limit of any single step.
const DEADLINE: Duration = Duration::from_secs(20);

/// A workspace, with a directory beside it that must stay out of reach.
struct ArchiveFixture {
    home: HomeDir,
    archives: Archives,
    gate: Arc<AdmissionGate>,
}

/// A complete archive: its zip, manifest and summary.
struct CreatedZip {
    zip: Vec<u8>,
    lines: Vec<ArchivedEntry>,
    done: ArchiveSummary,
}

impl Deref for ArchiveFixture {
    type Target = HomeDir;

    fn deref(&self) -> &HomeDir {
        &self.home
    }
}

impl ArchiveFixture {
    fn new() -> Self {
        let home = HomeDir::in_memory();
        let state = home.dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let (archives, gate) = archives(&home.home(), &state);
        Self { home, archives, gate }
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

/// Checks a zip with unzip and Python, and returns the entries that Python reads. `None` if Python is
/// not installed.
fn list_with_tools(zip: &[u8]) -> Option<Vec<ListedEntry>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), zip).unwrap();
    podling_testkit::zips::list_zip(file.path())
}

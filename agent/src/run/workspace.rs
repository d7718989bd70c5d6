//! The parts of the agent that serve the workspace (terminals, processes, files, archives,
//! activity), with their gRPC and HTTP services.

use std::{io, sync::Arc, time::Duration};

use podling_proto::agent::v1::{
    activity_server::ActivityServer, archives_server::ArchivesServer, files_server::FilesServer,
    processes_server::ProcessesServer, terminals_server::TerminalsServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};

use crate::{
    account::{Account, AccountFiles, AccountSource, NameService},
    activity::{ActivityMonitor, PresenceProbe, TerminalPresence, assessment::ActivityLevel},
    admission::AdmissionGate,
    api::{
        activity::ActivityService, archives::ArchivesService, export_http, files::FilesService, files_http,
        processes::ProcessesService, terminals::TerminalsService,
    },
    archive::Archives,
    child::{Children, OrphanPolicy},
    claim::ClaimReceiver,
    config::AgentConfig,
    files::{Files, WorkspaceRoot},
    init,
    metrics::{AgentMetrics, MetricsReading},
    process::ProcessRegistry,
    shutdown::DEFAULT_GRACE,
    sleep::SleepCoordinator,
    spawn::Launcher,
    terminal::Terminals,
};

#[derive(Debug, Clone)]
pub(super) struct WorkspaceRuntime {
    pub(super) launcher: Launcher,
    pub(super) children: Children,
    pub(super) files: Files,
    pub(super) activity: ActivityMonitor,
    pub(super) sleep: SleepCoordinator,
    pub(super) terminals: Terminals,
    /// `None` if the files of the image have the workspace's user.
    pub(super) name_service: Option<NameService>,
    archives: Archives,
    processes: ProcessRegistry,
    claims: ClaimReceiver,
    orphans: OrphanPolicy,
}

/// Services for the agent's router.
pub(super) struct AgentServices {
    pub(super) grpc: Routes,
    /// Names of the services in `grpc`.
    pub(super) names: Vec<&'static str>,
    /// Routes that are not gRPC.
    pub(super) http: axum::Router,
}

impl WorkspaceRuntime {
    /// Creates the parts of the workspace. Fails if its root cannot be opened.
    pub(super) fn new(config: &AgentConfig, children: Children, claims: ClaimReceiver) -> io::Result<Self> {
        let (root, state) = (config.root.as_path(), config.state.as_path());
        let gate = Arc::new(AdmissionGate::new());
        // Skips variables that are not UTF-8, because a claim cannot contain them either.
        let image =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let launcher = Launcher::new(root, claims.clone()).inheriting(image);
        let (account, name_service) = account(config, &launcher.shell());
        let launcher = launcher.with_account(&account);
        let terminals = Terminals::with_journal(state, launcher.clone(), children.clone(), gate.clone());
        let processes = ProcessRegistry::new(launcher.clone(), children.clone(), gate.clone());
        let root = Arc::new(WorkspaceRoot::open(root)?);
        let files = Files::new(root.clone(), gate.clone());
        let archives = Archives::new(root, gate.clone(), state);
        let activity = ActivityMonitor::new(gate.clone(), claims.clone(), probe(terminals.clone()));
        let sleep = SleepCoordinator::new(gate, activity.clone());
        Ok(Self {
            launcher,
            children,
            files,
            activity,
            sleep,
            archives,
            terminals,
            processes,
            claims,
            orphans: config.orphans,
            name_service,
        })
    }

    pub(super) fn services(&self) -> AgentServices {
        let mut names = Vec::new();
        let terminals =
            named(TerminalsServer::new(TerminalsService::new(self.terminals.clone())), &mut names);
        let processes =
            named(ProcessesServer::new(ProcessesService::new(self.processes.clone())), &mut names);
        let files = named(FilesServer::new(FilesService::new(self.files.clone())), &mut names);
        let archives = named(ArchivesServer::new(ArchivesService::new(self.archives.clone())), &mut names);
        let activity = named(ActivityServer::new(ActivityService::new(self.activity.clone())), &mut names);
        let grpc = Routes::new(terminals)
            .add_service(processes)
            .add_service(files)
            .add_service(archives)
            .add_service(activity);
        let http = files_http::router(self.files.clone()).merge(export_http::router(self.archives.clone()));
        AgentServices { grpc, names, http }
    }

    /// Ends all terminals and processes: HUP and TERM at once, KILL after `grace`. From then on no
    /// terminal or process can be started.
    pub(super) async fn end_processes(&self, grace: Duration) {
        let rest = async {
            // Only PID 1 or a child subreaper may end every descendant. A test process, for
            // example, may have children outside the workspace.
            if self.orphans == OrphanPolicy::Reap
                && let Err(error) = init::end_all::end_all(grace).await
            {
                tracing::error!(%error, "failed to end the workspace's processes");
            }
        };
        let cause = self.sleep.end_cause();
        tokio::join!(self.terminals.end_all(grace), self.processes.end_all(grace, cause), rest);
    }

    /// Waits for the commit of a sleep, ends all processes, saves the terminals and syncs the
    /// files. From then on the agent serves reads only. Cancels `processes_ending`, so that the
    /// workspace's command is not restarted. The supervisor retries after an error such as a full
    /// disk.
    pub(super) async fn fall_asleep(&self, processes_ending: &CancellationToken) -> io::Result<()> {
        self.sleep.committed().await;
        tracing::info!("falling asleep");
        processes_ending.cancel();
        self.end_processes(DEFAULT_GRACE).await;
        self.terminals.save().await?;
        self.files.drain_and_sync().await?;
        self.sleep.complete();
        Ok(())
    }

    /// Sets the gauges, and returns the text of `/metrics`.
    pub(super) fn metrics(&self, metrics: &AgentMetrics) -> String {
        let now = self.activity.snapshot();
        let (task_panics, screen_panics) = self.terminals.panics();
        metrics.set_gauges(MetricsReading {
            terminals: now.terminals,
            processes: now.usage.processes,
            activity_level: match now.assessment.level {
                ActivityLevel::Idle => 0,
                ActivityLevel::Busy => 1,
                ActivityLevel::Active => 2,
            },
            counted_idle_seconds: now.counted_idle.as_secs(),
            cpu_cores: now.usage.cpu_cores,
            memory_bytes: now.usage.memory_bytes,
            terminal_bytes: now.terminal_bytes,
            viewers: self.terminals.list().iter().map(|terminal| terminal.viewers as u32).sum(),
            client_processes: self.processes.running() as u32,
            terminal_panics: task_panics + screen_panics,
            leases: now.leases.len() as u32,
            claimed: self.claims.borrow().is_some(),
        });
        metrics.encode()
    }
}

/// Returns the account of the workspace's programs, and the service by which they find it.
fn account(config: &AgentConfig, shell: &str) -> (Account, Option<NameService>) {
    let files = AccountFiles::default();
    let Some(socket) = &config.name_service else { return (Account::of_process(&files), None) };
    let account = Account::ensure(&files, &config.root, shell);
    let serves = account.source == AccountSource::NameService;
    let service = serves.then(|| NameService::new(socket, account.database.clone()));
    tracing::info!(user = account.user, source = ?account.source, "user of the workspace");
    (account, service)
}

fn probe(terminals: Terminals) -> PresenceProbe {
    Box::new(move || TerminalPresence {
        foreground: terminals
            .foreground_jobs()
            .into_iter()
            .map(|job| format!("{} in terminal '{}'", job.command, job.name))
            .collect(),
        terminals: terminals.running() as u32,
        terminal_bytes: terminals.output_bytes(),
    })
}

fn named<S: NamedService>(service: S, names: &mut Vec<&'static str>) -> S {
    names.push(S::NAME);
    service
}

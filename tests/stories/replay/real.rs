//! The target of a replay. It injects the events of a trace into a real `podling up`, and observes
//! the workspaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use podling_proto::{
    agent::v1::ActivityLevel,
    control::v1::{
        AgentConnection, CreateWorkspaceRequest, DeleteWorkspaceRequest, GetWorkspaceRequest,
        ListWorkspaceArchivesRequest, Policy, RestoreArchiveRequest, SetPolicyRequest, State,
        StateReasonCode, Workspace as WireWorkspace,
    },
    error::Reason,
};
use podling_tests::{
    Podling, PodlingOptions, Workspace, idle_timeout_policy, reason,
    trace::{ObservedWorkspace, TraceEvent, TraceStep},
    wait_for, wire_duration, within,
};
use rustix::process::Signal;
use tonic::Status;

/// An idle timeout that is longer than any replay.
const LONG_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) struct ReplayTarget {
    podling: Podling,
    workspaces: BTreeMap<String, Workspace>,
    started: Instant,
}

impl ReplayTarget {
    pub(super) async fn up(first: &TraceEvent) -> Self {
        let TraceEvent::Up(args) = first else { panic!("a trace begins with `up`: {first:?}") };
        let podling =
            Podling::up_with(PodlingOptions { args: args.clone(), ..PodlingOptions::default() }).await;
        Self { podling, workspaces: BTreeMap::new(), started: Instant::now() }
    }

    /// Injects an event. Panics if it fails, unless the next step is the death of the control
    /// plane, because the response may then be lost.
    pub(super) async fn inject(&mut self, event: &TraceEvent, next: Option<&TraceStep>) {
        eprintln!("{:>6.1?} > {event:?}", self.started.elapsed());
        let answer = self.send(event).await;
        let crashes = matches!(next, Some(TraceStep::Inject(TraceEvent::Crashes(_))));
        if let Err(status) = answer
            && !crashes
        {
            panic!("{event:?}: {status:?}\n{}", self.podling.log());
        }
    }

    async fn send(&mut self, event: &TraceEvent) -> Result<(), Status> {
        let client = self.podling.client();
        let (mut workspaces, mut backups) = (client.workspaces(), client.workspace_archives());
        match event {
            TraceEvent::Create(name, owner) => self.create(name, owner).await?,
            TraceEvent::Write(name, file) => self.write(name, file).await,
            TraceEvent::Sleep(name) => self.podling.force_sleep(self.workspace(name)).await?,
            TraceEvent::Wake(name) => self.podling.wake(self.workspace(name)).await?,
            TraceEvent::Restore(name) => {
                let request = RestoreArchiveRequest { archive: self.id(name), ..Default::default() };
                within("WorkspaceArchives.Restore", backups.restore(request)).await?;
            }
            TraceEvent::Delete(name) | TraceEvent::Discard(name) => {
                let discard = matches!(event, TraceEvent::Discard(_));
                let request = DeleteWorkspaceRequest { workspace: self.id(name), discard };
                within("Workspaces.Delete", workspaces.delete(request)).await?;
            }
            TraceEvent::Policy(name, which, time) => {
                let request =
                    SetPolicyRequest { workspace: self.id(name), policy: Some(policy(which, time)) };
                within("Workspaces.SetPolicy", workspaces.set_policy(request)).await?;
            }
            TraceEvent::KillAgent(name) => self.podling.kill_agent(self.workspace(name)),
            TraceEvent::KillControl => self.podling.kill_control(),
            TraceEvent::Restart(None) => self.podling.restart().await,
            TraceEvent::Restart(Some(at)) => self.podling.restart_with_failpoint(at).await,
            TraceEvent::Crashes(at) => {
                let status = self.podling.wait_exit().await;
                let killed = status.signal() == Some(Signal::KILL.as_raw());
                assert!(killed, "the control plane dies at {at}: {status}\n{}", self.podling.log());
            }
            TraceEvent::StoreAway => fs::rename(self.store(), self.elsewhere()).expect("store is moved away"),
            TraceEvent::StoreBack => fs::rename(self.elsewhere(), self.store()).expect("store is moved back"),
            TraceEvent::Fails(name) => self.wait_for_failure(name).await,
            TraceEvent::Up(_) => panic!("a trace begins once"),
        }
        Ok(())
    }

    /// Waits until each workspace is in its expected state, and prints each change.
    pub(super) async fn wait_for_rest(&self, expected: &BTreeMap<String, ObservedWorkspace>) {
        let mut last = BTreeMap::new();
        let started = self.started;
        wait_for(&format!("all are in state {expected:#?}\nof {:#?}", self.workspaces), async || {
            let mut now = BTreeMap::new();
            for (name, expected) in expected {
                now.insert(name.clone(), self.observe(name).await.without_epoch_unless_in(expected));
            }
            for (name, observed) in &now {
                if last.get(name) != Some(observed) {
                    eprintln!("{:>6.1?} = {name} {}", started.elapsed(), observed.0.join(" "));
                }
            }
            last.clone_from(&now);
            (now == *expected).then_some(())
        })
        .await;
    }

    fn workspace(&self, name: &str) -> &Workspace {
        self.workspaces.get(name).unwrap_or_else(|| panic!("{name} was not created"))
    }

    fn id(&self, name: &str) -> String {
        self.workspace(name).id.clone()
    }

    fn store(&self) -> PathBuf {
        self.podling.data().join("backups")
    }

    fn elsewhere(&self) -> PathBuf {
        self.podling.data().join("elsewhere")
    }

    async fn create(&mut self, name: &str, owner: &str) -> Result<(), Status> {
        let request = CreateWorkspaceRequest {
            name: name.to_owned(),
            owner: owner.to_owned(),
            policy: Some(idle_timeout_policy(LONG_IDLE_TIMEOUT)),
            env: [("SHELL".to_owned(), "/bin/sh".to_owned())].into(),
            ..Default::default()
        };
        let made = within("Workspaces.Create", self.podling.client().workspaces().create(request)).await?;
        let id = made.into_inner().workspace.expect("response has the workspace").id;
        self.workspaces.insert(name.to_owned(), Workspace { id, name: name.to_owned() });
        Ok(())
    }

    /// Writes this text into the file `file` of the workspace, and waits until the control plane
    /// reports the activity.
    async fn write(&self, name: &str, file: &str) {
        let workspace = self.workspace(name);
        self.podling.client().for_workspace(&workspace.id).sh(&format!("echo {file} > file")).await;
        wait_for("the control plane reports activity", async || {
            let activity = self.podling.get(workspace).await.activity?;
            (activity.level() != ActivityLevel::Idle).then_some(())
        })
        .await;
    }

    async fn wait_for_failure(&self, name: &str) {
        let workspace = self.workspace(name);
        wait_for("archiving or restoring has failed", async || {
            let log = self.podling.transition_log(workspace).await;
            use StateReasonCode::{ArchiveFailed, Archived, RestoreFailed};
            let mut codes = log.iter().rev().filter_map(|entry| Some(entry.reason.as_ref()?.code()));
            // Only the newest of these counts. An earlier failure may have been followed by a
            // success.
            let last = codes.find(|code| matches!(code, ArchiveFailed | RestoreFailed | Archived));
            matches!(last, Some(ArchiveFailed | RestoreFailed)).then_some(())
        })
        .await;
    }

    /// Returns the observable state of a workspace in the words of a trace.
    async fn observe(&self, name: &str) -> ObservedWorkspace {
        let workspace = self.workspace(name);
        let dir = self.podling.data().join("workspaces").join(&workspace.id);
        let stored = self.stored(&workspace.id);
        let Some(now) = self.get(workspace).await else {
            // A deleted workspace must leave no directory and no archive.
            let left = dir.exists() || !stored.is_empty();
            return if left {
                ObservedWorkspace(vec!["not-removed".into()])
            } else {
                ObservedWorkspace::default()
            };
        };
        let mut words = vec![self.state(&now)];
        if now.queue_position > 0 {
            words.push(format!("queue-position={}", now.queue_position));
        }
        let agents =
            self.podling.running_agents().into_iter().filter(|agent| agent.command.contains(&workspace.id));
        words.push(format!("agents={}", agents.count()));
        if let (State::Awake, Some(agent)) = (now.state(), &now.agent) {
            words.push(format!("epoch={}", agent.epoch));
        }
        let home = dir.join("home");
        words.push(format!("storage={}", if home.exists() { "present" } else { "none" }));
        if let Ok(file) = fs::read_to_string(home.join("file")) {
            words.push(format!("file={}", file.trim()));
        }
        let request = ListWorkspaceArchivesRequest { all_owners: true, ..Default::default() };
        let listed =
            within("WorkspaceArchives.List", self.podling.client().workspace_archives().list(request)).await;
        let listed = listed.expect("a list").into_inner().archives;
        let own = listed.iter().filter(|backup| backup.workspace_id == workspace.id);
        words.push(format!("archives={}", own.count()));
        let stored: Vec<String> = stored.iter().map(u64::to_string).collect();
        words.push(format!("stored={}", if stored.is_empty() { "none".into() } else { stored.join(",") }));
        if now.deleted {
            words.push("deleted".into());
        }
        ObservedWorkspace(words)
    }

    async fn get(&self, workspace: &Workspace) -> Option<WireWorkspace> {
        let request = GetWorkspaceRequest { workspace: workspace.id.clone() };
        match within("Workspaces.Get", self.podling.client().workspaces().get(request)).await {
            Ok(got) => got.into_inner().workspace,
            Err(status) => {
                assert_eq!(reason(&status), Reason::WorkspaceNotFound, "{status:?}");
                None
            }
        }
    }

    fn state(&self, now: &WireWorkspace) -> String {
        let word = now.state().as_str_name().trim_start_matches("STATE_").to_lowercase().replace('_', "-");
        // An awake workspace without a connected agent is not at rest. No trace contains this word.
        let unheard = now.state() == State::Awake && now.connection() != AgentConnection::Connected;
        if unheard { format!("{word}-unheard") } else { word }
    }

    /// Returns the storage generations that have an archive in the backup store. If the control
    /// plane dies before it records an archive, a generation is archived twice, but is returned
    /// once.
    fn stored(&self, id: &str) -> BTreeSet<u64> {
        let names = podling_tests::tree::names(&self.store());
        let sidecars = names.iter().filter(|name| name.contains(id) && name.ends_with(".jsonl"));
        let generation = |name: &String| {
            let text = fs::read_to_string(self.store().join(name)).ok()?;
            let head: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
            head["label"]["storage_generation"].as_u64()
        };
        sidecars.filter_map(generation).collect()
    }
}

fn policy(which: &str, time: &str) -> Policy {
    let (number, unit) = time.split_at(time.len() - 1);
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("invalid duration: {time}"));
    let seconds = match unit {
        "s" => 1,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => panic!("invalid duration: {time}"),
    };
    let time = wire_duration(Duration::from_secs(number * seconds));
    match which {
        "idle-timeout" => Policy { idle_timeout: time, ..Policy::default() },
        "archive-after" => Policy { archive_after: time, ..Policy::default() },
        "keep-archives" => Policy { keep_archives: time, ..Policy::default() },
        _ => panic!("unknown policy field: {which}"),
    }
}

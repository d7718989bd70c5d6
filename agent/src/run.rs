//! The composition root: makes the parts, connects them, and ends them in order.

use std::{
    convert::Infallible,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use podling_proto::{
    agent::v1::{activity_server::ActivityServer, files_server::FilesServer},
    token,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    activity::{Activity, Presence, Probe, proc, verdict::Verdict},
    api::{activity::ActivityService, files::FilesApi, files_http},
    child::{Children, Limits, Orphans},
    claim::Claims,
    config::Config,
    ending::{Ending, Reason, Stop},
    files::{Files, Root},
    init,
    intent::Intents,
    link::{Introduction, Link},
    metrics::{Metrics, Reading},
    server::{
        Server,
        identity::{Identity, IdentityError},
        info::Info,
        listener::{ListenError, Listener},
        router::{BadDescriptors, Parts, router},
    },
    spawn::Launcher,
    tasks::Tasks,
};

/// Open calls get this long to end after they were told to.
const DRAIN: Duration = Duration::from_secs(2);
/// The link gets this long to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What this agent can do beyond the least; grows with the protocol.
const CAPABILITIES: &[&str] = &["terminals", "processes", "files", "activity"];

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It has no identity.
    #[error("no identity")]
    Identity(#[from] IdentityError),
    /// It cannot listen.
    #[error("no listener")]
    Listen(#[from] ListenError),
    /// It cannot say where it listens.
    #[error("writing {path}")]
    Info {
        /// Where to.
        path: PathBuf,
        #[source]
        /// Why.
        source: io::Error,
    },
    /// The workspace root cannot be opened.
    #[error("opening the workspace root {path}")]
    Root {
        /// Which.
        path: PathBuf,
        #[source]
        /// Why.
        source: io::Error,
    },
    /// It cannot learn about itself.
    #[error("reading /proc")]
    Proc(#[source] io::Error),
    /// A fault of the build.
    #[error("no reflection")]
    Reflection(#[from] BadDescriptors),
}

/// Runs an agent until somebody asks for its end; says how it ended.
pub async fn run(config: Config, limits: Limits, stop: Stop) -> Result<Ending, RunError> {
    let identity = Identity::generate()?;
    let listener = Listener::bind(&config.listen).await?;
    let introduction = introduce(&identity)?;
    write_info(&config, &introduction, &listener)?;

    let (claims, claimed) = watch::channel(None);
    let claims = Arc::new(claims);
    let intents = Arc::new(Intents::new());
    let children = Children::new(config.orphans).with_limits(limits);
    let launcher = Launcher::new(config.root.clone(), claimed.clone());
    let probe: Probe = Box::new(Presence::default);
    let activity = Activity::new(intents.clone(), claimed.clone(), probe);

    let metrics = Metrics::new();
    let ready = Arc::new(AtomicBool::new(true));
    let health = HealthReporter::new();
    let (closing, streams, drain, ended, said) = <(
        CancellationToken,
        CancellationToken,
        CancellationToken,
        CancellationToken,
        CancellationToken,
    )>::default();

    let mut tasks = Tasks::new(metrics.clone());
    let reaper = children.clone();
    tasks.supervise("reaper", move || {
        let reaper = reaper.clone();
        async move { reaper.reap().await }
    });
    let sampler = activity.clone();
    tasks.supervise("activity", move || {
        let sampler = sampler.clone();
        async move { sampler.run().await }
    });
    let link = Link {
        control: config.control.clone(),
        introduction,
        claims,
        activity: activity.clone(),
        stop: stop.clone(),
        ended: ended.clone(),
        metrics: metrics.clone(),
    };
    let farewell = said.clone();
    tasks.supervise("link", move || {
        let (link, farewell) = (link.clone(), farewell.clone());
        async move {
            let over = link.run().await;
            farewell.cancel();
            over
        }
    });
    let (starter, fallback) = (children.clone(), config.command.clone());
    let programs = launcher.clone();
    tasks.supervise("command", move || {
        let running = init::command::keep_running(starter.clone(), programs.clone(), fallback.clone());
        async move {
            running.await;
            Ok::<_, Infallible>(())
        }
    });

    let root =
        Root::open(&config.root).map_err(|source| RunError::Root { path: config.root.clone(), source })?;
    let files = Files::new(root, intents);
    let (uploads, until) = (files.clone(), tasks.token().clone());
    tasks.supervise("uploads", move || {
        let (uploads, until) = (uploads.clone(), until.clone());
        async move {
            uploads.lapse_uploads(until).await;
            Ok::<_, Infallible>(())
        }
    });

    let activity_server = ActivityServer::new(ActivityService::new(activity.clone(), streams.clone()));
    let files_server = FilesServer::new(FilesApi::new(files.clone()));
    let names = [name_of(&activity_server), name_of(&files_server)];
    let grpc = Routes::new(activity_server).add_service(files_server);
    let parts = Parts {
        claims: claimed.clone(),
        health: health.clone(),
        ready: readiness(ready.clone(), claimed.clone()),
        metrics: reader(metrics.clone(), activity, claimed),
    };
    let router = router(parts, grpc, &names, files_http::router(files))?;
    let mut server = Server::new(listener, identity.server_config()?, metrics);

    let ending = tokio::select! {
        ending = stop.requested() => ending,
        lost = server.run(router, &closing, &drain) => {
            let why = lost.err().map_or_else(String::new, |error| error.to_string());
            Ending::new(Reason::ListenerLost(why))
        }
    };
    tracing::info!(reason = %ending.reason, grace = ?ending.grace, "ending");
    // Not ready; accepting has stopped with `server.run`.
    ready.store(false, Ordering::Relaxed);
    health.set_service_status("", ServingStatus::NotServing).await;
    // Programs first, so that viewers still learn how they ended.
    tokio::select! {
        () = end_workspace(&config, ending.grace) => {}
        () = stop.hurried() => end_workspace(&config, Duration::ZERO).await,
    }
    streams.cancel();
    drain.cancel();
    server.drained(DRAIN).await;
    ended.cancel();
    if timeout(LAST_WORDS, said.cancelled()).await.is_err() {
        tracing::debug!("the control plane did not hear the last words");
    }
    tasks.end().await;
    Ok(ending)
}

async fn end_workspace(config: &Config, grace: Duration) {
    // Only an init may end every descendant: others have children that are none of the workspace's.
    if config.orphans == Orphans::Reap
        && let Err(error) = init::sweep::end_all(grace).await
    {
        tracing::error!(%error, "could not end the workspace's programs");
    }
}

fn introduce(identity: &Identity) -> Result<Introduction, RunError> {
    Ok(Introduction {
        capabilities: CAPABILITIES,
        boot_id: token::random(12),
        fingerprint: identity.fingerprint(),
        start_ticks: proc::own_start().map_err(RunError::Proc)?,
    })
}

fn write_info(config: &Config, introduction: &Introduction, listener: &Listener) -> Result<(), RunError> {
    let path = &config.info_file;
    let failed = |source| RunError::Info { path: path.clone(), source };
    let info = Info {
        pid: std::process::id(),
        start_ticks: introduction.start_ticks,
        boot_id: introduction.boot_id.clone(),
        address: listener.address().map_err(failed)?,
        fingerprint: introduction.fingerprint.clone(),
    };
    info.write(path).map_err(failed)?;
    tracing::info!(address = info.address, fingerprint = info.fingerprint, "listening");
    Ok(())
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

fn readiness(ready: Arc<AtomicBool>, claims: Claims) -> Arc<dyn Fn() -> bool + Send + Sync> {
    Arc::new(move || ready.load(Ordering::Relaxed) && claims.borrow().is_some())
}

fn reader(metrics: Metrics, activity: Activity, claims: Claims) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let now = activity.look();
        metrics.read(Reading {
            terminals: now.terminals,
            processes: now.usage.processes,
            verdict: match now.judgement.verdict {
                Verdict::Idle => 0,
                Verdict::Busy => 1,
                Verdict::Active => 2,
            },
            counted_idle: now.counted_idle.as_secs(),
            cpu_cores: now.usage.cpu_cores,
            memory_bytes: now.usage.memory_bytes,
            terminal_bytes: now.terminal_bytes,
            leases: now.leases.len() as u32,
            claimed: claims.borrow().is_some(),
        });
        metrics.encode()
    })
}

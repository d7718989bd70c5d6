//! `podling keep-awake`: a promise that a workspace must stay awake, for a time or as long as a command runs here.

use std::{
    io::{self, IsTerminal as _},
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use clap::Args;
use podling_proto::{
    agent::v1::{KeepAwakeRequest, Lease},
    token,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::{
    process::{Child, Command},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    backoff::retry_call,
    client::WorkspaceClient,
    context::Context,
    duration,
    failure::{self, CommandFailure},
    output,
    run::input::TerminationSignals,
    signal,
};

/// How long a lease around a command holds …
const LEASE_DURATION: Duration = Duration::from_secs(120);
/// … and how often it is renewed: two renewals may fail before it ends.
const RENEW_EVERY: Duration = Duration::from_secs(40);
/// How long the release at the end may take; the lease ends by itself.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// The lease's name unless another is given.
const DEFAULT_LEASE: &str = "manual";
/// Longest name of a lease, in characters.
const MAX_NAME: usize = 100;
/// Longest reason, in bytes.
const MAX_REASON: usize = 200;

/// Keep a workspace awake for a time, or as long as a command runs here
#[derive(Debug, Args)]
pub struct KeepAwakeArgs {
    /// The workspace's name or id.
    name: String,
    /// For how long: 30m, 2h; at most 24h.
    #[arg(value_parser = duration::parse, required_unless_present_any = ["command", "release"], conflicts_with_all = ["command", "release"])]
    duration: Option<Duration>,
    /// Name of the promise; the same name renews it.
    #[arg(long, value_name = "LEASE_DURATION")]
    lease: Option<String>,
    /// What for; shown by `podling explain`.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Take the promise back.
    #[arg(long, conflicts_with = "command")]
    release: bool,
    /// Keep it awake as long as this command, run here, takes.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LeaseStatusView {
    lease: String,
    reason: String,
    remaining_seconds: f64,
}

/// A lease under way.
struct HeldLease {
    workspace_client: WorkspaceClient,
    name: String,
    reason: String,
}

impl KeepAwakeArgs {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        if !self.command.is_empty() {
            return self.run_command(context).await;
        }
        let name = self.lease.unwrap_or_else(|| DEFAULT_LEASE.to_owned());
        let workspace_client = context.client().await?.workspace_client(&self.name).await?;
        let lease_holder = HeldLease { workspace_client, name, reason: self.reason };
        let wanted = if self.release { Duration::ZERO } else { self.duration.unwrap_or_default() };
        let lease = lease_holder.extend(wanted).await?;
        let remaining = lease.and_then(|lease| duration::from_wire(lease.remaining)).unwrap_or_default();
        if context.json() {
            let remaining_seconds = remaining.as_secs_f64();
            output::json(&LeaseStatusView {
                lease: lease_holder.name,
                reason: lease_holder.reason,
                remaining_seconds,
            })?;
        } else if self.release {
            output::line(&format!("{} is no longer kept awake by {:?}", self.name, lease_holder.name))?;
        } else {
            let until = prost_types::Timestamp::from(SystemTime::now() + remaining);
            let until = prost_types::Timestamp { nanos: 0, ..until };
            output::line(&format!(
                "{} is kept awake for {}, until {until}",
                self.name,
                duration::show(remaining)
            ))?;
        }
        Ok(0)
    }

    async fn run_command(self, context: &Context) -> Result<u8, CommandFailure> {
        let code = |failure: CommandFailure| failure.with_code(failure::RUN_FAILED);
        let mut signals =
            TerminationSignals::listen().map_err(CommandFailure::io("cannot take signals")).map_err(code)?;
        let workspace_client =
            context.client().await.map_err(code)?.workspace_client(&self.name).await.map_err(code)?;
        // A name of its own: two of these at the same time must not release each other's.
        let name = self.lease.unwrap_or_else(|| format!("{}-{}", self.command[0], token::random(6)));
        let mut reason = if self.reason.is_empty() { self.command.join(" ") } else { self.reason };
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let lease_holder =
            HeldLease { workspace_client, name: name.chars().take(MAX_NAME).collect(), reason };
        lease_holder.extend(LEASE_DURATION).await.map_err(code)?;
        let outcome = match spawn(&self.command) {
            Ok(mut child) => lease_holder.until_ended(&mut child, &mut signals).await,
            Err(failure) => Err(failure),
        };
        if !matches!(timeout(RELEASE_TIMEOUT, lease_holder.extend(Duration::ZERO)).await, Ok(Ok(_))) {
            eprintln!(
                "podling: the promise could not be taken back; it ends by itself within {}",
                duration::show(LEASE_DURATION)
            );
        }
        outcome.map(signal::exit_code_of_status)
    }
}

impl HeldLease {
    /// Takes, renews or (with zero) releases it.
    async fn extend(&self, wanted: Duration) -> Result<Option<Lease>, CommandFailure> {
        let request = KeepAwakeRequest {
            name: self.name.clone(),
            duration: Some(duration::to_wire(wanted)),
            reason: self.reason.clone(),
        };
        let answer = retry_call(|| {
            let (mut activity, request) = (self.workspace_client.activity(), request.clone());
            async move { activity.keep_awake(request).await }
        });
        Ok(answer.await?.lease)
    }

    async fn until_ended(
        &self,
        child: &mut Child,
        signals: &mut TerminationSignals,
    ) -> Result<ExitStatus, CommandFailure> {
        let renewals = self.renew();
        tokio::pin!(renewals);
        loop {
            let pid = child.id();
            tokio::select! {
                status = child.wait() => return status.map_err(CommandFailure::io("cannot wait for the command")),
                name = signals.next() => forward_signal(pid, name),
                () = &mut renewals => {}
            }
        }
    }

    /// Renews it for ever; says so once when that does not work.
    async fn renew(&self) {
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, and the lease is fresh.
        ticks.tick().await;
        let mut failing = false;
        loop {
            ticks.tick().await;
            match self.extend(LEASE_DURATION).await {
                Ok(_) => failing = false,
                Err(failure) if !std::mem::replace(&mut failing, true) => {
                    eprintln!("podling: the workspace may fall asleep: {}", failure.describe());
                }
                Err(_) => {}
            }
        }
    }
}

fn spawn(command: &[String]) -> Result<Child, CommandFailure> {
    let started = Command::new(&command[0]).args(&command[1..]).spawn();
    started.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => failure::NO_COMMAND,
            _ => failure::CANNOT_RUN,
        };
        CommandFailure::io(format!("cannot run {:?}", command[0]))(error).with_code(code)
    })
}

/// On a terminal Ctrl-C reaches the command by itself; what was sent to us alone is passed on.
fn forward_signal(pid: Option<u32>, name: &str) {
    let signal = match name {
        "TERM" => Signal::TERM,
        "HUP" => Signal::HUP,
        "INT" | "QUIT" if io::stdin().is_terminal() => return,
        "INT" => Signal::INT,
        _ => Signal::QUIT,
    };
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        eprintln!("podling: cannot pass {name} on: {error}");
    }
}

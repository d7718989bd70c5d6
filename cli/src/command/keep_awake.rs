//! `podling keep-awake`: keeps a workspace awake by a lease, for a time or while a local command
//! runs.

use std::{
    io::{self, IsTerminal as _},
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use clap::Args;
use podling_proto::{
    agent::v1::{KeepAwakeRequest, Lease},
    json::to_json,
    signal::number,
    token,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    backoff::retry_call,
    client::{Context, WorkspaceClient},
    duration,
    failure::{self, CommandFailure},
    notice, output,
    signal::{self, TerminationSignals},
};

/// Duration of the lease while a command runs.
const LEASE_DURATION: Duration = Duration::from_secs(120);
/// Interval between renewals. Two renewals in a row may fail before the lease expires.
const RENEW_EVERY: Duration = Duration::from_secs(40);
/// Time limit for releasing the lease at the end. If it passes, the lease expires by itself.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Name of the lease if none is given.
const DEFAULT_LEASE: &str = "manual";
/// Longest lease name, in characters.
const MAX_NAME: usize = 100;
/// Longest reason, in bytes.
const MAX_REASON: usize = 200;

const EXAMPLES: &str = "\
Examples:
  podling keep-awake demo 2h
  podling keep-awake demo --release
  podling keep-awake demo -- make -j8";

/// Keep a workspace awake for a time or while a command runs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct KeepAwakeArgs {
    /// Name or id of the workspace
    name: String,
    /// Time to keep the workspace awake, for example 30m or 2h; at most 24h
    #[arg(
        value_parser = duration::parse,
        required_unless_present_any = ["command", "release"],
        conflicts_with_all = ["command", "release"]
    )]
    duration: Option<Duration>,
    /// Name of the lease; a lease of this name is renewed [default: manual, or a unique name with
    /// CMD]
    #[arg(long, value_name = "LEASE")]
    lease: Option<String>,
    /// Reason that `podling explain` shows [default: CMD, if given]
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Release the lease instead of taking it
    #[arg(long, conflicts_with = "command")]
    release: bool,
    /// Local command to run; the workspace stays awake until it exits
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// A lease in a workspace.
struct HeldLease {
    workspace_client: WorkspaceClient,
    name: String,
    reason: String,
}

impl KeepAwakeArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        if !self.command.is_empty() {
            let ended = self.run_command(context).await;
            return ended.map_err(|failure| failure.with_default_code(failure::RUN_FAILED));
        }
        let name = self.lease.unwrap_or_else(|| DEFAULT_LEASE.to_owned());
        let workspace_client = context.client().await?.workspace_client(&self.name).await?;
        let lease_holder = HeldLease { workspace_client, name, reason: self.reason };
        let duration_requested =
            if self.release { Duration::ZERO } else { self.duration.unwrap_or_default() };
        let lease = lease_holder.extend(duration_requested).await?;
        let remaining = lease.and_then(|lease| duration::from_wire(lease.remaining)).unwrap_or_default();
        if context.json() {
            let HeldLease { name, reason, .. } = lease_holder;
            output::json(&to_json(&Lease { name, reason, remaining: Some(duration::to_wire(remaining)) }))?;
        } else if self.release {
            output::line(&format!("released lease {:?} of {}", lease_holder.name, self.name))?;
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
        let mut signals = TerminationSignals::listen()?;
        let workspace_client = context.client().await?.workspace_client(&self.name).await?;
        // Without the random suffix, two concurrent commands would release each other's lease.
        let name = self.lease.unwrap_or_else(|| format!("{}-{}", self.command[0], token::random(6)));
        let mut reason = if self.reason.is_empty() { self.command.join(" ") } else { self.reason };
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let lease_holder =
            HeldLease { workspace_client, name: name.chars().take(MAX_NAME).collect(), reason };
        lease_holder.extend(LEASE_DURATION).await?;
        let outcome = match spawn(&self.command) {
            Ok(mut child) => lease_holder.until_ended(&mut child, &mut signals).await,
            Err(failure) => Err(failure),
        };
        if !matches!(timeout(RELEASE_TIMEOUT, lease_holder.extend(Duration::ZERO)).await, Ok(Ok(_))) {
            notice!(
                "podling: cannot release the lease; it expires within {}",
                duration::show(LEASE_DURATION)
            );
        }
        outcome.map(signal::exit_code_of_status)
    }
}

impl HeldLease {
    /// Takes or renews the lease. A duration of zero releases it.
    async fn extend(&self, duration_requested: Duration) -> Result<Option<Lease>, CommandFailure> {
        let request = KeepAwakeRequest {
            name: self.name.clone(),
            duration: Some(duration::to_wire(duration_requested)),
            reason: self.reason.clone(),
        };
        let answer = retry_call(async || self.workspace_client.activity().keep_awake(request.clone()).await);
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
                status = child.wait() => {
                    return status.map_err(CommandFailure::io("cannot wait for the command"));
                }
                name = signals.next() => forward_signal(pid, name),
                () = &mut renewals => {}
            }
        }
    }

    /// Renews the lease until dropped. Prints the first of several failures in a row.
    async fn renew(&self) {
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick fires at once, when the lease is still new.
        ticks.tick().await;
        let mut failing = false;
        loop {
            ticks.tick().await;
            match self.extend(LEASE_DURATION).await {
                Ok(_) => failing = false,
                Err(failure) if !std::mem::replace(&mut failing, true) => {
                    notice!(
                        "podling: cannot renew the lease, so the workspace may fall asleep: {}",
                        failure.describe()
                    );
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

/// Forwards a signal to the child, except for INT and QUIT on a terminal, which the kernel sends to
/// the child as well.
fn forward_signal(pid: Option<u32>, name: &str) {
    if matches!(name, "INT" | "QUIT") && io::stdin().is_terminal() {
        return;
    }
    let signal = number(name).and_then(|number| Signal::from_named_raw(number.into()));
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, signal)
        && let Err(error) = kill_process(pid, signal)
    {
        notice!("podling: cannot forward SIG{name}: {error}");
    }
}

//! Settings of a workspace: `podling policy` shows or changes its policy, and `podling resize` changes
//! its CPU and memory.

use std::time::Duration;

use clap::{Args, Subcommand};
use podling_control::quantity;
use podling_proto::{
    control::v1::{
        Policy, ResizeWorkspaceRequest, Resources, SetPolicyRequest, StateReason, WaitReason, Workspace,
    },
    json::to_json,
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    advice,
    backoff::retry_call,
    client::Context,
    duration::{self, from_wire, show, to_wire},
    failure::CommandFailure,
    output::{self, Tone, paint},
    workspace_text::{describe_resources, pending_resize},
    workspace_watcher::WorkspaceWatcher,
};

/// Longest wait for a running agent to have its new resources. A resize that takes longer continues.
const RESIZE_TIMEOUT: Duration = Duration::from_secs(30);

const POLICY_EXAMPLES: &str = "\
Examples:
  podling policy show demo
  podling policy set demo --idle-timeout 1h --max-awake none";

/// Show or change the policy of a workspace
#[derive(Debug, Args)]
#[command(after_help = POLICY_EXAMPLES)]
pub struct PolicyArgs {
    #[command(subcommand)]
    action: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Show the policy of a workspace
    Show {
        /// Name or id of the workspace
        name: String,
    },
    /// Change the given settings and keep the others; takes effect at once
    Set {
        /// Name or id of the workspace
        name: String,
        #[command(flatten)]
        policy: PolicyFlags,
    },
}

impl PolicyArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let workspace = match self.action {
            PolicyCommand::Show { name } => context.client().await?.find(&name).await?,
            PolicyCommand::Set { policy, .. } if policy.is_empty() => {
                let help = advice::command("policy set --help");
                return Err(CommandFailure::Usage(format!("no setting was given; see: {help}")));
            }
            PolicyCommand::Set { name, policy } => set(context, name, policy.to_wire()).await?,
        };
        let policy = workspace.policy.unwrap_or_default();
        if context.json() {
            let Workspace { name, id, .. } = &workspace;
            output::json(&json!({ "name": name, "id": id, "policy": to_json(&policy) }))?;
        } else {
            output::print(&render(&policy))?;
        }
        Ok(0)
    }
}

async fn set(context: &Context, workspace: String, policy: Policy) -> Result<Workspace, CommandFailure> {
    let client = context.client().await?;
    let request = SetPolicyRequest { workspace, policy: Some(policy) };
    let answer = retry_call(async || client.workspaces().set_policy(request.clone()).await);
    answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)
}

/// Policy flags of `create` and `policy set`. The control plane rejects durations outside 1s to
/// 365d.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct PolicyFlags {
    /// Idle time after which the workspace falls asleep, for example 15m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,
    /// Time before sleep at which users are warned, for example 2m; at most half the idle timeout
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    warning: Option<Duration>,
    /// Time after the last input of a user or client for which busy programs keep the workspace
    /// awake, for example 12h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    work_cap: Option<Duration>,
    /// Time after the last input of a user or client for which a foreground program keeps the
    /// workspace awake, for example 1h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    presence_cap: Option<Duration>,
    /// Time after its start or the last input for which a client's call, such as a command that
    /// `podling run` follows, keeps the workspace awake, for example 12h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    call_cap: Option<Duration>,
    /// Longest time awake, even if in use, for example 12h; "none" for no limit
    #[arg(long, value_name = "DURATION|none", value_parser = duration::parse_or_none)]
    max_awake: Option<Duration>,
    /// Time asleep after which the workspace is archived and its storage is removed, for example 1d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    archive_after: Option<Duration>,
    /// Age at which an archive is removed, even if it is the last one, for example 30d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    keep_archives: Option<Duration>,
}

impl PolicyFlags {
    /// Returns whether no flag was given.
    pub fn is_empty(&self) -> bool {
        self.to_wire() == Policy::default()
    }

    /// Returns the policy with only the given flags set.
    pub fn to_wire(self) -> Policy {
        Policy {
            idle_timeout: self.idle_timeout.map(to_wire),
            work_cap: self.work_cap.map(to_wire),
            presence_cap: self.presence_cap.map(to_wire),
            call_cap: self.call_cap.map(to_wire),
            warning: self.warning.map(to_wire),
            max_awake: self.max_awake.map(to_wire),
            archive_after: self.archive_after.map(to_wire),
            keep_archives: self.keep_archives.map(to_wire),
        }
    }
}

/// Renders one line per setting: its name, its value and its meaning.
pub fn render(policy: &Policy) -> String {
    let rows = [
        ("idle timeout", policy.idle_timeout, "idle time after which it falls asleep"),
        ("warning", policy.warning, "time before sleep at which its users are warned"),
        ("work cap", policy.work_cap, "time after the last input for which busy programs keep it awake"),
        (
            "presence cap",
            policy.presence_cap,
            "time after the last input for which a foreground program keeps it awake",
        ),
        (
            "call cap",
            policy.call_cap,
            "time after its start or the last input for which a client's call keeps it awake",
        ),
        ("max awake", policy.max_awake, "time awake after which it falls asleep, even if in use"),
        (
            "archive after",
            policy.archive_after,
            "time asleep after which it is archived and its storage is removed",
        ),
        ("keep archives", policy.keep_archives, "age at which an archive is removed, even the last one"),
    ];
    let line = |(name, value, means): (&str, Option<prost_types::Duration>, &str)| {
        let value = from_wire(value).map_or_else(|| "no limit".to_owned(), show);
        format!("{} {value:<8} {}\n", paint(&format!("{name:<14}"), Tone::Strong), paint(means, Tone::Faint))
    };
    rows.into_iter().map(line).collect()
}

const RESIZE_EXAMPLES: &str = "\
Example:
  podling resize demo --cpu 2 --memory 4GiB";

/// Change the CPU and memory of a workspace
///
/// Running programs continue. A reduction takes effect at once. An increase beyond the owner's
/// quota waits in the admission queue, and the workspace keeps its present resources meanwhile.
#[derive(Debug, Args)]
#[command(after_help = RESIZE_EXAMPLES)]
pub struct ResizeArgs {
    /// Name or id of the workspace
    name: String,
    /// CPU in cores, for example 2, or 500m for half a core [default: unchanged]
    #[arg(long, value_parser = parse_cores, required_unless_present = "memory")]
    cpu: Option<u64>,
    /// Memory, for example 512MiB or 2GiB [default: unchanged]
    #[arg(long, value_parser = parse_bytes)]
    memory: Option<u64>,
}

impl ResizeArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let resources = Resources {
            cpu_millis: self.cpu.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
        };
        let request = ResizeWorkspaceRequest { workspace: self.name, resources: Some(resources) };
        let answer = retry_call(async || client.workspaces().resize(request.clone()).await);
        let workspace = answer.await?.workspace.ok_or_else(CommandFailure::no_workspace)?;
        let workspace = match pending_resize(&workspace) {
            Some(_) => {
                let watcher = WorkspaceWatcher::new(client, workspace.id.clone());
                // Until the agent has the resources, or the control plane says why not yet.
                let resized = watcher.until(|now| pending_resize(now).is_none() || now.waiting.is_some());
                timeout(RESIZE_TIMEOUT, resized).await.unwrap_or(Ok(workspace))?
            }
            None => workspace,
        };
        let described = format!("{} {}", workspace.name, describe_resources(&workspace));
        if context.json() {
            output::json(&to_json(&workspace))?;
        } else if !is_failed(&workspace) {
            output::line(&described)?;
        }
        match is_failed(&workspace) {
            true => Err(CommandFailure::Other(described)),
            false => Ok(0),
        }
    }
}

/// Returns whether the resize of the workspace failed. It is retried.
fn is_failed(workspace: &Workspace) -> bool {
    let waits_for = workspace.waiting.as_ref().map(StateReason::wait);
    pending_resize(workspace).is_some() && waits_for == Some(WaitReason::ActionFailed)
}

/// Parses the value of a flag `--cpu` into thousandths of a core.
pub fn parse_cores(text: &str) -> Result<u64, String> {
    quantity::cores(text).ok_or_else(|| format!("expected {}", quantity::CORES))
}

/// Parses the value of a flag `--memory` or `--storage` into bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| format!("expected {}", quantity::BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_flags_not_given_are_absent() {
        assert!(PolicyFlags::default().is_empty());
        let flags = PolicyFlags { max_awake: Some(Duration::from_secs(60)), ..PolicyFlags::default() };
        assert!(!flags.is_empty());
        let said = Policy { max_awake: Some(to_wire(Duration::from_secs(60))), ..Policy::default() };
        assert_eq!(flags.to_wire(), said);
    }

    #[test]
    fn policy_text_explains_each_setting() {
        let policy = Policy { idle_timeout: Some(to_wire(Duration::from_secs(900))), ..Policy::default() };
        let text = render(&policy);
        assert!(text.contains("idle timeout   15m      idle time after which"), "{text}");
        assert!(text.contains("max awake      no limit time awake"), "{text}");
    }
}

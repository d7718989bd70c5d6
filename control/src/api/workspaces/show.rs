//! Converts a workspace's snapshot to its protobuf message. The conversion cannot fail.

use std::time::Duration;

use podling_core::{policy, workspace};
use podling_proto::control::v1::{
    AgentConnection, AgentInfo, Policy, Progress, Resources, State, Workspace, progress::Stage,
};

pub(in crate::api) use crate::reasons::timestamp;
use crate::{
    progress, reasons,
    snapshot::{AgentAddress, AgentView, WorkspaceView},
};

pub(in crate::api) fn workspace(view: &WorkspaceView) -> Workspace {
    Workspace {
        id: view.spec.id.to_string(),
        name: view.spec.name.to_string(),
        owner: view.spec.owner.to_string(),
        template: view.spec.template.clone(),
        policy: Some(policy(&view.spec.policy)),
        state: state(view.state).into(),
        reason: Some(reasons::state_reason(&view.reason)),
        since: Some(timestamp(view.since)),
        created: Some(timestamp(view.spec.created)),
        connection: agent_connection(view.connection).into(),
        activity: view.activity.as_deref().cloned(),
        agent: view.agent.as_deref().map(agent),
        next: view.next.map(|(at, step)| reasons::next_step(at, step)),
        version: view.version,
        restarts: view.restarts,
        queue_position: view.queue_position.map_or(0, |position| u32::try_from(position).unwrap_or(u32::MAX)),
        requested: Some(resources(view.spec.resources)),
        allocated: view.allocated.map(resources),
        waiting: view.waits.as_ref().map(reasons::waiting),
        deleted: view.is_gone(),
        deleting: view.spec.desired_state.is_gone() && !view.is_gone(),
        progress: view.progress.map(progress),
    }
}

fn resources(resources: workspace::Resources) -> Resources {
    Resources { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
}

fn progress(progress: progress::TransferProgress) -> Progress {
    let stage = match progress.stage {
        progress::TransferStage::Archiving => Stage::Archiving,
        progress::TransferStage::Proving => Stage::Proving,
        progress::TransferStage::Downloading => Stage::Downloading,
        progress::TransferStage::Extracting => Stage::Extracting,
    };
    Progress {
        stage: stage.into(),
        entries: progress.entries,
        total_entries: progress.total_entries.unwrap_or(0),
        bytes: progress.bytes,
        total_bytes: progress.total_bytes.unwrap_or(0),
    }
}

fn agent(agent: &AgentView) -> AgentInfo {
    AgentInfo {
        boot_id: agent.boot_id.clone(),
        epoch: agent.epoch,
        version: agent.version.clone(),
        key_fingerprint: agent.fingerprint.to_string(),
        capabilities: agent.capabilities.clone(),
        address: match &agent.address {
            AgentAddress::Unix(path) => format!("unix:{}", path.display()),
            AgentAddress::Tcp(address) => format!("https://{address}"),
        },
    }
}

pub(in crate::api) fn state(state: workspace::State) -> State {
    match state {
        workspace::State::Queued => State::Queued,
        workspace::State::Starting => State::Starting,
        workspace::State::Awake => State::Awake,
        workspace::State::FallingAsleep => State::FallingAsleep,
        workspace::State::Asleep => State::Asleep,
        workspace::State::Archiving => State::Archiving,
        workspace::State::Archived => State::Archived,
        workspace::State::Deleting => State::Deleting,
        workspace::State::Failed => State::Failed,
    }
}

fn agent_connection(connection: workspace::AgentConnection) -> AgentConnection {
    match connection {
        workspace::AgentConnection::Connected => AgentConnection::Connected,
        workspace::AgentConnection::Unknown => AgentConnection::Unknown,
    }
}

fn policy(policy: &policy::Policy) -> Policy {
    Policy {
        idle_timeout: span(policy.idle_timeout),
        work_cap: span(policy.work_cap),
        presence_cap: span(policy.presence_cap),
        call_cap: span(policy.call_cap),
        warning: span(policy.warning),
        max_awake: policy.max_awake.and_then(span),
        archive_after: span(policy.archive_after),
        keep_archives: span(policy.keep_archives),
    }
}

fn span(duration: Duration) -> Option<prost_types::Duration> {
    // A policy's durations are at most a year, so they fit.
    prost_types::Duration::try_from(duration).ok()
}

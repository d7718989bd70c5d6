//! Converts messages to and from the control plane. Claims are validated, because they may be
//! incomplete.

use std::time::{Duration, SystemTime};

use podling_proto::{control::v1 as wire, token::VerifyingKeys};

use crate::{
    activity::{
        ActivitySnapshot,
        notices::{SleepCause, SleepNotice},
    },
    api,
    claim::{AgentPolicy, Claim},
    sleep::{SleepDeclined, SleepUrgency},
    spawn::is_variable,
    state_file::AgentInfoFile,
};

/// Protocol version of this agent.
pub const PROTOCOL: u32 = 1;
/// Features of this agent beyond the base protocol.
const CAPABILITIES: [&str; 6] = ["terminals", "processes", "files", "archives", "activity", "sleep"];
/// Reason why a claim is rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClaim {
    #[error("the claim names no workspace")]
    NoWorkspace,
    #[error("the claim requires protocol {0}; this agent supports {PROTOCOL}")]
    Protocol(u32),
    /// Without a key, no client could authenticate to this agent.
    #[error("the claim contains no usable token key")]
    NoKey,
    /// A variable that cannot be passed to a program.
    #[error("the claim's environment contains an invalid variable: {0:?}")]
    Variable(String),
}

/// Builds the first message of a stream. `held` is the claim that the agent already serves.
pub fn hello(info: &AgentInfoFile, held: Option<&Claim>) -> wire::AgentMessage {
    let hello = wire::Hello {
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        capabilities: CAPABILITIES.map(str::to_owned).into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: info.boot_id.clone(),
        key_fingerprint: info.fingerprint.clone(),
        held_claim: held
            .map(|claim| wire::ClaimId { workspace_id: claim.workspace_id.clone(), epoch: claim.epoch }),
        pid: info.pid,
        start_ticks: info.start_ticks,
    };
    wire::AgentMessage { message: Some(wire::agent_message::Message::Hello(hello)) }
}

pub fn heartbeat(sequence: u64, snapshot: &ActivitySnapshot) -> wire::AgentMessage {
    let heartbeat = wire::Heartbeat { sequence, activity: Some(api::activity::activity_state(snapshot)) };
    wire::AgentMessage { message: Some(wire::agent_message::Message::Heartbeat(heartbeat)) }
}

/// Parses a warning. Returns `None` for a warning without a time, which withdraws the previous one.
pub fn warning(warn: wire::Warn) -> Option<SleepNotice> {
    let at = warn.at.and_then(|at| SystemTime::try_from(at).ok())?;
    Some(SleepNotice { at, cause: warn.cause() })
}

/// Parses a prepare directive into the hold, the urgency and the cause of the sleep. `force` takes
/// precedence over `requested`.
pub fn prepare(prepare: &wire::Prepare) -> (Option<Duration>, SleepUrgency, SleepCause) {
    let urgency = match (prepare.force, prepare.requested) {
        (true, _) => SleepUrgency::Forced,
        (false, true) => SleepUrgency::Requested,
        (false, false) => SleepUrgency::Idle,
    };
    (prepare.hold.and_then(|hold| Duration::try_from(hold).ok()), urgency, prepare.cause())
}

/// Builds the message that a directive was executed.
pub fn done(id: u64) -> wire::AgentMessage {
    result(id, wire::directive_result::Result::Done(wire::Done {}))
}

/// Builds the message that a directive was declined.
pub fn declined(
    id: u64,
    reason: wire::DeclineReason,
    detail: String,
    snapshot: &ActivitySnapshot,
) -> wire::AgentMessage {
    let activity = Some(api::activity::activity_state(snapshot));
    let declined = wire::Declined { detail, activity, reason: reason.into() };
    result(id, wire::directive_result::Result::Declined(declined))
}

/// Converts the reason why a sleep directive was declined.
pub fn decline_reason(declined: &SleepDeclined) -> wire::DeclineReason {
    match declined {
        SleepDeclined::InUse(_) => wire::DeclineReason::InUse,
        SleepDeclined::IdleTooShort { .. } => wire::DeclineReason::IdleTooShort,
        SleepDeclined::RequestHeld(_) => wire::DeclineReason::RequestHeld,
        SleepDeclined::NotPrepared => wire::DeclineReason::NotPrepared,
        SleepDeclined::AlreadyCommitted => wire::DeclineReason::AlreadyCommitted,
    }
}

fn result(id: u64, result: wire::directive_result::Result) -> wire::AgentMessage {
    let result = wire::DirectiveResult { id, result: Some(result) };
    wire::AgentMessage { message: Some(wire::agent_message::Message::DirectiveResult(result)) }
}

/// Validates and parses a claim.
pub fn claim(claim: wire::Claim) -> Result<Claim, InvalidClaim> {
    let id = claim.id.filter(|id| !id.workspace_id.is_empty()).ok_or(InvalidClaim::NoWorkspace)?;
    if claim.protocol != PROTOCOL {
        return Err(InvalidClaim::Protocol(claim.protocol));
    }
    let keys: Vec<_> = claim
        .token_keys
        .into_iter()
        .filter(|key| !key.id.is_empty() && key.public_key.len() == 32)
        .map(|key| (key.id, key.public_key))
        .collect();
    if keys.is_empty() {
        return Err(InvalidClaim::NoKey);
    }
    if let Some((name, _)) = claim.env.iter().find(|(name, value)| !is_variable(name, value)) {
        return Err(InvalidClaim::Variable(name.clone()));
    }
    Ok(Claim {
        workspace_id: id.workspace_id,
        workspace_name: claim.workspace_name,
        epoch: id.epoch,
        policy: AgentPolicy::from_wire(
            &claim.policy.unwrap_or_default(),
            &claim.settings.unwrap_or_default(),
        ),
        env: claim.env.into_iter().collect(),
        command: claim.command,
        maintenance: claim.maintenance,
        token_keys: VerifyingKeys::new(keys),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> wire::Claim {
        wire::Claim {
            id: Some(wire::ClaimId { workspace_id: "abc".into(), epoch: 3 }),
            protocol: PROTOCOL,
            token_keys: vec![wire::TokenKey { id: "k".into(), public_key: vec![7; 32] }],
            ..Default::default()
        }
    }

    #[test]
    fn empty_policy_is_default() {
        assert_eq!(claim(good()).expect("claim").policy, AgentPolicy::default());
    }

    #[test]
    fn invalid_claim_is_rejected_with_reason() {
        let rejected = |change: fn(&mut wire::Claim)| {
            let mut wire = good();
            change(&mut wire);
            claim(wire).expect_err("rejected")
        };
        assert_eq!(rejected(|c| c.id = None), InvalidClaim::NoWorkspace);
        assert_eq!(rejected(|c| c.protocol = 2), InvalidClaim::Protocol(2));
        assert_eq!(rejected(|c| c.token_keys[0].public_key = vec![1]), InvalidClaim::NoKey);
        assert_eq!(
            rejected(|c| drop(c.env.insert("A=B".into(), String::new()))),
            InvalidClaim::Variable("A=B".into())
        );
    }
}

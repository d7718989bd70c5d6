//! Starts an agent that a fake control plane has claimed, as most tests need it.

use podling_proto::{
    control::v1::{self as wire, control_message::Message},
    token::SigningKey,
};

use crate::{
    agent::AgentProcess,
    control_plane::{AgentSession, Authority, ScriptedControlPlane, claim, key},
};

/// Starts an agent, claims it with a claim that `change` adapts, and waits for its first heartbeat.
/// The caller must hold the control plane and the session, because the agent dials again when they
/// are dropped.
pub(crate) async fn claimed(
    change: impl FnOnce(&mut wire::Claim),
) -> (AgentProcess, SigningKey, ScriptedControlPlane, AgentSession) {
    let authority = Authority::new();
    let dir = tempfile::tempdir().expect("dir");
    let mut control_plane =
        ScriptedControlPlane::start(dir.path(), authority.server("podling-control")).await;
    let agent = AgentProcess::start_in(dir, &authority.pem, &[]);
    let mut session = control_plane.session().await;
    let key = key();
    let mut claim = claim(&key);
    change(&mut claim);
    session.send(Message::Claim(claim)).await;
    session.heartbeat().await;
    (agent, key, control_plane, session)
}

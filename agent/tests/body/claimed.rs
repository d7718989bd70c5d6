//! An agent that was claimed by a small control plane: where most stories begin. Must not know what they are about.

use podling_proto::{
    control::v1::{self as wire, control_message::Message},
    token::SigningKey,
};

use crate::{
    agent::Agent,
    plane::{Authority, Plane, Session, claim, key},
};

/// An agent whose claim was changed like this before it was sent; it has beaten once. Plane and session must be kept, or the agent
/// looks for others.
pub(crate) async fn claimed(change: impl FnOnce(&mut wire::Claim)) -> (Agent, SigningKey, Plane, Session) {
    let authority = Authority::new();
    let dir = tempfile::tempdir().expect("dir");
    let mut plane = Plane::start(dir.path(), authority.server("podling-control")).await;
    let agent = Agent::start_in(dir, &authority.pem, &[]);
    let mut session = plane.session().await;
    let key = key();
    let mut claim = claim(&key);
    change(&mut claim);
    session.send(Message::Claim(claim)).await;
    session.beat().await;
    (agent, key, plane, session)
}

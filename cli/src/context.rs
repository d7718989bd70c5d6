//! What every command gets: the options all have, and the way to the control plane.

use crate::{
    client::Client,
    failure::CommandFailure,
    target::{ControlPlaneTarget, GlobalOptions},
};

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// The options all commands have.
    pub global: GlobalOptions,
}

impl Context {
    /// A connection to the control plane that is meant.
    pub async fn client(&self) -> Result<Client, CommandFailure> {
        Client::connect(&ControlPlaneTarget::find(&self.global)?).await
    }

    /// Whether scripts read the answer.
    pub fn json(&self) -> bool {
        self.global.json
    }
}

//! Shared input of all commands: the global options and the connection to the control plane.

use crate::{
    client::Client,
    failure::CommandFailure,
    target::{ControlPlaneTarget, GlobalOptions},
};

/// Shared input of all commands.
#[derive(Debug)]
pub struct Context {
    pub global: GlobalOptions,
}

impl Context {
    /// Connects to the control plane that the global options select.
    pub async fn client(&self) -> Result<Client, CommandFailure> {
        Client::connect(&ControlPlaneTarget::find(&self.global)?).await
    }

    /// Returns whether the result is printed as JSON.
    pub fn json(&self) -> bool {
        self.global.json
    }
}

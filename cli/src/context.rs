//! Gives every command the global options and a connection to the control plane.

use crate::{
    client::Client,
    failure::CommandFailure,
    target::{ControlPlaneTarget, GlobalOptions},
};

/// Input that every command receives.
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

//! The interface that authenticates agents when they connect. Each backend has an implementation
//! for the agents that it starts.
//!
//! Independent of the connection and of the other messages of an agent.

use std::future::Future;

use podling_core::id::WorkspaceId;

use super::{BackendError, InstanceId};

/// Authenticates agents by their credentials.
///
/// Implementations keep this contract:
/// - The credential alone determines the workspace.
/// - The credential also determines the instance if it names one, as the token of a pod does.
///   Otherwise the process that the agent reports determines the instance. This report is not
///   verified; it only distinguishes agents that have the same credential.
/// - Any client may present a credential at any time. The rejection of a wrong credential must be
///   cheap and must reveal nothing.
pub trait AgentReviewer: Send + Sync + 'static {
    /// The fact that a credential proves besides the workspace; `()` if there is none.
    type CredentialProof: Send + 'static;

    /// Returns what the credential proves; `None` if the credential is not valid. An error means
    /// that the credential could not be reviewed.
    fn review(
        &self,
        credential: &str,
    ) -> impl Future<Output = Result<Option<ReviewedCredential<Self::CredentialProof>>, BackendError>> + Send;

    /// Returns the id of the pod or process that runs this agent.
    fn instance(&self, proof: Self::CredentialProof, process: ReportedProcess) -> InstanceId;
}

/// The facts that a valid credential proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedCredential<P> {
    /// The workspace that the agent serves.
    pub workspace: WorkspaceId,
    /// Proof that the caller passes to [`AgentReviewer::instance`].
    pub proof: P,
}

/// The process of an agent, as the agent reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportedProcess {
    /// Process id in the agent's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since the machine's boot.
    pub start_ticks: u64,
}

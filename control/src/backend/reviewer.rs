//! Authenticates agents: called where agents connect, implemented beside the backend that started
//! them.
//!
//! Must not know how agents connect, nor what else they send.

use std::future::Future;

use podling_core::id::WorkspaceId;

use super::{BackendError, InstanceId};

/// Authenticates agents by their credentials.
///
/// The contract:
/// - The workspace of an agent follows from its credential alone.
/// - The instance follows from the credential where that names one (a pod's token names the pod).
///   Otherwise it follows from the process that the agent reports, which only distinguishes holders
///   of the same credential.
/// - Any client may present a credential at any time. A wrong one must cost little, and its
///   rejection must reveal nothing.
pub trait AgentReviewer: Send + Sync + 'static {
    /// What a credential proves besides the workspace; `()` if nothing.
    type CredentialProof: Send + 'static;

    /// Reviews a credential; `None` if it belongs to no agent started here. An error says nothing
    /// about the credential: the review could not be made.
    fn review(
        &self,
        credential: &str,
    ) -> impl Future<Output = Result<Option<ReviewedCredential<Self::CredentialProof>>, BackendError>> + Send;

    /// The instance that the backend started for this agent.
    fn instance(&self, proof: Self::CredentialProof, process: ReportedProcess) -> InstanceId;
}

/// An agent with a valid credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedCredential<P> {
    /// The workspace that the agent serves.
    pub workspace: WorkspaceId,
    /// What the credential proves beyond that; passed on to [`AgentReviewer::instance`].
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

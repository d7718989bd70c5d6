//! Who an agent is: asked where agents knock, answered beside the backend that started them.
//!
//! Must not know how agents connect, nor what else they say.

use std::future::Future;

use podling_core::id::WorkspaceId;

use super::{BackendError, InstanceId};

/// Tells agents apart by what they show.
///
/// The contract:
/// - Which workspace an agent serves follows from its credential alone.
/// - Which instance it is follows from the credential where that names one (a pod's token names the pod), else from what the agent
///   says of its process: so much only tells agents apart that hold the same credential.
/// - A credential is shown by anybody, at any time: a wrong one costs little, and its refusal says nothing.
pub trait AgentReviewer: Send + Sync + 'static {
    /// What a credential proves beside the workspace; nothing where that is all it names.
    type CredentialProof: Send + 'static;

    /// Whose agent holds this credential; `None`: none that was started here. An error says nothing about it: nobody could be asked.
    fn review(
        &self,
        credential: &str,
    ) -> impl Future<Output = Result<Option<ReviewedCredential<Self::CredentialProof>>, BackendError>> + Send;

    /// Which of the agents that the backend started this is.
    fn instance(&self, proof: Self::CredentialProof, process: ReportedProcess) -> InstanceId;
}

/// An agent whose credential is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedCredential<P> {
    /// Whose.
    pub workspace: WorkspaceId,
    /// For [`AgentReviewer::instance`].
    pub proof: P,
}

/// What an agent says of the process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportedProcess {
    /// Its id, where it runs.
    pub pid: u32,
    /// When it started: clock ticks since the machine's boot.
    pub start_ticks: u64,
}

//! Authenticates local agents. The credential is `<workspace id>.<secret>`, with a new secret for
//! each start. The instance follows from the process that the agent reports. This report is not
//! verified, because every process that could forge it belongs to the same user as the control
//! plane.

use podling_core::id::WorkspaceId;

use super::process::HostBoot;
use crate::{
    backend::{AgentReviewer, BackendError, InstanceId, ReportedProcess, ReviewedCredential},
    snapshot::{Fingerprint, SnapshotReceiver},
};

/// Returns the credential of this workspace's agent.
pub(super) fn credential(workspace: &WorkspaceId, secret: &str) -> String {
    format!("{workspace}.{secret}")
}

/// Authenticates the agents that the local backend started.
#[derive(Debug)]
pub struct LocalReviewer {
    snapshots: SnapshotReceiver,
    host: HostBoot,
}

impl LocalReviewer {
    /// Creates a reviewer. `snapshots` contain the digests of the secrets. Fails if the machine's
    /// boot ID cannot be read.
    pub fn new(snapshots: SnapshotReceiver) -> Result<Self, BackendError> {
        let host = HostBoot::current()?;
        Ok(Self { snapshots, host })
    }
}

impl AgentReviewer for LocalReviewer {
    type CredentialProof = ();

    async fn review(&self, credential: &str) -> Result<Option<ReviewedCredential<()>>, BackendError> {
        let parts = credential.split_once('.').and_then(|(id, secret)| Some((id.parse().ok()?, secret)));
        let Some((workspace, secret)) = parts else { return Ok(None) };
        let digest = self.snapshots.borrow().get(&workspace).and_then(|view| view.credential);
        // Compared for unknown workspaces too, so that the timing reveals nothing.
        let right =
            constant_time_eq(Fingerprint::of(secret.as_bytes()), digest.unwrap_or(Fingerprint([0; 32])));
        Ok((digest.is_some() && right).then_some(ReviewedCredential { workspace, proof: () }))
    }

    fn instance(&self, (): (), process: ReportedProcess) -> InstanceId {
        self.host.instance_id(process.pid, process.start_ticks)
    }
}

/// Compares two digests in a time that does not depend on where they differ.
fn constant_time_eq(a: Fingerprint, b: Fingerprint) -> bool {
    a.0.iter().zip(b.0).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        samples,
        snapshot::{Snapshot, WorkspaceView},
    };

    fn view(bits: u64, secret: Option<&str>) -> WorkspaceView {
        let credential = secret.map(|secret| Fingerprint::of(secret.as_bytes()));
        WorkspaceView { credential, ..samples::view(samples::spec(bits, "demo")) }
    }

    #[tokio::test]
    async fn credential_is_valid_for_its_own_workspace_only() {
        let (mine, other, new) =
            (WorkspaceId::from_bits(1), WorkspaceId::from_bits(2), WorkspaceId::from_bits(3));
        let views = [view(1, Some("s3cret")), view(2, Some("another")), view(3, None)];
        let workspaces = views.into_iter().map(|view| (view.spec.id.clone(), Arc::new(view))).collect();
        let (_driver, snapshots) = watch::channel(Arc::new(Snapshot {
            generation: 1,
            workspaces,
            observed_time: Default::default(),
            down: None,
        }));
        let reviewer = LocalReviewer::new(snapshots).unwrap();
        let good = reviewer.review(&credential(&mine, "s3cret")).await.unwrap();
        assert_eq!(good, Some(ReviewedCredential { workspace: mine.clone(), proof: () }));
        for bad in [
            credential(&mine, ""),
            credential(&mine, "another"),
            credential(&other, "s3cret"),
            credential(&new, ""),
            credential(&WorkspaceId::from_bits(9), "s3cret"),
            "s3cret".into(),
            String::new(),
        ] {
            assert_eq!(reviewer.review(&bad).await.unwrap(), None, "{bad}");
        }
        let instance = |pid, start_ticks| reviewer.instance((), ReportedProcess { pid, start_ticks });
        assert_eq!(instance(7, 9), instance(7, 9));
        assert_ne!(instance(7, 9), instance(7, 10), "a reused process id is another agent");
        assert_ne!(instance(7, 9), instance(8, 9));
    }
}

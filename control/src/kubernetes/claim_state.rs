//! The state of a workspace's volume claim, as the status of the workspace displays it.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use podling_core::id::WorkspaceId;
use tokio::sync::watch;

use super::objects::KEEP_DATA;

/// Receives the states of all claims.
pub type ClaimReceiver = watch::Receiver<Arc<VolumeClaims>>;

/// The observed claims of all workspaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeClaims {
    /// Whether the first list of claims is complete.
    pub listed: bool,
    pub claims: BTreeMap<WorkspaceId, VolumeClaimState>,
}

/// A claim, and whether pods can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeClaimState {
    pub name: String,
    pub phase: VolumeClaimPhase,
    /// Size that the claim requests.
    pub size: Option<String>,
    /// Text of the cluster that explains the phase. May be empty.
    pub detail: String,
}

/// The phase of a volume claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeClaimPhase {
    /// No volume is bound to the claim yet.
    Pending,
    Bound,
    /// The claim's volume does not exist any more.
    Lost,
    /// The claim was deleted outside Podling. Only Podling's finalizer still keeps it.
    Deleted,
}

impl VolumeClaimState {
    /// Returns the state of a claim.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let phase = match phase {
            _ if claim.metadata.deletion_timestamp.is_some() => VolumeClaimPhase::Deleted,
            Some("Bound") => VolumeClaimPhase::Bound,
            Some("Lost") => VolumeClaimPhase::Lost,
            _ => VolumeClaimPhase::Pending,
        };
        let detail = match phase {
            VolumeClaimPhase::Deleted => claim_deleted_error(claim),
            _ => String::new(),
        };
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let size = requests.and_then(|requests| Some(requests.get("storage")?.0.clone()));
        Self { name: claim.name_any(), phase, size, detail }
    }
}

/// Explains what to do about a claim that was deleted outside Podling. No pod can use such a claim,
/// and only Podling's finalizer still protects its data.
pub fn claim_deleted_error(claim: &PersistentVolumeClaim) -> String {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    format!(
        "the claim {name} was deleted, so no pod can use it any more. Its data is on the volume \
         {volume:?}: set the volume's persistentVolumeReclaimPolicy to Retain, remove the finalizer \
         {KEEP_DATA} from the claim, remove the volume's claimRef, and create a claim {name} for it \
         with the same labels",
        name = claim.name_any(),
    )
}

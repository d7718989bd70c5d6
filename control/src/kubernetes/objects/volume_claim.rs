//! Builds the volume claim of a workspace.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use podling_core::id::WorkspaceId;

use super::{KEEP_DATA, StorageSpec, labels};

/// Builds the claim of a workspace. It outlives the workspace's pods, and is deleted only after its
/// data is archived or discarded.
pub fn volume_claim(workspace: &WorkspaceId, name: &str, storage: &StorageSpec) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels(workspace)),
            finalizers: Some(vec![KEEP_DATA.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![storage.access_mode.as_str().to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.size.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: storage.class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::objects::volume_claim_name;

    #[test]
    fn claim_survives_deletion_of_other_objects() {
        let workspace = WorkspaceId::from_bits(7);
        let claim = volume_claim(&workspace, &volume_claim_name(&workspace), &StorageSpec::default());
        assert_eq!(claim.metadata.owner_references, None, "a cascading delete would delete the claim");
        assert_eq!(claim.metadata.finalizers.unwrap(), [KEEP_DATA]);
        let spec = claim.spec.unwrap();
        assert_eq!(spec.access_modes.unwrap(), ["ReadWriteOncePod"]);
        assert_eq!(spec.storage_class_name, None, "the cluster's default class");
    }
}

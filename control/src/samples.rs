//! Sample values for tests of this crate.

use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};

/// Returns a spec whose desired state is awake.
pub(crate) fn spec(bits: u64, name: &str) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(bits),
        name: name.parse().unwrap(),
        owner: "me".parse().unwrap(),
        template: "shell".into(),
        command: vec![],
        env: [("KEY".to_owned(), "value".to_owned())].into(),
        policy: Policy::default(),
        resources: Resources::default(),
        storage_bytes: None,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: Timestamp(1),
        request_id: "r".into(),
    }
}

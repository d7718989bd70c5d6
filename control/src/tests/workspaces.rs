//! Sample workspaces for the unit tests of this crate and for the tests in `control/tests`.

use std::sync::Arc;

use podling_control::snapshot::WorkspaceView;
use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    reason::StateReason,
    status::Status,
    time::Timestamp,
    workspace::{AgentConnection, DesiredState, Resources, Spec},
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

/// Returns the view of a workspace that was just created.
pub(crate) fn view(spec: Spec) -> WorkspaceView {
    WorkspaceView {
        spec: Arc::new(spec),
        state: Status::new(Timestamp(0)).state(),
        reason: StateReason::Created,
        since: Timestamp(0),
        connection: AgentConnection::Unknown,
        activity: None,
        agent: None,
        next: None,
        restarts: 0,
        allocated: None,
        actual: None,
        waits: None,
        storage: true,
        queue_position: None,
        progress: None,
        archives: Vec::new(),
        log: Arc::default(),
        credential: None,
        undelete: true,
        version: 1,
    }
}

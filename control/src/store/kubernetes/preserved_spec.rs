//! Spec fields that are not part of the record. When a workspace is deleted, they are preserved in
//! its `WorkspaceArchive`; a restored workspace gets them back.

use kube::Error;

use super::{KubernetesStore, resource_cache::LastWrite};
use crate::{
    backup_store::StoreKey,
    kubernetes::{
        Port, SecretKey, StorageSpec, Variable, WorkspaceArchiveSpec, WorkspaceSpec, objects::AGENT_PORT,
    },
    store::WorkspaceRecord,
};

/// The part of a workspace's spec that its record does not contain.
#[derive(Debug, Default)]
pub(super) struct PreservedSpec {
    storage: Option<StorageSpec>,
    ports: Vec<Port>,
    environment: Vec<Variable>,
}

impl PreservedSpec {
    fn of_archive(archive: WorkspaceArchiveSpec) -> Self {
        Self { storage: archive.storage, ports: archive.ports, environment: archive.environment }
    }

    /// Extracts the fields from a spec.
    pub(super) fn of(spec: &WorkspaceSpec) -> Self {
        Self {
            storage: spec.storage.clone(),
            ports: spec.ports.clone(),
            environment: spec.environment.clone(),
        }
    }

    /// Stores the fields in the archive resource, without references to reserved secrets and without
    /// the agent's port. An older CRD may have accepted them, and the present one rejects them.
    pub(super) fn save_to(self, archive: &mut WorkspaceArchiveSpec) {
        let is_permitted =
            |variable: &Variable| !variable.secret.as_ref().is_some_and(SecretKey::is_reserved);
        archive.storage = self.storage;
        archive.ports = self.ports.into_iter().filter(|port| port.port != AGENT_PORT).collect();
        archive.environment = self.environment.into_iter().filter(is_permitted).collect();
    }

    /// Copies the fields into a new spec. Variables that the spec already has are not replaced, and
    /// neither is its volume if none was preserved.
    pub(super) fn apply_to(self, spec: &mut WorkspaceSpec) {
        spec.storage = self.storage.or(spec.storage.take());
        spec.ports = self.ports;
        for variable in self.environment {
            if spec.environment.iter().all(|own| own.name != variable.name) {
                spec.environment.push(variable);
            }
        }
    }
}

impl KubernetesStore {
    /// Returns the fields for a resource that is created. They come from the workspace's own
    /// archive resource, or else from the workspace whose archive is its source.
    pub(super) async fn preserved_spec(
        &self,
        record: &WorkspaceRecord,
        written: &LastWrite,
    ) -> Result<PreservedSpec, Error> {
        let source =
            || record.spec.source.as_ref()?.0.parse().ok().map(|key: StoreKey| key.workspace().clone());
        let source_id = if written.archived { Some(record.spec.id.clone()) } else { source() };
        let Some(source_id) = source_id else { return Ok(PreservedSpec::default()) };
        if let Some(there) = self.known_cache(&source_id).and_then(|cache| cache.latest()) {
            return Ok(PreservedSpec::of(&there.spec));
        }
        let archive = self.archives.get_opt(source_id.as_str()).await?;
        Ok(archive.map(|archive| PreservedSpec::of_archive(archive.spec)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn restored_workspace_has_its_former_spec_fields() {
        let spec = |environment| -> WorkspaceSpec {
            let spec = json!({
                "owner": "ada", "template": "python", "storage": {"size": "20Gi"},
                "ports": [{"name": "ide", "port": 80}], "environment": environment,
            });
            serde_json::from_value(spec).unwrap()
        };
        let secret = json!({"name": "TOKEN", "secret": {"name": "tokens", "key": "github"}});
        let own = json!({"name": "ROOT", "secret": {"name": "podling-control", "key": "root-token"}});
        let mut before = spec(json!([{"name": "EDITOR", "value": "vi"}, secret, own]));
        before.ports.push(Port { name: "agent".into(), port: AGENT_PORT });
        let archive = json!({"workspace": "demo", "owner": "ada", "record": {}});
        let mut archive: WorkspaceArchiveSpec = serde_json::from_value(archive).unwrap();
        PreservedSpec::of(&before).save_to(&mut archive);
        let mut after = WorkspaceSpec {
            storage: None,
            ports: Vec::new(),
            ..spec(json!([{"name": "EDITOR", "value": "nano"}]))
        };
        PreservedSpec::of_archive(archive).apply_to(&mut after);
        assert_eq!(after, spec(json!([{"name": "EDITOR", "value": "nano"}, secret])));
    }
}

//! A template's changes of the pods that Podling makes.

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A strategic merge patch of a pod, as for `kubectl patch`. Podling's own container is called
/// "workspace".
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodOverrides {
    /// Labels and annotations of the pods.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub metadata: Map<String, Value>,
    /// Patch of the pods' spec. Lists are merged by their merge keys: containers, volumes and
    /// variables by name, mounts by mountPath. `$patch: delete` removes an element.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub spec: Map<String, Value>,
}

impl PodOverrides {
    /// Returns whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        self.metadata.is_empty() && self.spec.is_empty()
    }

    /// Returns the patch of a pod.
    pub(super) fn as_patch(&self) -> Map<String, Value> {
        let parts = [("metadata", &self.metadata), ("spec", &self.spec)];
        let set = parts.into_iter().filter(|(_, part)| !part.is_empty());
        set.map(|(name, part)| (name.to_owned(), Value::Object(part.clone()))).collect()
    }
}

/// Returns the schema of an object whose fields the API server does not validate.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

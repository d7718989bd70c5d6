//! Environment of terminals and processes.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A variable: with a value, or with one that a secret holds.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.secret)").message("a variable has either a value or a secret")
)]
pub struct Variable {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('PODLING_')").message("what begins with PODLING_ is Podling's own")
    )]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub value: Option<String>,
    /// Where its value is: it is read when the workspace starts and goes to its agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretKey>,
}

/// How the secrets begin whose content no workspace may have.
const RESERVED_SECRET_PREFIX: &str = "podling-";

/// A key of a Secret in the same namespace. Whoever may make a workspace may read any of them, as whoever may make a pod, but for Podling's own.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('podling-')").message("secrets whose names begin with podling- are Podling's own")
    )]
    pub name: String,
    /// Its key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl SecretKey {
    /// Podling's own secrets are no workspace's to read. (An older kind let them in.)
    pub fn is_reserved(&self) -> bool {
        self.name.starts_with(RESERVED_SECRET_PREFIX)
    }
}

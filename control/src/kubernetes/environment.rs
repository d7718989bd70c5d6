//! Environment variables of terminals and processes.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// An environment variable with either a plain value or a reference to a secret.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.secret)")
            .message("a variable has either a value or a secret")
)]
pub struct Variable {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('PODLING_')")
            .message("names that begin with PODLING_ are reserved for Podling")
    )]
    pub name: String,
    /// Plain value of the variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub value: Option<String>,
    /// Reference to a Secret with the value. The node reads the Secret when the workspace starts
    /// and passes the value only to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretKey>,
}

/// Secrets with this prefix are reserved for Podling, and no workspace may read them.
const RESERVED_SECRET_PREFIX: &str = "podling-";

/// A key of a Secret in the same namespace. A user who can create workspaces can read every Secret
/// of the namespace except Podling's own, as a user who can create pods can.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('podling-')")
            .message("secrets whose names begin with podling- are reserved for Podling")
    )]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl SecretKey {
    /// Returns whether the Secret is reserved for Podling. Each start checks this too, because an
    /// older CRD may have accepted such a reference.
    pub fn is_reserved(&self) -> bool {
        is_reserved_secret(&self.name)
    }
}

/// Returns whether the Secret of this name is reserved for Podling.
pub(super) fn is_reserved_secret(name: &str) -> bool {
    name.starts_with(RESERVED_SECRET_PREFIX)
}

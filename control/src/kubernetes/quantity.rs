//! Quantities in specs: all that Kubernetes accepts for pods, as text or as a number.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// A decimal number, and a unit or a power of ten.
const PATTERN: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

/// Returns the schema of a quantity.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 16, "pattern": PATTERN})
}

/// Reads a quantity as text.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum IntOrString {
        Int(i64),
        String(String),
    }
    Ok(match IntOrString::deserialize(deserializer)? {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text,
    })
}

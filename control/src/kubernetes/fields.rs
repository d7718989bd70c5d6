//! Parts of the specs of several resources: variables, ports, quantities, CPU and memory, volumes,
//! and policies. Quantities are all that Kubernetes accepts for pods, as text or as a number.

use std::time::Duration;

use kube::{KubeSchema, core::Rule};
use podling_core::{
    policy::{Policy, PolicyOverrides},
    policy_fields,
    workspace::Resources,
};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::syntax::{is_secret_key, is_subdomain};
use crate::quantity::{duration, duration_words};

/// Secrets with this prefix are reserved for Podling, and no workspace may read them.
const RESERVED_SECRET_PREFIX: &str = "podling-";
/// A decimal number, and a unit or a power of ten.
const PATTERN: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";
/// Names of most objects in Kubernetes.
const SUBDOMAIN_PATTERN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Keys of a Secret. Neither "." nor "..", nor a name that begins with "..", is a key.
const KEY_PATTERN: &str = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$";
/// Durations as [`duration()`] reads them.
const DURATION_PATTERN: &str = concat!(
    r"^([0-9]+(\.[0-9]+)?d)?([0-9]+(\.[0-9]+)?h)?([0-9]+(\.[0-9]+)?m)?",
    r"([0-9]+(\.[0-9]+)?s)?([0-9]+(\.[0-9]+)?ms)?$"
);
/// The value that means "no limit". If the value is absent, the template's applies.
const NONE: &str = "none";

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

/// A key of a Secret in the same namespace. A user who can create workspaces can read every Secret
/// of the namespace except Podling's own, as a user who can create pods can.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN_PATTERN))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('podling-')")
            .message("secrets whose names begin with podling- are reserved for Podling")
    )]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = KEY_PATTERN))]
    pub key: String,
}

impl SecretKey {
    /// Returns whether the Secret is reserved for Podling. Each start checks this too, because an
    /// older CRD may have accepted such a reference.
    pub fn is_reserved(&self) -> bool {
        is_reserved_secret(&self.name)
    }

    /// Returns whether the CRD accepts the reference. An older CRD may have accepted others.
    pub fn is_permitted(&self) -> bool {
        !self.is_reserved() && is_subdomain(&self.name) && is_secret_key(&self.key)
    }
}

/// Returns whether the Secret of this name is reserved for Podling.
pub(super) fn is_reserved_secret(name: &str) -> bool {
    name.starts_with(RESERVED_SECRET_PREFIX)
}

/// A named container port (TCP) of the pod, for `kubectl port-forward`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name of the port, such as "ide".
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Number of the port that a program in the workspace listens on.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(
        validation = Rule::new("self != 7070")
            .message("port 7070 belongs to Podling's agent; use another port")
    )]
    pub port: u16,
}

/// Returns the schema of a quantity.
fn quantity_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 16, "pattern": PATTERN})
}

/// A quantity as the API server stores it.
#[derive(Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(i64),
    String(String),
}

impl IntOrString {
    fn into_text(self) -> String {
        match self {
            Self::Int(number) => number.to_string(),
            Self::String(text) => text,
        }
    }
}

/// Reads a quantity as text.
fn deserialize_quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    IntOrString::deserialize(deserializer).map(IntOrString::into_text)
}

/// Reads a quantity as text; `None` if it is null.
fn deserialize_optional_quantity<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map(|quantity| quantity.map(IntOrString::into_text))
}

/// Returns the CEL rule for the range of a CPU.
fn cpu_range() -> Rule {
    Rule::new(
        "quantity(string(self)).isGreaterThan(quantity('0')) && \
         quantity(string(self)).compareTo(quantity('1k')) <= 0",
    )
    .message("must be more than 0 and at most 1000 cores")
}

/// Returns the CEL rule for the range of a memory.
fn memory_range() -> Rule {
    Rule::new(
        "quantity(string(self)).compareTo(quantity('64Mi')) >= 0 && \
         quantity(string(self)).compareTo(quantity('64Ti')) <= 0",
    )
    .message("must be at least 64Mi, for the agent and a shell, and at most 64Ti")
}

/// Returns the CEL rule for the range of a volume's size.
fn size_range() -> Rule {
    Rule::new(
        "quantity(string(self)).compareTo(quantity('1Mi')) >= 0 && \
         quantity(string(self)).compareTo(quantity('1Pi')) <= 0",
    )
    .message("must be at least 1Mi and at most 1Pi")
}

/// CPU and memory of a template's workspaces. The container's requests and limits are both set to
/// these values.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// Cores ("2", "0.5") or millicores ("500m").
    #[serde(default = "cpu", deserialize_with = "deserialize_quantity")]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(validation = cpu_range())]
    pub cpu: String,
    /// Bytes with a unit ("512Mi", "2Gi").
    #[serde(default = "memory", deserialize_with = "deserialize_quantity")]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(validation = memory_range())]
    pub memory: String,
}

impl ResourcesSpec {
    /// Converts resources to exact values in millicores and bytes.
    pub fn of(resources: Resources) -> Self {
        Self { cpu: format!("{}m", resources.cpu_millis), memory: resources.memory_bytes.to_string() }
    }
}

impl Default for ResourcesSpec {
    fn default() -> Self {
        Self { cpu: cpu(), memory: memory() }
    }
}

fn cpu() -> String {
    "1".into()
}

fn memory() -> String {
    "1Gi".into()
}

/// CPU and memory of a workspace. The container's requests and limits are both set to these values.
/// A value that is left out is the template's.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceOverrides {
    /// Cores ("2", "0.5") or millicores ("500m"). Default: the template's.
    #[serde(
        default,
        deserialize_with = "deserialize_optional_quantity",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(validation = cpu_range())]
    pub cpu: Option<String>,
    /// Bytes with a unit ("512Mi", "2Gi"). Default: the template's.
    #[serde(
        default,
        deserialize_with = "deserialize_optional_quantity",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(validation = memory_range())]
    pub memory: Option<String>,
}

impl From<ResourcesSpec> for ResourceOverrides {
    fn from(resources: ResourcesSpec) -> Self {
        Self { cpu: Some(resources.cpu), memory: Some(resources.memory) }
    }
}

/// Access mode of the volume. With ReadWriteOncePod, the cluster ensures that at most one pod uses the
/// volume. Use ReadWriteOnce if the driver of the StorageClass does not support ReadWriteOncePod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AccessMode {
    /// The cluster ensures that at most one pod uses the volume.
    #[default]
    ReadWriteOncePod,
    /// The cluster allows several pods of one node to use the volume, but Podling starts only one.
    ReadWriteOnce,
}

/// The volume of a template's workspaces. It remains while the workspace is asleep.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size of the volume ("10Gi"). A change does not affect volumes that exist, unless it is larger
    /// and the StorageClass allows expansion.
    #[serde(default = "size", deserialize_with = "deserialize_quantity")]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(validation = size_range())]
    pub size: String,
    /// With ReadWriteOncePod, the cluster ensures that at most one pod uses the volume. Use
    /// ReadWriteOnce if the driver of the StorageClass does not support ReadWriteOncePod.
    #[serde(default)]
    pub access_mode: AccessMode,
    /// Name of the StorageClass. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN_PATTERN))]
    pub class_name: Option<String>,
}

/// The volume of a workspace. It remains while the workspace is asleep. A value that is left out is
/// the template's at the time at which the volume claim is created.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "has(self.className) == has(oldSelf.className) && \
         (!has(self.className) || self.className == oldSelf.className)"
    )
        .message(
            "the storage class of a volume cannot change; \
             archive the workspace and restore it into another"
        ),
    validation = Rule::new(
        "has(self.accessMode) == has(oldSelf.accessMode) && \
         (!has(self.accessMode) || self.accessMode == oldSelf.accessMode)"
    )
        .message(
            "the access mode of a volume cannot change; \
             archive the workspace and restore it into another"
        ),
    validation = Rule::new("has(self.size) || !has(oldSelf.size)")
        .message("the size of a volume cannot be removed; a volume cannot shrink")
)]
pub struct StorageOverrides {
    /// Size of the volume ("10Gi"). It cannot shrink. It can grow if the StorageClass allows it.
    /// Default: the template's.
    #[serde(
        default,
        deserialize_with = "deserialize_optional_quantity",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity_schema")]
    #[x_kube(
        validation = size_range(),
        validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0")
            .message("a volume cannot shrink")
    )]
    pub size: Option<String>,
    /// Access mode of the volume. Default: the template's. The CRD has the description of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
    /// Name of the StorageClass. Default: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN_PATTERN))]
    pub class_name: Option<String>,
}

impl StorageOverrides {
    /// Returns the volume of a workspace whose template has this one.
    pub fn over(&self, template: &StorageSpec) -> StorageSpec {
        StorageSpec {
            size: self.size.as_ref().unwrap_or(&template.size).clone(),
            access_mode: self.access_mode.unwrap_or(template.access_mode),
            class_name: self.class_name.as_ref().or(template.class_name.as_ref()).cloned(),
        }
    }
}

impl From<StorageSpec> for StorageOverrides {
    fn from(storage: StorageSpec) -> Self {
        Self {
            size: Some(storage.size),
            access_mode: Some(storage.access_mode),
            class_name: storage.class_name,
        }
    }
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: size(), access_mode: AccessMode::default(), class_name: None }
    }
}

fn size() -> String {
    "10Gi".into()
}

/// Returns the CEL expression that converts the text `value` to whole seconds. `duration` of CEL
/// knows no days, and an expression that builds new texts exceeds the API server's cost limit.
fn cel_seconds(value: &str) -> String {
    format!(
        "(({value}.contains('d') ? double({value}.substring(0, {value}.indexOf('d'))) * 86400.0 : 0.0) + \
         ({value}.endsWith('d') ? 0.0 : \
         double(duration({value}.substring({value}.indexOf('d') + 1)).getSeconds())))"
    )
}

/// Returns the CEL expression that checks the syntax of a duration. Without this check, the API server
/// reports an internal error of CEL for a text that is no duration.
fn cel_is_duration(value: &str) -> String {
    format!("({value} != '' && {value}.matches(r'{DURATION_PATTERN}'))")
}

/// Returns the CEL expression that checks a duration and its range: 1 s to 365 days.
fn in_range() -> String {
    let (is_duration, seconds) = (cel_is_duration("self"), cel_seconds("self"));
    format!("{is_duration} && {seconds} >= 1.0 && {seconds} <= 31536000.0")
}

/// Returns the CEL rule for a warning and an idle timeout of the same spec.
fn warning_fits() -> Rule {
    let (warning, idle_timeout) = (cel_seconds("self.warning"), cel_seconds("self.idleTimeout"));
    let (is_warning, is_idle_timeout) =
        (cel_is_duration("self.warning"), cel_is_duration("self.idleTimeout"));
    let rule = format!(
        "!has(self.idleTimeout) || !has(self.warning) || !{is_warning} || !{is_idle_timeout} || \
         {warning} <= 1.0 || {warning} * 2.0 <= {idle_timeout}"
    );
    Rule::new(rule).message("warning must be at most half of idleTimeout")
}

/// Returns the CEL rule for the warning of a template whose idle timeout is Podling's default.
pub(super) fn warning_fits_default() -> Rule {
    let (warning, is_warning) = (cel_seconds("self.policy.warning"), cel_is_duration("self.policy.warning"));
    let longest = Policy::default().longest_warning();
    let rule = format!(
        "!has(self.policy) || !has(self.policy.warning) || has(self.policy.idleTimeout) || \
         !{is_warning} || {warning} <= {}.0",
        longest.as_secs()
    );
    let message = format!(
        "policy.warning must be at most {}, half of the default idleTimeout; set policy.idleTimeout too",
        duration_words(longest)
    );
    Rule::new(rule).message(message.as_str())
}

macro_rules! policy {
    ($($(#[doc = $doc:literal])* $field:ident = $default:expr;)*) => {
        /// Timeouts and caps as durations ("7d", "36h", "1h30m", "90s"), from 1 s to 365 days. Absent
        /// values come from the template, or else from Podling's defaults.
        #[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[x_kube(validation = warning_fits())]
        pub struct PolicySpec {
            $(
                $(#[doc = $doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schemars(length(max = 16))]
                #[x_kube(
                    validation = Rule::new(in_range())
                        .message("must be a duration from 1s to 365d, such as 90s, 1h30m or 7d")
                )]
                pub $field: Option<String>,
            )*
            /// Longest time awake, in use or not; "none" means no limit. Default: none.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 16))]
            #[x_kube(
                validation = Rule::new(format!("self == 'none' || {}", in_range()))
                    .message("must be none, or a duration from 1s to 365d, such as 36h or 7d")
            )]
            pub max_awake: Option<String>,
        }
    };
}

policy_fields!(policy);

impl PolicySpec {
    /// Returns the values that the spec sets. Ignores values that cannot be parsed, which an older
    /// CRD may have accepted.
    pub fn overrides(&self) -> PolicyOverrides {
        let time = |text: &Option<String>| text.as_deref().and_then(duration);
        let max_awake = match self.max_awake.as_deref() {
            Some(NONE) => Some(None),
            _ => time(&self.max_awake).map(Some),
        };
        macro_rules! overrides {
            ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
                PolicyOverrides { $($field: time(&self.$field),)* max_awake }
            };
        }
        policy_fields!(overrides)
    }

    /// Returns a spec that sets every value of the policy, so that no value comes from a template.
    pub fn of(policy: &Policy) -> Self {
        let words = |time: Duration| Some(duration_words(time));
        // A record of an earlier version may have a longer warning, which the CRD rejects.
        let policy = policy.clone().with_limited_warning();
        let max_awake = policy.max_awake.map_or_else(|| Some(NONE.to_owned()), words);
        macro_rules! spec {
            ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
                Self { $($field: words(policy.$field),)* max_awake }
            };
        }
        policy_fields!(spec)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_storage_fields_are_the_templates() {
        let template: StorageSpec = serde_json::from_value(
            json!({"size": "1Gi", "accessMode": "ReadWriteOnce", "className": "fast"}),
        )
        .unwrap();
        let over =
            |own| -> StorageSpec { serde_json::from_value::<StorageOverrides>(own).unwrap().over(&template) };
        assert_eq!(over(json!({})), template);
        let sized = StorageSpec { size: "20".into(), ..template.clone() };
        assert_eq!(over(json!({"size": 20, "accessMode": null})), sized);
        let class = over(json!({"className": "local-path"}));
        assert_eq!((class.size.as_str(), class.access_mode), ("1Gi", AccessMode::ReadWriteOnce));
        let written = json!(StorageOverrides { size: Some("2Gi".into()), ..StorageOverrides::default() });
        assert_eq!(written, json!({"size": "2Gi"}), "absent fields are not written");
    }

    #[test]
    fn timeouts_may_be_days() {
        let spec: PolicySpec =
            serde_json::from_str(r#"{"archiveAfter": "1d", "keepArchives": "1.5d12h"}"#).unwrap();
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!((spec.overrides().archive_after, spec.overrides().keep_archives), (hours(24), hours(48)));
    }

    #[test]
    fn policy_spec_contains_every_value() {
        let hour = Duration::from_secs(3600);
        let template = Policy { max_awake: Some(hour), ..Policy::default() };
        for policy in [Policy::default(), Policy { idle_timeout: hour, ..template.clone() }] {
            let written = PolicySpec::of(&policy);
            assert_eq!(template.clone().with(&written.overrides()), policy, "{written:?}");
        }
    }
}

//! Derives a workspace's spec from its resource and its template. Does no I/O.

use kube::ResourceExt;
use podling_core::{
    archive::ArchiveKey,
    id::{InvalidIdentifier, WorkspaceId},
    policy::Policy,
    time::Timestamp,
    workspace::{DesiredSpec, DesiredState, Resources, Spec},
};
use ring::digest::{SHA256, digest};

use super::{
    DesiredResourceState, ResourceOverrides, ResourcesSpec, Variable, Workspace, WorkspaceTemplateSpec,
    objects::DISCARD,
};
use crate::quantity::{bytes, cores, duration_words};

/// Maximum length of a workspace's name, in characters.
const MAX_NAME: usize = 63;

/// Returns what users want of the workspace. Absent values come from the template, or else from the
/// defaults. Variables with secrets are not included in the environment.
pub fn desired_spec(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> DesiredSpec {
    let spec = &resource.spec;
    let usual = template.map(|template| template.policy.overrides()).unwrap_or_default();
    let own = spec.policy.as_ref().map(|policy| policy.overrides()).unwrap_or_default();
    let is_own = |variable: &&Variable| spec.environment.iter().any(|own| own.name == variable.name);
    let of_template = template.iter().flat_map(|template| &template.environment);
    let variables = of_template.filter(|variable| !is_own(variable)).chain(&spec.environment);
    let valued = |variable: &Variable| Some((variable.name.clone(), variable.value.clone()?));
    DesiredSpec {
        desired_state: desired_state(resource),
        request_seq: spec.request_seq.try_into().unwrap_or_default(),
        resources: requested_resources(spec.resources.as_ref(), template.map(|template| &template.resources)),
        policy: Policy::default().with(&usual).with(&own).with_limited_warning(),
        env: variables.filter_map(valued).collect(),
    }
}

/// Returns the desired state in the spec, unless the resource is being deleted.
fn desired_state(resource: &Workspace) -> DesiredState {
    let discards = resource.annotations().get(DISCARD).is_some_and(|value| value == "true");
    match resource.spec.desired_state {
        DesiredResourceState::Discarded => DesiredState::Discarded,
        _ if resource.metadata.deletion_timestamp.is_some() => match discards {
            true => DesiredState::Discarded,
            false => DesiredState::Deleted,
        },
        DesiredResourceState::Awake => DesiredState::Awake,
        DesiredResourceState::Asleep => DesiredState::Asleep,
        DesiredResourceState::Deleted => DesiredState::Deleted,
    }
}

/// Says that the warning of a workspace was chosen longer than half of its idle timeout, which limits
/// it; `None` if it is not limited. Podling's default warning is no choice. The API server refuses a
/// warning that is too long for an idle timeout of the same resource.
pub fn limited_warning(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> Option<String> {
    let usual = template.map(|template| template.policy.overrides()).unwrap_or_default();
    let own = resource.spec.policy.as_ref().map(|policy| policy.overrides()).unwrap_or_default();
    let policy = Policy::default().with(&usual).with(&own);
    let (warning, longest) = (own.warning.or(usual.warning)?, policy.longest_warning());
    let origin = |own: Option<_>, usual: Option<_>| match (own, usual) {
        (Some(_), _) => "the workspace's",
        (None, Some(_)) => "the template's",
        (None, None) => "the default",
    };
    (warning > longest).then(|| {
        format!(
            "{} warning of {} is longer than half of {} idleTimeout of {}, so users are warned {} before \
             sleep; shorten the warning or raise the idleTimeout",
            origin(own.warning, usual.warning),
            duration_words(warning),
            origin(own.idle_timeout, usual.idle_timeout),
            duration_words(policy.idle_timeout),
            duration_words(longest),
        )
    })
}

/// Returns the id in the spec, or else that in the record, or else an id that is derived from the
/// resource's uid. None of them changes or is reused. Fails if the id is not valid.
///
/// A resource that was restored from a backup has another uid than before, but the same record.
pub fn id_of(resource: &Workspace) -> Result<WorkspaceId, InvalidIdentifier> {
    let recorded = || {
        let status = resource.status.as_ref()?;
        let record = status.record.as_ref()?;
        // Earlier versions stored an object, and no `status.id`.
        status.id.as_deref().or_else(|| record.pointer("/spec/id")?.as_str())
    };
    match resource.spec.id.as_deref().or_else(recorded) {
        Some(id) => id.parse(),
        None => {
            let digest = digest(&SHA256, resource.uid().unwrap_or_default().as_bytes());
            let bits = digest.as_ref().iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
            Ok(WorkspaceId::from_bits(bits))
        }
    }
}

/// Returns the possible names of the workspace's resource, in order of preference. Workspaces of
/// two owners may have the same name, but a namespace has each name only once. The second name
/// therefore ends with the id.
pub fn resource_names(spec: &Spec) -> [String; 2] {
    name_candidates(spec.name.as_str(), spec.id.as_str())
}

fn name_candidates(name: &str, id: &str) -> [String; 2] {
    let short = name.get(..MAX_NAME - id.len() - 1).unwrap_or(name).trim_end_matches('-');
    [name.to_owned(), format!("{short}-{id}")]
}

/// Returns the workspace's name from a name of [`name_candidates`], unless that was truncated.
fn own_name<'a>(resource_name: &'a str, id: &str) -> &'a str {
    resource_name.strip_suffix(id).and_then(|name| name.strip_suffix('-')).unwrap_or(resource_name)
}

/// Builds the spec of a workspace whose resource has no record yet. Fails if the name, the owner or
/// the id of the resource is not valid.
pub fn resolve(
    resource: &Workspace,
    template: Option<&WorkspaceTemplateSpec>,
) -> Result<Spec, InvalidIdentifier> {
    let desired = desired_spec(resource, template);
    let created = resource.creation_timestamp().map_or(0, |time| time.0.as_millisecond());
    let (id, resource_name) = (id_of(resource)?, resource.name_any());
    Ok(Spec {
        name: own_name(&resource_name, id.as_str()).parse()?,
        id,
        owner: resource.spec.owner.parse()?,
        template: resource.spec.template.clone(),
        // The pod gets the command from the template, together with the image.
        command: Vec::new(),
        env: desired.env,
        policy: desired.policy,
        resources: desired.resources,
        storage_bytes: None,
        desired_state: desired.desired_state,
        request_seq: desired.request_seq,
        source: resource.spec.source.clone().map(ArchiveKey),
        created: Timestamp(created.try_into().unwrap_or_default()),
        request_id: String::new(),
    })
}

/// Parses resources. Absent values come from the template, or else from the defaults, as do values
/// that cannot be parsed, which an older CRD may have accepted.
pub fn requested_resources(own: Option<&ResourceOverrides>, template: Option<&ResourcesSpec>) -> Resources {
    let usual = Resources::default();
    let own_cpu = own.and_then(|own| cores(own.cpu.as_deref()?));
    let own_memory = own.and_then(|own| bytes(own.memory.as_deref()?));
    Resources {
        cpu_millis: own_cpu.or_else(|| cores(&template?.cpu)).unwrap_or(usual.cpu_millis),
        memory_bytes: own_memory.or_else(|| bytes(&template?.memory)).unwrap_or(usual.memory_bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::kubernetes::WorkspaceStatus;

    fn workspace(spec: serde_json::Value) -> Workspace {
        let metadata = json!({"name": "demo", "uid": "0b3a", "creationTimestamp": "2026-11-27T00:00:00Z"});
        serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": metadata, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn values_absent_in_resource_come_from_template() {
        let template = json!({
            "image": "python", "command": ["jupyter"], "resources": {"cpu": "2", "memory": "4Gi"},
            "policy": {"idleTimeout": "30m", "archiveAfter": "48h"},
            "environment": [{"name": "EDITOR", "value": "vi"}, {"name": "LANG", "value": "C"}],
        });
        let template = serde_json::from_value(template).unwrap();
        let resource = workspace(json!({
            "owner": "ada", "template": "python", "policy": {"idleTimeout": "1h"},
            "environment": [
                {"name": "EDITOR", "value": "nano"},
                {"name": "TOKEN", "secret": {"name": "s", "key": "k"}},
            ],
        }));
        let spec = resolve(&resource, Some(&template)).unwrap();
        assert_eq!(spec.resources, Resources { cpu_millis: 2000, memory_bytes: 4 << 30 });
        assert_eq!(spec.policy.idle_timeout, Duration::from_secs(3600));
        assert_eq!(spec.policy.archive_after, Duration::from_secs(48 * 3600));
        assert_eq!(spec.policy.keep_archives, Policy::default().keep_archives);
        assert_eq!(spec.env["EDITOR"], "nano");
        assert_eq!(spec.env["LANG"], "C");
        assert!(!spec.env.contains_key("TOKEN"), "values of secrets are not read");
        assert_eq!(
            (spec.command.as_slice(), spec.desired_state, spec.request_seq),
            (&[][..], DesiredState::Awake, 0),
            "the pod gets the command from the template"
        );
        assert_eq!(spec.created, Timestamp(1_795_737_600_000));
    }

    #[test]
    fn partial_resources_keep_the_rest_of_the_template() {
        let template = json!({"image": "python", "resources": {"cpu": "100m", "memory": "128Mi"}});
        let template: WorkspaceTemplateSpec = serde_json::from_value(template).unwrap();
        let resources = |own| {
            let resource = workspace(json!({"owner": "ada", "template": "python", "resources": own}));
            let Resources { cpu_millis, memory_bytes } = desired_spec(&resource, Some(&template)).resources;
            (cpu_millis, memory_bytes >> 20)
        };
        assert_eq!(resources(json!({"cpu": "20m"})), (20, 128));
        assert_eq!(resources(json!({"memory": "200Mi"})), (100, 200));
        assert_eq!(resources(json!({"cpu": null, "memory": "lots"})), (100, 128));
        assert_eq!(resources(json!({"cpu": 2, "memory": "4Gi"})), (2000, 4096), "as the API writes them");
    }

    #[test]
    fn warning_too_long_for_inherited_timeout_is_reported() {
        let said = |template: serde_json::Value, own: serde_json::Value| {
            let template = serde_json::from_value(json!({"image": "python", "policy": template})).unwrap();
            let resource = workspace(json!({"owner": "ada", "template": "python", "policy": own}));
            let limited = desired_spec(&resource, Some(&template)).policy.warning.as_secs();
            limited_warning(&resource, Some(&template)).map(|message| (message, limited))
        };
        let (message, limited) =
            said(json!({"idleTimeout": "15m"}), json!({"warning": "20m"})).expect("limited");
        let expected =
            "the workspace's warning of 20m is longer than half of the template's idleTimeout of 15m";
        assert!(message.starts_with(expected) && message.contains("warned 7m30s before"), "{message}");
        assert_eq!(limited, 450, "the message names the effective warning");
        let (message, _) = said(json!({}), json!({"warning": "8m"})).expect("limited");
        assert!(message.contains("the default idleTimeout of 15m"), "{message}");
        let (message, _) = said(json!({"warning": "5m"}), json!({"idleTimeout": "4m"})).expect("limited");
        assert!(message.starts_with("the template's warning of 5m"), "{message}");
        assert_eq!(said(json!({}), json!({"idleTimeout": "1m"})), None, "the default warning is no choice");
        assert_eq!(said(json!({"warning": "5m"}), json!({"warning": "7m"})), None);
    }

    #[test]
    fn second_resource_of_a_name_has_the_id_appended() {
        let id = "abcdefgh2345";
        assert_eq!(name_candidates("demo", id), ["demo", "demo-abcdefgh2345"]);
        assert_eq!(name_candidates("demo", id).map(|name| own_name(&name, id).to_owned()), ["demo", "demo"]);
        let long = format!("{}-{}", "a".repeat(49), "b".repeat(13));
        assert_eq!(name_candidates(&long, id)[1], format!("{}-{id}", "a".repeat(49)));
        assert_eq!(name_candidates(&"a".repeat(63), id)[1].len(), 63);
    }

    #[test]
    fn id_comes_from_spec_or_follows_from_uid() {
        let named = workspace(json!({"owner": "ada", "template": "python", "id": "abcdefgh2345"}));
        assert_eq!(id_of(&named).unwrap().as_str(), "abcdefgh2345");
        let unnamed = workspace(json!({"owner": "ada", "template": "python"}));
        assert_eq!(id_of(&unnamed).unwrap(), id_of(&unnamed).unwrap());
        let mut other = unnamed.clone();
        other.metadata.uid = Some("0b3b".into());
        assert_ne!(id_of(&unnamed).unwrap(), id_of(&other).unwrap());

        // A restored resource has another uid, and the status of the first one. Earlier versions
        // stored the record as an object, and no id beside it.
        let first = id_of(&unnamed).unwrap();
        let object = json!({"schema": 2, "spec": {"id": first}});
        for (id, record) in [(Some(first.to_string()), json!(object.to_string())), (None, object)] {
            other.status = Some(WorkspaceStatus { id, record: Some(record), ..WorkspaceStatus::default() });
            assert_eq!(id_of(&other).unwrap(), first);
        }
    }
}

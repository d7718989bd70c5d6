//! Builds the Workspace resource of a record, and the changes of an existing resource's spec. Does
//! no I/O.

use kube::{ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

use super::resource_cache::desired_spec;
use crate::{
    kubernetes::{
        DesiredResourceState, DesiredSpec, PolicySpec, ResourcesSpec, Variable, Workspace, WorkspaceSpec,
        objects::{ARCHIVE_BEFORE_DELETE, workspace_labels},
    },
    store::WorkspaceRecord,
};

/// Builds the resource of a workspace that has none. The caller sets its name.
pub(super) fn of(record: &WorkspaceRecord) -> Workspace {
    let spec = &record.spec;
    let variable = |(name, value): (&String, &String)| Variable {
        name: name.clone(),
        value: Some(value.clone()),
        secret: None,
    };
    Workspace {
        metadata: ObjectMeta {
            finalizers: Some(vec![ARCHIVE_BEFORE_DELETE.to_owned()]),
            labels: Some(workspace_labels(&spec.id)),
            ..ObjectMeta::default()
        },
        spec: WorkspaceSpec {
            id: Some(spec.id.to_string()),
            source: spec.source.as_ref().map(|source| source.0.clone()),
            owner: spec.owner.to_string(),
            template: spec.template.clone(),
            desired_state: desired_spec(record).desired_state,
            resources: Some(ResourcesSpec::of(spec.resources)),
            storage: None,
            policy: Some(PolicySpec::of(&spec.policy)),
            ports: Vec::new(),
            environment: spec.env.iter().map(variable).collect(),
        },
        status: None,
    }
}

/// Returns the changes of the user's spec that the record requires; `None` if nothing changes. The
/// object is empty if only the finalizer is missing. `before` is the desired spec at the last
/// write. `observed` is the desired spec of resource and template as last read; values that are the
/// same there are not written.
pub(super) fn spec_changes(
    latest: &Workspace,
    record: &WorkspaceRecord,
    before: Option<&DesiredSpec>,
    observed: Option<&DesiredSpec>,
) -> Option<Value> {
    let (now, has) = (desired_spec(record), latest.spec.desired_state);
    let mut spec = serde_json::Map::new();
    let changed =
        |differs: fn(&DesiredSpec, &DesiredSpec) -> bool| before.is_none_or(|before| differs(before, &now));
    let is_new = |differs: fn(&DesiredSpec, &DesiredSpec) -> bool| {
        before.is_some() && changed(differs) && observed.is_none_or(|observed| differs(observed, &now))
    };
    if now.desired_state != has && changed(|a, b| a.desired_state != b.desired_state) {
        let word = match now.desired_state {
            DesiredResourceState::Awake => "Awake",
            DesiredResourceState::Asleep => "Asleep",
        };
        spec.insert("desiredState".into(), word.into());
    }
    if is_new(|a, b| a.resources != b.resources) {
        spec.insert("resources".into(), json!(ResourcesSpec::of(now.resources)));
    }
    if is_new(|a, b| a.policy != b.policy) {
        spec.insert("policy".into(), json!(PolicySpec::of(&now.policy)));
    }
    let has_finalizer = latest.finalizers().iter().any(|finalizer| finalizer == ARCHIVE_BEFORE_DELETE);
    let add_finalizer = !has_finalizer && latest.metadata.deletion_timestamp.is_none();
    (add_finalizer || !spec.is_empty()).then_some(Value::Object(spec))
}

/// Returns the finalizers of the resource and Podling's own, which keeps the resource until its
/// data is archived. The API server accepts no new finalizer once the resource is being deleted.
pub(super) fn finalizers(latest: &Workspace) -> Vec<String> {
    let mut finalizers = latest.finalizers().to_vec();
    if latest.metadata.deletion_timestamp.is_none()
        && !finalizers.iter().any(|finalizer| finalizer == ARCHIVE_BEFORE_DELETE)
    {
        finalizers.push(ARCHIVE_BEFORE_DELETE.to_owned());
    }
    finalizers
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use podling_core::{policy::Policy, status::Status, time::Timestamp, workspace::Spec};

    use super::*;
    use crate::samples;

    /// A record with an idle timeout of this many hours.
    fn record(hours: u64) -> WorkspaceRecord {
        let policy = Policy { idle_timeout: Duration::from_secs(hours * 3600), ..Policy::default() };
        let spec = Spec { policy, ..samples::spec(1, "demo") };
        let status = Status::new(Timestamp(0));
        WorkspaceRecord { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation: 0 }
    }

    #[test]
    fn value_observed_in_spec_or_template_is_not_written() {
        let (before, now) = (record(1), record(2));
        let written = |observed: &WorkspaceRecord| {
            let changes =
                spec_changes(&of(&before), &now, Some(&desired_spec(&before)), Some(&desired_spec(observed)));
            changes.map(|spec| spec["policy"]["idleTimeout"].clone())
        };
        assert_eq!(written(&now), None, "the value was read from the resource");
        assert_eq!(written(&before).unwrap(), "2h", "the value came through the API");
    }
}

//! Changes the `spec` of resources. Each change is computed from the newest version and carries its
//! resourceVersion, so that it overwrites no other edit.

use std::sync::Arc;

use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use podling_core::{spec_change::SpecChange, workspace::DesiredSpec};
use serde_json::{Value, json};

use super::{
    KubernetesStore, failed,
    resource_cache::{LastWrite, ResourceCache, version},
    write::MAX_WRITE_ATTEMPTS,
};
use crate::{
    kubernetes::{
        DesiredResourceState, MANAGER, PolicySpec, ResourcesSpec, Workspace, WorkspaceTemplateSpec,
        desired_spec, has_status_code,
    },
    store::{StoreError, StoredSpec, WorkspaceRecord, stored},
};

/// Returns the spec of a resource. Absent values come from the template.
pub(super) fn stored_spec(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> StoredSpec {
    StoredSpec {
        desired: desired_spec(resource, template),
        generation: resource.metadata.generation.unwrap_or_default(),
        version: version(resource),
        deleted_in_store: resource.metadata.deletion_timestamp.is_some(),
    }
}

impl KubernetesStore {
    /// Applies a change to the newest spec. Fails with `Conflict` if other writes keep conflicting, or
    /// if the workspace is removed.
    pub(super) async fn change_stored_spec(
        &self,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError> {
        let (id, template) = (&known.spec.id, &known.spec.template);
        let found = self.templates.get(template).await;
        let template = found.map_err(|error| failed(format!("read the template {template}"), error))?;
        let mut is_read = false;
        for _ in 0..MAX_WRITE_ATTEMPTS {
            if !self.leadership.is_leader() {
                return Err(StoreError::NotLeader);
            }
            let Some(cache) = self.known_cache(id) else { break };
            let Some(latest) = cache.latest() else {
                let mut written = cache.written.lock().await;
                match cache.latest() {
                    Some(_) => continue,
                    None => return self.change_absent(&cache, &mut written, known, change).await,
                }
            };
            let stored = stored_spec(&latest, template.as_ref());
            match change.apply(&stored.desired, stored.generation) {
                None if is_read => return Ok(stored),
                // The cached version may be old. The newest one may need or permit the change.
                None => {}
                Some(changed) => {
                    let patched = self.patch_spec(&latest, &stored.desired, &changed).await;
                    match patched {
                        Err(error) if is_conflict(&error) => {}
                        Err(error) => return Err(error),
                        Ok(now) => {
                            let stored = stored_spec(&now, template.as_ref());
                            cache.observe(now);
                            // A deleted resource stays deleted, whatever its `spec` says.
                            let is_pruned = !stored.deleted_in_store && is_pruned(&stored.desired, &changed);
                            return if is_pruned { Err(StoreError::OutdatedCrd) } else { Ok(stored) };
                        }
                    }
                }
            }
            self.refresh(&cache).await?;
            is_read = true;
        }
        Err(StoreError::Conflict { name: known.spec.name.to_string() })
    }

    /// Writes what differs between two specs; fails with a conflict if the resource has changed since
    /// `latest`.
    async fn patch_spec(
        &self,
        latest: &Workspace,
        before: &DesiredSpec,
        after: &DesiredSpec,
    ) -> Result<Workspace, StoreError> {
        let name = latest.name_any();
        let metadata = json!({"resourceVersion": latest.resource_version()});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": spec_patch(before, after)}));
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let now = self.workspaces.patch(&name, &params, &patch).await;
        now.map_err(|error| failed(format!("change the workspace {name}"), error))
    }

    /// Changes the spec of a workspace without a resource: only its archives are left, or another client
    /// has removed the resource by force. The resource is created again, unless the workspace stays
    /// deleted.
    async fn change_absent(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError> {
        let (desired, generation) = (known.spec.desired(), known.generation);
        let Some(desired) = change.apply(&desired, generation) else {
            return self.archived_spec(known).await;
        };
        let record = WorkspaceRecord { spec: Arc::new(known.spec.with(&desired)), ..known.clone() };
        match (written.is_archived(), written.is_served()) {
            (true, _) if record.is_gone() => {
                let version = self.write_archive(cache, &record, true).await?;
                Ok(StoredSpec { desired, generation, version, deleted_in_store: false })
            }
            (false, false) => Err(StoreError::Conflict { name: record.spec.name.to_string() }),
            _ => {
                written.set_restoring(written.is_archived());
                let created = self.create(cache, written, &record).await;
                written.set_restoring(written.is_restoring() && created.as_ref().is_err_and(has_no_answer));
                let created = created?;
                Ok(StoredSpec { desired, ..stored_spec(&created, None) })
            }
        }
    }

    /// Reads the spec of a workspace without a resource. An earlier change, whose response was lost, may
    /// have been made.
    async fn archived_spec(&self, known: &WorkspaceRecord) -> Result<StoredSpec, StoreError> {
        let id = known.spec.id.as_str();
        let read = self.archives.get_opt(id).await;
        let archive = read.map_err(|error| failed(format!("read the archive resource of {id}"), error))?;
        let record = archive
            .as_ref()
            .and_then(|archive| stored::read(id, stored::text_of(&archive.spec.record).as_bytes()).ok());
        Ok(StoredSpec {
            desired: record.map_or_else(|| known.spec.desired(), |record| record.spec.desired()),
            generation: known.generation,
            version: archive.as_ref().map_or(0, version),
            deleted_in_store: false,
        })
    }

    /// Reads the newest version of the resource, because another client has written it.
    pub(super) async fn refresh(&self, cache: &ResourceCache) -> Result<(), StoreError> {
        let Some(latest) = cache.latest() else { return Ok(()) };
        let name = latest.name_any();
        let now = self.workspaces.get_opt(&name).await;
        match now.map_err(|error| failed(format!("read the workspace {name}"), error))? {
            Some(now) if now.uid() == latest.uid() => cache.observe(now),
            // The resource was removed by force, and the watch has not reported that yet.
            _ => cache.mark_deleted(),
        }
        Ok(())
    }
}

/// Returns whether another client has written or removed the resource.
pub(super) fn is_conflict(error: &StoreError) -> bool {
    let StoreError::Cluster { source, .. } = error else { return false };
    has_status_code(source, 409) || has_status_code(source, 404)
}

/// Returns whether the API server has not answered, so that it may have made the change.
fn has_no_answer(error: &StoreError) -> bool {
    let StoreError::Cluster { source, .. } = error else { return false };
    match &**source {
        kube::Error::Api(status) => status.code >= 500,
        _ => true,
    }
}

/// Returns whether the API server has dropped a changed field that its CRD does not contain.
fn is_pruned(stored: &DesiredSpec, changed: &DesiredSpec) -> bool {
    (stored.desired_state, stored.request_seq) != (changed.desired_state, changed.request_seq)
}

/// Returns the fields of a `spec` that differ. Fields that do not differ may come from the template.
fn spec_patch(before: &DesiredSpec, after: &DesiredSpec) -> Value {
    let fields = |desired: &DesiredSpec| {
        json!({
            "desiredState": DesiredResourceState::from(desired.desired_state),
            "requestSeq": desired.request_seq,
            "resources": ResourcesSpec::of(desired.resources),
            "policy": PolicySpec::of(&desired.policy),
        })
    };
    let (before, after) = (fields(before), fields(after));
    let mut patch = differences(&before, &after);
    // A CRD rule compares these two fields. Both are written, because a warning limited by
    // `with_limited_warning` differs from the one in the resource.
    let compared = ["idleTimeout", "warning"];
    if let Some(policy) = patch.get_mut("policy")
        && compared.iter().any(|field| policy.get(field).is_some())
    {
        compared.into_iter().for_each(|field| policy[field] = after["policy"][field].clone());
    }
    patch
}

/// Returns the fields of `after` that `before` does not contain with the same value.
fn differences(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let changed = after.iter().filter(|(field, value)| before.get(*field) != Some(value));
    let changed = changed
        .map(|(field, value)| (field.clone(), differences(before.get(field).unwrap_or(&Value::Null), value)));
    Value::Object(changed.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Method;
    use podling_core::{
        policy::PolicyOverrides,
        quota::Quotas,
        status::Status,
        time::Timestamp,
        workspace::{DesiredState, ResourceOverrides},
    };

    use super::*;
    use crate::samples;

    /// The resource at this version, as the API server returns it.
    fn resource(version: i64, spec: &Value) -> Value {
        let mut all = json!({"owner": "me", "template": "shell", "requestSeq": 1});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
            "metadata": {
                "name": "demo", "uid": "6d6a", "resourceVersion": version.to_string(),
                "generation": version, "creationTimestamp": "2026-11-27T00:00:00Z",
            },
            "spec": all,
        })
    }

    /// Changes the spec of a workspace whose cached resource has version 1. The API server has
    /// version 2 with `edited`, rejects the first patch, and answers the second with `patched`. Returns
    /// the result and the number of patches.
    async fn change(
        change: SpecChange,
        edited: Value,
        patched: Value,
    ) -> (Result<StoredSpec, StoreError>, usize) {
        let patches = Arc::<Mutex<usize>>::default();
        let (newest, seen) = (resource(2, &edited), patches.clone());
        let changed = resource(3, &patched);
        let client = samples::api_client(move |method, uri| match *method {
            Method::GET if uri.path().ends_with("templates") => samples::api_list(json!([])),
            Method::GET if uri.path().ends_with("/demo") => (200, newest.clone()),
            Method::GET => samples::api_not_found(),
            _ => {
                *seen.lock().unwrap() += 1;
                match *seen.lock().unwrap() {
                    1 => (
                        409,
                        json!({"kind": "Status", "status": "Failure", "code": 409, "message": "",
                        "reason": "Conflict"}),
                    ),
                    _ => (200, changed.clone()),
                }
            }
        });
        let store = samples::kubernetes_store(client).await;
        let (spec, status) = (Arc::new(samples::spec(1, "demo")), Status::new(Timestamp(0)));
        let known = WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 };
        let cached = serde_json::from_value(resource(1, &json!({}))).unwrap();
        store.cache(&known.spec.id).set_loaded(cached).await;
        let result = store.change_stored_spec(&known, &change).await;
        let patches = *patches.lock().unwrap();
        (result, patches)
    }

    #[tokio::test]
    async fn change_is_repeated_on_the_newest_spec_after_a_conflict() {
        let overrides = ResourceOverrides { cpu_millis: Some(500), memory_bytes: None };
        let resize = SpecChange::Resize { overrides, quotas: Quotas::default() };
        let asleep = json!({"desiredState": "Asleep"});
        let (result, patches) = change(resize, asleep.clone(), asleep).await;
        let stored = result.expect("changed");
        assert_eq!((stored.version, stored.desired.desired_state), (3, DesiredState::Asleep));
        assert_eq!(patches, 2);
    }

    #[tokio::test]
    async fn sleep_is_not_recorded_over_a_newer_edit() {
        let slept = SpecChange::FellAsleep { generation: 1 };
        let woken = json!({"desiredState": "Awake", "requestSeq": 2});
        let (result, patches) = change(slept, woken.clone(), woken).await;
        let stored = result.expect("the newest spec");
        assert_eq!((stored.version, stored.desired.desired_state), (2, DesiredState::Awake));
        assert_eq!(patches, 1, "only the rejected one");
    }

    #[tokio::test]
    async fn change_is_made_although_the_cached_spec_fulfils_it() {
        // The cache has `Awake`, and a delayed watch would report `Asleep`.
        let undelete = SpecChange::Undelete(DesiredState::Awake);
        let (deleted, awake) = (json!({"desiredState": "Deleted"}), json!({"desiredState": "Awake"}));
        let (result, _) = change(undelete, deleted, awake).await;
        assert_eq!(result.expect("changed").desired.desired_state, DesiredState::Awake);
        let (result, patches) = change(SpecChange::Read, json!({"desiredState": "Asleep"}), json!({})).await;
        assert_eq!(result.expect("read").desired.desired_state, DesiredState::Asleep);
        assert_eq!(patches, 0);
    }

    #[tokio::test]
    async fn deleted_resource_stays_deleted_and_blames_no_crd() {
        let client = samples::api_client(|method, uri| match *method {
            Method::GET if uri.path().ends_with("templates") => samples::api_list(json!([])),
            Method::GET => samples::api_not_found(),
            _ => {
                let mut deleted = resource(3, &json!({"desiredState": "Awake", "requestSeq": 2}));
                deleted["metadata"]["deletionTimestamp"] = json!("2026-11-28T00:00:00Z");
                (200, deleted)
            }
        });
        let store = samples::kubernetes_store(client).await;
        let (spec, status) = (Arc::new(samples::spec(1, "demo")), Status::new(Timestamp(0)));
        let known = WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 };
        let cached = serde_json::from_value(resource(1, &json!({"desiredState": "Asleep"}))).unwrap();
        store.cache(&known.spec.id).set_loaded(cached).await;
        let stored = store.change_stored_spec(&known, &SpecChange::Wake { acted_on: None }).await;
        let stored = stored.expect("the newest spec");
        assert_eq!((stored.desired.desired_state, stored.deleted_in_store), (DesiredState::Deleted, true));
    }

    #[tokio::test]
    async fn archive_without_a_resource_is_read_again() {
        let spec = Arc::new(samples::spec(1, "demo"));
        let record = |desired_state| {
            let spec = Arc::new(podling_core::workspace::Spec { desired_state, ..(*spec).clone() });
            let status = Status { phase: podling_core::status::Phase::Archived, ..Status::new(Timestamp(0)) };
            WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 }
        };
        let (known, discarded) = (record(DesiredState::Deleted), record(DesiredState::Discarded));
        let archive = json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceArchive",
            "metadata": {"name": spec.id.as_str(), "resourceVersion": "7"},
            "spec": {"workspace": "demo", "owner": "me", "record": stored::to_text(&discarded)},
        });
        let client = samples::api_client(move |_, uri| match uri.path().contains("workspacearchives/") {
            true => (200, archive.clone()),
            false => samples::api_list(json!([])),
        });
        let store = samples::kubernetes_store(client).await;
        store.cache(&spec.id).set_archived().await;
        let read = store.change_stored_spec(&known, &SpecChange::Read).await.expect("read");
        assert_eq!((read.desired.desired_state, read.version), (DesiredState::Discarded, 7));
    }

    #[tokio::test]
    async fn unanswered_restore_is_recognized_when_its_resource_appears() {
        for (code, may_exist) in [(504, true), (403, false)] {
            let client = samples::api_client(move |method, uri| match *method {
                Method::GET if uri.path().ends_with("templates") => samples::api_list(json!([])),
                Method::GET => samples::api_not_found(),
                _ => (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": ""})),
            });
            let store = samples::kubernetes_store(client).await;
            let spec = podling_core::workspace::Spec {
                desired_state: DesiredState::Deleted,
                ..samples::spec(1, "demo")
            };
            let status = Status { phase: podling_core::status::Phase::Archived, ..Status::new(Timestamp(0)) };
            let known = WorkspaceRecord {
                spec: Arc::new(spec),
                status,
                credential: None,
                log: Arc::default(),
                generation: 1,
            };
            let cache = store.cache(&known.spec.id);
            cache.set_archived().await;
            store.change_stored_spec(&known, &SpecChange::Restore).await.expect_err("no success");
            assert_eq!(cache.written.lock().await.is_restoring(), may_exist, "after {code}");
        }
    }

    #[tokio::test]
    async fn field_that_an_older_crd_drops_is_an_error() {
        let (result, _) = change(SpecChange::Wake { acted_on: Some(1) }, json!({}), json!({})).await;
        assert!(matches!(result, Err(StoreError::OutdatedCrd)), "the wake would not take effect");
    }

    #[test]
    fn patch_contains_only_what_differs() {
        let before = samples::spec(1, "demo").desired();
        assert_eq!(spec_patch(&before, &before), json!({}));
        let woken = SpecChange::Sleep.apply(&before, 1).expect("a change");
        assert_eq!(spec_patch(&before, &woken), json!({"desiredState": "Asleep", "requestSeq": 2}));
        let overrides = ResourceOverrides { cpu_millis: Some(2000), memory_bytes: None };
        let resize = SpecChange::Resize { overrides, quotas: Quotas::default() };
        let resized = resize.apply(&before, 1).expect("a change");
        assert_eq!(spec_patch(&before, &resized), json!({"resources": {"cpu": "2000m"}}));
        let own = PolicyOverrides { max_awake: Some(None), ..PolicyOverrides::default() };
        let mut bounded = before.clone();
        bounded.policy.max_awake = Some(std::time::Duration::from_secs(3600));
        let changed = SpecChange::SetPolicy(Box::new(own)).apply(&bounded, 1).expect("a change");
        assert_eq!(spec_patch(&bounded, &changed)["policy"], json!({"maxAwake": "none"}));
        let own = PolicyOverrides {
            idle_timeout: Some(std::time::Duration::from_secs(7200)),
            ..PolicyOverrides::default()
        };
        let changed = SpecChange::SetPolicy(Box::new(own)).apply(&before, 1).expect("a change");
        let patch = spec_patch(&before, &changed);
        let fields: Vec<_> = patch["policy"].as_object().expect("fields").keys().collect();
        assert_eq!(fields, ["idleTimeout", "warning"], "the CRD compares them");
    }
}

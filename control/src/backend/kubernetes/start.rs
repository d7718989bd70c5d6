//! Starts an agent: ensures that the volume claim and the pod exist, and waits until the pod runs.
//!
//! The status of a pod that stays in `ContainerCreating` does not say why. The Warning Events of
//! the pod and of its claim do.

use std::{future::pending, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::core::v1::{Event, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff,
};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use podling_core::reason::{Wait, WaitReason};
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at, timeout},
};

use super::{
    ClusterClient, PodOperation,
    pods::{self, instance, is_running, short},
};
use crate::{
    backend::{BackendError, Instance, Observation, StartPlan, StartPurpose},
    kubernetes::{
        Port, ResourcesSpec, SecretKey, Variable, VolumeClaimPhase, VolumeClaimState, Workspace,
        WorkspaceSpec, WorkspaceTemplateSpec, has_status_code, id_of,
        objects::{PodStart, pod},
        resource_names,
    },
    watches::watch_one,
};

/// Interval at which a missing template is read again, even if the watch reports nothing.
const TEMPLATE_RECHECK: Duration = Duration::from_secs(30);
/// Time without progress after which the Events are read, and the pause before they are read again.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(15);
/// Events older than this are about a problem that is over. The kubelet repeats an Event at least
/// every 2 min 2 s.
const MAX_AGE: Duration = Duration::from_secs(180);
/// Most Events of one object that are read.
const MAX_EVENTS: u32 = 100;
/// Finalizer that a deletion in the foreground adds (`metav1.FinalizerDeleteDependents`).
const FOREGROUND_DELETION: &str = "foregroundDeletion";
/// Reasons of Events that repeat what the status of the pod says.
const IN_POD_STATUS: [&str; 5] = ["FailedScheduling", "Failed", "BackOff", "InspectFailed", "Unhealthy"];

impl ClusterClient {
    /// Ensures that the pod of this epoch runs. Fails if the start is cancelled.
    pub(crate) async fn start(
        &self,
        plan: StartPlan,
        observation_tx: &mpsc::Sender<Observation>,
    ) -> Result<Instance, BackendError> {
        let name = format!("start the pod of {}", plan.workspace);
        let (workspace, epoch) = (&plan.workspace, plan.epoch);
        let operation = PodOperation { name: &name, to: observation_tx, workspace, epoch };
        // Boxed, because the resources that it reads make it too large for a small stack.
        let starting = Box::pin(self.start_pod(operation, &plan));
        operation.unless_cancelled(&plan.cancellation, starting).await
    }

    async fn start_pod(
        &self,
        operation: PodOperation<'_>,
        plan: &StartPlan,
    ) -> Result<Instance, BackendError> {
        let template = self.template(operation, plan).await?;
        let resource = self.workspace_resource(operation, plan).await?;
        let controller = resource.as_ref().and_then(controller);
        let own = resource.map(|resource| resource.spec);
        let storage = own.as_ref().and_then(|own| own.storage.clone()).unwrap_or_default();
        let storage = storage.over(&template.storage);
        let volume_claim_name = self.ensure_volume_claim(operation, plan, &storage).await?;
        let start = PodStart {
            workspace: plan.workspace.clone(),
            epoch: plan.epoch,
            name: plan.spec.name.clone(),
            resources: ResourcesSpec::of(plan.resources),
            secrets: secrets(&template, own.as_ref()).map_err(|why| operation.failed(why))?,
            ports: ports(&template, own.as_ref()),
            volume_claim_name,
            template_name: plan.spec.template.clone(),
            template,
            controller,
            maintenance: plan.purpose != StartPurpose::Serve,
        };
        let invalid = |problem| {
            let template = &plan.spec.template;
            operation.failed(format!("the WorkspaceTemplate {template} is not valid: {problem}"))
        };
        let pod = pod(&start, &self.defaults).map_err(invalid)?;
        let name = pod.name_any();
        let created = self.retry_transient(operation, || async {
            match self.pods.create(&PostParams::default(), &pod).await {
                // An earlier call whose response was lost, or another control plane, has created
                // it.
                Err(error) if has_status_code(&error, 409) => self.pods.get(&name).await,
                created => created,
            }
        });
        self.wait_until_running(operation, created.await?, &start.volume_claim_name).await
    }

    /// Returns the Workspace resource, if there is one.
    async fn workspace_resource(
        &self,
        operation: PodOperation<'_>,
        plan: &StartPlan,
    ) -> Result<Option<Workspace>, BackendError> {
        for name in resource_names(&plan.spec) {
            let found = self.retry_transient(operation, || self.workspaces.get_opt(&name)).await?;
            // The name may belong to another owner's workspace.
            let is_same_workspace = |found: &Workspace| id_of(found).is_ok_and(|id| id == plan.workspace);
            if let Some(found) = found.filter(is_same_workspace) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns the template. Waits until it exists, and reports that. A start to archive fails
    /// instead: a deleted namespace loses its templates before its workspaces, and would otherwise
    /// wait for ever without saying that the data has no archive.
    async fn template(
        &self,
        operation: PodOperation<'_>,
        plan: &StartPlan,
    ) -> Result<WorkspaceTemplateSpec, BackendError> {
        let name = &plan.spec.template;
        loop {
            let found = self.retry_transient(operation, || self.templates.get(name)).await?;
            if let Some(found) = found {
                return Ok(found);
            }
            let why = format!("there is no WorkspaceTemplate {name:?} in the namespace {}", self.namespace);
            if plan.purpose == StartPurpose::Archive {
                return Err(operation.failed(why));
            }
            operation.report(WaitReason::TemplateMissing, why).await;
            let mut known = self.templates.subscribe();
            let created = async {
                if known.wait_for(|known| known.contains_key(name)).await.is_err() {
                    pending::<()>().await;
                }
            };
            // Ends at once if the template was created in the meantime.
            let _created_or_late = timeout(TEMPLATE_RECHECK, created).await;
        }
    }

    /// Waits until the pod runs. Fails if the pod cannot start any more. `PodTracker` reports delays
    /// that the status of the pod names. Delays that only Events name are reported here.
    async fn wait_until_running(
        &self,
        operation: PodOperation<'_>,
        created: Pod,
        claim: &str,
    ) -> Result<Instance, BackendError> {
        let (uid, mut latest, mut stalled) = (created.uid(), created, false);
        let mut updates = watch_one(&self.pods, &latest.name_any());
        let mut checks = interval_at(Instant::now() + STALLED_AFTER, STALLED_AFTER);
        loop {
            let update = tokio::select! {
                update = updates.next() => update,
                _ = checks.tick() => {
                    let stall = self.stall(&latest, claim).await;
                    if stall.is_some() || stalled {
                        stalled = stall.is_some();
                        operation.set(stall.or_else(|| pods::waits(&latest))).await;
                    }
                    continue;
                }
            };
            let pod = match update {
                None => return Err(operation.failed("the watch over its pod ended")),
                Some(Ok(pod)) => pod.filter(|pod| pod.uid() == uid),
                Some(Err(error)) => {
                    tracing::debug!(%error, "failed to watch pod");
                    continue;
                }
            };
            let pod = pod.ok_or_else(|| operation.failed("its pod was deleted"))?;
            if let Some(how) = pods::ended(&pod).or_else(|| pods::start_failure(&pod)) {
                return Err(operation.failed(how));
            }
            if pod.metadata.deletion_timestamp.is_some() {
                return Err(operation.failed("its pod is being deleted"));
            }
            if is_running(&pod)
                && let Some(instance) = instance(&pod)
            {
                return Ok(instance);
            }
            latest = pod;
        }
    }

    /// Returns what a pod waits for that has not started for [`STALLED_AFTER`]. Its Events, or those
    /// of its claim, say more than its status. An error of the API server counts as no Events.
    /// `None` if `PodTracker` reports the wait.
    async fn stall(&self, pod: &Pod, claim: &str) -> Option<Wait> {
        let is_known = pods::waits(pod).is_some();
        let warning = if !pods::is_scheduled(pod) {
            self.claim_problem(claim).await
        } else if is_known || pods::is_sandbox_ready(pod) {
            // The pod has its volumes and its network. Earlier warnings about them are over.
            None
        } else {
            self.latest_warning(&pod.uid()?).await.map(|warning| warning.as_wait())
        };
        warning.or_else(|| (!is_known).then(|| pods::slow_start(pod)))
    }

    /// Returns the wait for a claim that stays unbound, was deleted, or has lost its volume.
    async fn claim_problem(&self, name: &str) -> Option<Wait> {
        let claim = self.claims.get_opt(name).await.ok()??;
        let warning = self.unbound_warning(&claim).await.map(|warning| short(&warning));
        let VolumeClaimState { phase, detail, .. } = VolumeClaimState::of(&claim);
        let detail = match (phase, warning) {
            (VolumeClaimPhase::Deleted, _) => detail,
            (VolumeClaimPhase::Lost, warning) => {
                let text = format!("the volume of the claim {name} does not exist any more");
                warning.map_or(text.clone(), |warning| format!("{text}: {warning}"))
            }
            (VolumeClaimPhase::Pending, Some(warning)) => {
                format!("the claim {name} is not bound: {warning}")
            }
            (VolumeClaimPhase::Pending, None) | (VolumeClaimPhase::Bound, _) => return None,
        };
        Some(Wait { reason: WaitReason::VolumePending, detail })
    }

    /// Returns why a claim stays unbound, according to its newest Warning Event.
    pub(crate) async fn unbound_warning(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        match VolumeClaimState::of(claim).phase {
            VolumeClaimPhase::Pending | VolumeClaimPhase::Lost => {
                Some(self.latest_warning(&claim.uid()?).await?.message)
            }
            VolumeClaimPhase::Bound | VolumeClaimPhase::Deleted => None,
        }
    }

    /// Returns the newest current Warning Event of the object with this uid.
    async fn latest_warning(&self, uid: &str) -> Option<Warning> {
        let about = format!("involvedObject.uid={uid},type=Warning");
        let listed = self.events.list(&ListParams::default().fields(&about).limit(MAX_EVENTS)).await;
        let listed = listed.inspect_err(|error| tracing::debug!(%error, "failed to read Events")).ok()?;
        latest(listed.items, jiff::Timestamp::now())
    }
}

/// Returns the environment variables that refer to a secret. A variable of the workspace replaces
/// the template's variable of the same name, even if the workspace's has a plain value. Fails if a
/// variable refers to a secret that is reserved for Podling, because an older CRD may have accepted
/// it.
fn secrets(
    template: &WorkspaceTemplateSpec,
    own: Option<&WorkspaceSpec>,
) -> Result<Vec<(String, SecretKey)>, String> {
    let own = own.map(|own| own.environment.as_slice()).unwrap_or_default();
    let is_own = |variable: &&Variable| own.iter().any(|other| other.name == variable.name);
    let of_template = template.environment.iter().filter(|variable| !is_own(variable));
    let secret = |variable: &Variable| Some((variable.name.clone(), variable.secret.clone()?));
    let all: Vec<_> = of_template.chain(own).filter_map(secret).collect();
    match all.iter().find(|(_, secret)| secret.is_reserved()) {
        None => Ok(all),
        Some((name, secret)) => Err(format!(
            "the variable {name} refers to the Secret {}, which is reserved for Podling; use another one",
            secret.name
        )),
    }
}

/// Returns the resource as the controller of its pods. While the resource is being deleted, its
/// finalizer keeps it, and with it the pod in which the archive is made. `None` while the garbage
/// collector deletes all objects that the resource owns. It does so once, at the beginning of a
/// foreground deletion, and then removes its own finalizer.
fn controller(resource: &Workspace) -> Option<OwnerReference> {
    let deletes_owned = resource.finalizers().iter().any(|finalizer| finalizer == FOREGROUND_DELETION);
    resource.controller_owner_ref(&()).filter(|_| !deletes_owned)
}

/// Returns the ports of the template and of the workspace. A port of the workspace replaces the
/// template's ports of the same name or number.
fn ports(template: &WorkspaceTemplateSpec, own: Option<&WorkspaceSpec>) -> Vec<Port> {
    let own = own.map(|own| own.ports.as_slice()).unwrap_or_default();
    let is_own = |port: &&Port| own.iter().any(|other| other.name == port.name || other.port == port.port);
    template.ports.iter().filter(|port| !is_own(port)).chain(own).cloned().collect()
}

/// Content of an Event of type Warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Warning {
    reason: String,
    pub(super) message: String,
}

impl Warning {
    fn as_wait(&self) -> Wait {
        let reason = match self.reason.as_str() {
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => WaitReason::MountFailed,
            "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady" => {
                WaitReason::PodSandboxFailed
            }
            _ => WaitReason::PodWarning,
        };
        let detail = match reason {
            WaitReason::PodWarning => format!("{}: {}", self.reason, short(&self.message)),
            _ => short(&self.message),
        };
        Wait { reason, detail }
    }
}

/// Returns the newest warning that is current and that the status of a pod does not repeat.
fn latest(events: Vec<Event>, now: jiff::Timestamp) -> Option<Warning> {
    let current = |at: jiff::Timestamp| now.duration_since(at).unsigned_abs() <= MAX_AGE;
    let dated = events.into_iter().filter_map(|event| Some((last_seen(&event)?, event)));
    let is_relevant = |event: &Event| !IN_POD_STATUS.contains(&event.reason.as_deref().unwrap_or_default());
    let relevant = dated.filter(|(at, event)| current(*at) && is_relevant(event));
    let (_, newest) = relevant.max_by_key(|(at, _)| *at)?;
    Some(Warning { reason: newest.reason?, message: newest.message.unwrap_or_default() })
}

/// Returns when an Event was last observed. Which field says so depends on its reporter.
fn last_seen(event: &Event) -> Option<jiff::Timestamp> {
    let of_series = event.series.as_ref().and_then(|series| Some(series.last_observed_time.as_ref()?.0));
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    of_series.or(last).or(first).or(created)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff};
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        backend::kubernetes::tests::cluster_client, kubernetes::objects::ARCHIVE_BEFORE_DELETE, samples,
    };

    #[test]
    fn workspace_controls_its_pods_while_it_is_deleted() {
        let mut resource: Workspace = serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": "demo", "uid": "6d6a"}, "spec": {"owner": "ada", "template": "python"},
        }))
        .unwrap();
        let reference = controller(&resource).unwrap();
        assert_eq!((reference.controller, reference.uid.as_str()), (Some(true), "6d6a"));
        assert_eq!(reference.block_owner_deletion, None, "that needs a permission on some clusters");
        resource.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        resource.metadata.finalizers = Some(vec![ARCHIVE_BEFORE_DELETE.to_owned()]);
        assert_eq!(controller(&resource), Some(reference), "a drain evicts the pod that archives");
        resource.finalizers_mut().push(FOREGROUND_DELETION.to_owned());
        assert_eq!(controller(&resource), None, "the garbage collector would delete the pod");
    }

    #[tokio::test(start_paused = true)]
    async fn missing_template_delays_a_wake_and_fails_an_archive() {
        let client = samples::api_client(|_, uri| match uri.path().ends_with("/shell") {
            true => samples::api_not_found(),
            false => samples::api_list(json!([])),
        });
        let cluster = cluster_client(client).await;
        let (observation_tx, mut observations) = mpsc::channel(8);
        let spec = Arc::new(samples::spec(1, "demo"));
        let start = |purpose| {
            let (resources, cancellation) = (spec.resources, CancellationToken::new());
            let (workspace, secret, spec) = (spec.id.clone(), String::new(), spec.clone());
            let (epoch, expects_files) = (1, false);
            let plan =
                StartPlan { workspace, epoch, purpose, expects_files, secret, spec, resources, cancellation };
            timeout(TEMPLATE_RECHECK, cluster.start(plan, &observation_tx))
        };
        let failed = start(StartPurpose::Archive).await.expect("it does not wait").unwrap_err();
        assert_eq!(failed.problem, "there is no WorkspaceTemplate \"shell\" in the namespace podling");
        assert!(observations.try_recv().is_err());
        for purpose in [StartPurpose::Serve, StartPurpose::Restore] {
            assert!(start(purpose).await.is_err(), "it waits for the template");
            let reported = observations.try_recv().unwrap();
            let Observation::Waits { waits: Some(waits), .. } = reported else {
                panic!("not a wait: {reported:?}")
            };
            assert_eq!(waits.reason, WaitReason::TemplateMissing);
        }
    }

    #[tokio::test]
    async fn deleted_and_lost_claims_are_what_a_start_waits_for() {
        let problem = async |deleted: Option<&str>, phase: &str| {
            let claim = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": "workspace-abc", "uid": "6d6a", "deletionTimestamp": deleted},
                "status": {"phase": phase},
            });
            let client = samples::api_client(move |_, uri| match uri.path().ends_with("/workspace-abc") {
                true => (200, claim.clone()),
                false => samples::api_list(json!([])),
            });
            let wait = cluster_client(client).await.claim_problem("workspace-abc").await?;
            assert_eq!(wait.reason, WaitReason::VolumePending);
            Some(wait.detail)
        };
        assert_eq!(problem(None, "Bound").await, None);
        assert_eq!(problem(None, "Pending").await, None, "no Event explains it");
        let lost = problem(None, "Lost").await.unwrap();
        assert_eq!(lost, "the volume of the claim workspace-abc does not exist any more");
        let deleted = problem(Some("2026-11-27T00:00:00Z"), "Bound").await.unwrap();
        assert!(deleted.starts_with("the claim workspace-abc was deleted"), "{deleted}");
    }

    #[tokio::test]
    async fn stall_without_any_report_is_named_after_the_events() {
        let client = samples::api_client(|_, uri| match uri.path().contains("/persistentvolumeclaims/") {
            true => samples::api_not_found(),
            false => samples::api_list(json!([])),
        });
        let cluster = cluster_client(client).await;
        let pod = |spec: Value, status: Value| -> Pod {
            let metadata = json!({"name": "workspace-1", "uid": "6d6a"});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
        };
        let pending = pod(json!({"containers": [], "schedulerName": "nosuch"}), json!({"phase": "Pending"}));
        assert_eq!(cluster.stall(&pending, "claim").await.unwrap().reason, WaitReason::SchedulerMissing);
        let scheduled = pod(json!({"containers": [], "nodeName": "node0"}), json!({"phase": "Pending"}));
        assert_eq!(cluster.stall(&scheduled, "claim").await.unwrap().reason, WaitReason::PodPreparing);
        let unschedulable = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
        let reported = pod(json!({"containers": []}), json!({"conditions": unschedulable}));
        assert_eq!(cluster.stall(&reported, "claim").await, None, "the tracker reports this wait");
    }

    #[test]
    fn own_secrets_override_template_and_reserved_ones_fail() {
        let template = |secret: &str| -> WorkspaceTemplateSpec {
            let variable = json!({"name": "TOKEN", "secret": {"name": secret, "key": "key"}});
            serde_json::from_value(json!({"image": "python", "environment": [variable]})).unwrap()
        };
        let own = json!({
            "owner": "ada", "template": "python", "environment": [{"name": "TOKEN", "value": "plain"}],
        });
        let own: WorkspaceSpec = serde_json::from_value(own).unwrap();
        let names = |template, own| -> Result<Vec<String>, String> {
            Ok(secrets(&template, own)?.into_iter().map(|(_, secret)| secret.name).collect())
        };
        assert_eq!(names(template("tokens"), None).unwrap(), ["tokens"]);
        assert!(names(template("tokens"), Some(&own)).unwrap().is_empty());
        let refused = names(template("podling-control"), None).unwrap_err();
        assert!(refused.contains("TOKEN refers to the Secret podling-control"), "{refused}");
    }

    const NOW: &str = "2026-11-27T00:10:00Z";

    fn event(reason: &str, message: &str, times: &Value) -> Event {
        let mut event = json!({
            "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": message,
        });
        event.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    fn wait(events: Vec<Event>) -> Option<Wait> {
        latest(events, NOW.parse().unwrap()).map(|warning| warning.as_wait())
    }

    #[test]
    fn newest_warning_names_what_the_pod_waits_for() {
        let at = |time: &str| json!({"lastTimestamp": format!("2026-11-27T00:{time}Z")});
        let mount = "MountVolume.SetUp failed for volume \"ca\" : configmap \"podling-ca\" not found.";
        let sandbox = "plugin type=\"bridge\" failed (add): no IP addresses available";
        let events = vec![
            event("FailedAttachVolume", "an hour ago", &json!({"lastTimestamp": "2026-11-26T23:10:00Z"})),
            event("FailedMount", mount, &at("09:50")),
            event("FailedCreatePodSandBox", sandbox, &at("09:10")),
            event("FailedScheduling", "0/1 nodes are available", &at("09:59")),
        ];
        let detail = mount.trim_end_matches('.').to_owned();
        assert_eq!(wait(events).unwrap(), Wait { reason: WaitReason::MountFailed, detail });
        let network = wait(vec![event("FailedCreatePodSandBox", sandbox, &at("09:10"))]).unwrap();
        assert_eq!(network, Wait { reason: WaitReason::PodSandboxFailed, detail: sandbox.into() });
        let other = wait(vec![event("FailedPreStartHook", "no device", &at("09:10"))]).unwrap();
        let detail = "FailedPreStartHook: no device".into();
        assert_eq!(other, Wait { reason: WaitReason::PodWarning, detail });
        assert_eq!(wait(vec![event("FailedMount", mount, &at("06:00"))]), None, "the problem is over");
    }

    #[test]
    fn time_of_an_event_is_that_of_its_last_occurrence() {
        let repeated = json!({
            "eventTime": "2026-11-26T23:10:00.000000Z",
            "series": {"count": 9, "lastObservedTime": "2026-11-27T00:09:00.000000Z"},
        });
        assert!(wait(vec![event("FailedMount", "timed out", &repeated)]).is_some());
        let once = json!({"eventTime": "2026-11-26T23:10:00.000000Z", "lastTimestamp": null});
        assert_eq!(wait(vec![event("FailedMount", "timed out", &once)]), None);
    }
}

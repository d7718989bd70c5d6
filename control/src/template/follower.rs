//! Follows the `WorkspaceTemplate` resources of a namespace, and reports in their status whether they
//! are valid. All components that need templates share the follower's one watch.

use std::{collections::BTreeMap, future, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};
use podling_core::policy::Policy;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{InvalidTemplate, Template, Templates};
use crate::{
    kubernetes::{
        GROUP, MANAGER, UnusableTemplate, VERSION, WorkspaceTemplate, WorkspaceTemplateSpec,
        WorkspaceTemplateStatus, has_status_code, objects::template_problem, requested_resources,
    },
    leader_election::Leadership,
    quantity::bytes,
    watches::watch_all,
};

/// Pause before statuses are written again that could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Longest message of a condition that Kubernetes accepts, in characters.
const MAX_MESSAGE: usize = 32_768;

/// Specs of templates by name, also of those whose overrides are not valid.
pub type TemplateSpecs = BTreeMap<String, WorkspaceTemplateSpec>;

// An older CRD may have accepted an invalid resource, which must not hide the others.
type TemplateApi = Api<DeserializeGuard<WorkspaceTemplate>>;

/// The last usable content of each resource, and the problems of those that were never usable.
#[derive(Debug, Clone, Default)]
struct KnownResources {
    valid: BTreeMap<String, Arc<Template>>,
    invalid: BTreeMap<String, InvalidTemplate>,
    /// The last spec of each resource that could be parsed.
    specs: TemplateSpecs,
}

#[derive(Debug)]
pub struct TemplateFollower {
    resources: TemplateApi,
    statuses: Api<WorkspaceTemplate>,
    default: String,
    known: KnownResources,
    templates: watch::Sender<Arc<Templates>>,
    specs: watch::Sender<Arc<TemplateSpecs>>,
    leadership: Arc<Leadership>,
}

/// Looks up the specs that a [`TemplateFollower`] knows.
#[derive(Debug, Clone)]
pub struct TemplateLookup {
    resources: TemplateApi,
    specs: watch::Receiver<Arc<TemplateSpecs>>,
}

impl TemplateFollower {
    /// Lists the templates of the namespace, so that the first requests find them. Returns the
    /// follower and a receiver of the templates.
    pub async fn open(
        client: &Client,
        namespace: &str,
        default: &str,
        leadership: Arc<Leadership>,
    ) -> Result<(Self, watch::Receiver<Arc<Templates>>), kube::Error> {
        let resources: TemplateApi = Api::namespaced(client.clone(), namespace);
        let statuses = Api::namespaced(client.clone(), namespace);
        let listed = resources.list(&ListParams::default()).await?;
        let mut known = KnownResources::default();
        listed.into_iter().for_each(|found| drop(known.apply(found, None)));
        let (templates, receiver) = watch::channel(Arc::new(known.templates(default)));
        let (default, specs) = (default.to_owned(), watch::Sender::new(Arc::new(known.specs.clone())));
        Ok((Self { resources, statuses, default, known, templates, specs, leadership }, receiver))
    }

    /// Returns a handle that looks up the templates that this follower knows.
    pub fn lookup(&self) -> TemplateLookup {
        TemplateLookup { resources: self.resources.clone(), specs: self.specs.subscribe() }
    }

    /// Follows changes of the templates. Never returns.
    pub async fn run(mut self) {
        let mut listed = KnownResources::default();
        // Resources whose status may have to be written, by name.
        let mut unwritten = BTreeMap::new();
        let mut events = watch_all(self.resources.clone(), watcher::Config::default());
        loop {
            let has_unwritten = !unwritten.is_empty();
            let retry =
                async { if has_unwritten { sleep(RETRY_PAUSE).await } else { future::pending().await } };
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.apply_event(event, &mut listed, &mut unwritten),
                    None => return,
                },
                () = retry => {}
            }
            let mut failed = BTreeMap::new();
            for (name, resource) in unwritten {
                if !self.write_status(&name, &resource).await {
                    failed.insert(name, resource);
                }
            }
            unwritten = failed;
        }
    }

    fn apply_event(
        &mut self,
        event: Result<Event<DeserializeGuard<WorkspaceTemplate>>, watcher::Error>,
        listed: &mut KnownResources,
        unwritten: &mut BTreeMap<String, WorkspaceTemplate>,
    ) {
        match event {
            Ok(Event::Init) => *listed = KnownResources::default(),
            Ok(Event::InitApply(resource)) => {
                let (name, before) =
                    (resource.name_any(), self.known.valid.get(&resource.name_any()).cloned());
                let applied = listed.apply(resource, before);
                if applied.is_none() {
                    let spec = self.known.specs.get(&name).cloned();
                    listed.specs.extend(spec.map(|spec| (name.clone(), spec)));
                }
                unwritten.extend(applied.map(|resource| (name, resource)));
            }
            // Templates that are not listed yet stay known until the list is complete.
            Ok(Event::InitDone) => {
                self.known = std::mem::take(listed);
                unwritten.retain(|name, _| self.known.specs.contains_key(name));
            }
            Ok(Event::Apply(resource)) => {
                let (name, before) =
                    (resource.name_any(), self.known.valid.get(&resource.name_any()).cloned());
                unwritten.extend(self.known.apply(resource, before).map(|resource| (name, resource)));
            }
            Ok(Event::Delete(resource)) => {
                let name = resource.name_any();
                self.known.valid.remove(&name);
                self.known.invalid.remove(&name);
                self.known.specs.remove(&name);
                unwritten.remove(&name);
            }
            Err(error) => {
                tracing::warn!(%error, "failed to watch templates; using the last known ones and retrying")
            }
        }
        self.templates.send_replace(Arc::new(self.known.templates(&self.default)));
        if **self.specs.borrow() != self.known.specs {
            self.specs.send_replace(Arc::new(self.known.specs.clone()));
        }
    }

    /// Writes the status of a template if it differs. Returns false if the write has to be retried.
    async fn write_status(&self, name: &str, resource: &WorkspaceTemplate) -> bool {
        let problem = problem(resource);
        let status = status(resource, problem.as_ref(), jiff::Timestamp::now());
        if resource.status.as_ref() == Some(&status) {
            return true;
        }
        if !self.leadership.is_leader() {
            return false;
        }
        if let Some(problem) = problem {
            tracing::warn!(template = name, %problem, "no workspace can be started from a template");
        }
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "WorkspaceTemplate",
            "metadata": {"resourceVersion": resource.resource_version()}, "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        match self.statuses.patch_status(name, &params, &Patch::Apply(patch)).await {
            Ok(_) => true,
            // The template was deleted or changed, and the watch reports that.
            Err(error) if [404, 409].iter().any(|code| has_status_code(&error, *code)) => true,
            Err(error) => {
                tracing::warn!(template = name, %error, "failed to write the status of a template");
                false
            }
        }
    }
}

impl TemplateLookup {
    /// Returns the specs that are known now.
    pub fn known(&self) -> Arc<TemplateSpecs> {
        self.specs.borrow().clone()
    }

    /// Returns a receiver of the known specs.
    pub fn subscribe(&self) -> watch::Receiver<Arc<TemplateSpecs>> {
        self.specs.clone()
    }

    /// Returns the spec of this template. Reads the template if it is not known, because it may be
    /// newer than the last event of the watch. `None` if it does not exist or cannot be parsed.
    pub async fn get(&self, name: &str) -> Result<Option<WorkspaceTemplateSpec>, kube::Error> {
        if let Some(spec) = self.specs.borrow().get(name) {
            return Ok(Some(spec.clone()));
        }
        let found = self.resources.get_opt(name).await?;
        Ok(found.and_then(|found| found.0.ok()).map(|found| found.spec))
    }
}

impl KnownResources {
    /// Records a resource, and returns it if it can be parsed. If it cannot, `before` stays, which is
    /// its previous content. A resource whose overrides are not valid is not used.
    fn apply(
        &mut self,
        resource: DeserializeGuard<WorkspaceTemplate>,
        before: Option<Arc<Template>>,
    ) -> Option<WorkspaceTemplate> {
        let name = resource.name_any();
        if let Ok(resource) = &resource.0 {
            self.specs.insert(name.clone(), resource.spec.clone());
        }
        let (valid, problem, resource) = match resource.0 {
            Ok(resource) => match problem(&resource) {
                None => (Some(Arc::new(from_spec(&resource.spec))), None, Some(resource)),
                Some(problem) => (None, Some(problem.to_string()), Some(resource)),
            },
            Err(invalid) => {
                tracing::error!(name, problem = invalid.error, "ignoring invalid template");
                let problem = format!("the WorkspaceTemplate {name} cannot be read: {}", invalid.error);
                (before, Some(problem), None)
            }
        };
        self.valid.remove(&name);
        self.invalid.remove(&name);
        if let Some(template) = valid {
            self.valid.insert(name, template);
        } else if let Some(problem) = problem {
            self.invalid.insert(name, InvalidTemplate { file: None, line: None, problem });
        }
        resource
    }

    fn templates(&self, default: &str) -> Templates {
        Templates::new(self.valid.clone(), self.invalid.clone(), default)
    }
}

fn problem(resource: &WorkspaceTemplate) -> Option<UnusableTemplate> {
    template_problem(&resource.name_any(), &resource.spec)
}

/// Returns the status of a template. Its condition keeps its transition time while it is the same.
fn status(
    resource: &WorkspaceTemplate,
    problem: Option<&UnusableTemplate>,
    now: jiff::Timestamp,
) -> WorkspaceTemplateStatus {
    let generation = resource.metadata.generation.unwrap_or_default();
    let (status, reason) = problem.map_or(("True", "Valid"), |problem| ("False", problem.reason()));
    let message = problem.map_or_else(|| "workspaces can be started".to_owned(), ToString::to_string);
    let old = resource.status.iter().flat_map(|status| &status.conditions);
    let same = old.into_iter().find(|old| old.type_ == "Ready" && old.status == status);
    // Kubernetes stores whole seconds. A more precise time would always differ from the stored one.
    let now = jiff::Timestamp::from_second(now.as_second()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    WorkspaceTemplateStatus {
        observed_generation: generation,
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: Some(generation),
            last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
        }],
    }
}

fn from_spec(spec: &WorkspaceTemplateSpec) -> Template {
    let valued = spec.environment.iter().filter_map(|v| Some((v.name.clone(), v.value.clone()?)));
    Template {
        description: spec.description.clone(),
        // The pod's command comes from the template when the pod is created.
        command: Vec::new(),
        env: valued.collect(),
        policy: Policy::default().with(&spec.policy.overrides()),
        resources: requested_resources(None, Some(&spec.resources)),
        storage_bytes: bytes(&spec.storage.size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn status_names_the_problem_and_keeps_its_time() {
        let resource = |overrides: serde_json::Value, generation: i64| -> WorkspaceTemplate {
            serde_json::from_value(json!({
                "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
                "metadata": {"name": "gpu", "generation": generation},
                "spec": {"image": "cuda", "podOverrides": overrides},
            }))
            .unwrap()
        };
        let at = |seconds| jiff::Timestamp::from_second(seconds).unwrap();
        let show =
            |resource: &WorkspaceTemplate, seconds| status(resource, problem(resource).as_ref(), at(seconds));
        let mut valid = resource(json!({"spec": {"runtimeClassName": "nvidia"}}), 1);
        let first = show(&valid, 100);
        assert_eq!((first.observed_generation, first.conditions[0].status.as_str()), (1, "True"));
        valid.status = Some(first.clone());
        assert_eq!(show(&valid, 200), first, "an unchanged status is not written again");
        let mut broken = resource(json!({"spec": {"hostNetwork": true}}), 2);
        broken.status = Some(first);
        let broken = show(&broken, 300);
        let condition = &broken.conditions[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "InvalidPodOverrides"));
        assert!(condition.message.starts_with("podOverrides.spec.hostNetwork: "), "{}", condition.message);
        assert_eq!((broken.observed_generation, condition.last_transition_time.0), (2, at(300)));
    }

    #[tokio::test]
    async fn relist_publishes_no_partial_list_and_forgets_statuses() {
        let client = samples::api_client(|_, _| samples::api_list(json!([])));
        let opened = TemplateFollower::open(&client, "podling", "shell", Leadership::permanent()).await;
        let (mut follower, templates) = opened.unwrap();
        let template = |name: &str| -> DeserializeGuard<WorkspaceTemplate> {
            serde_json::from_value(json!({
                "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
                "metadata": {"name": name}, "spec": {"image": "python"},
            }))
            .unwrap()
        };
        let (mut listed, mut unwritten) = (KnownResources::default(), BTreeMap::new());
        let mut apply = |event| {
            follower.apply_event(Ok(event), &mut listed, &mut unwritten);
            let (templates, specs) = (templates.borrow(), follower.specs.borrow());
            let found = ["shell", "gpu"].map(|name| templates.get(name).is_ok() && specs.contains_key(name));
            (found, unwritten.len())
        };
        apply(Event::Init);
        apply(Event::InitApply(template("shell")));
        apply(Event::InitApply(template("gpu")));
        assert_eq!(apply(Event::InitDone), ([true, true], 2));
        // The watch restarts. The template gpu was deleted in the meantime.
        assert_eq!(apply(Event::Init), ([true, true], 2), "the list is not complete");
        assert_eq!(apply(Event::InitApply(template("shell"))), ([true, true], 2));
        assert_eq!(apply(Event::InitDone), ([true, false], 1), "no status of gpu is written");
    }

    #[test]
    fn template_with_invalid_overrides_is_not_used() {
        let resource = |overrides: serde_json::Value| -> DeserializeGuard<WorkspaceTemplate> {
            serde_json::from_value(json!({
                "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
                "metadata": {"name": "gpu"}, "spec": {"image": "cuda", "podOverrides": overrides},
            }))
            .unwrap()
        };
        let mut known = KnownResources::default();
        let refused = |known: &KnownResources| match known.templates("gpu").get("gpu") {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert!(known.apply(resource(json!({})), None).is_some());
        assert_eq!(refused(&known), "");
        let before = known.valid.get("gpu").cloned();
        assert!(known.apply(resource(json!({"spec": {"hostPID": true}})), before).is_some());
        let error = refused(&known);
        assert!(error.starts_with("template gpu is not valid: podOverrides.spec.hostPID: "), "{error}");
        known.apply(resource(json!({"spec": {"hostPID": false}})), None);
        assert_eq!(refused(&known), "");
    }
}

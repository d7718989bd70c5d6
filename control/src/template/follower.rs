//! Follows the `WorkspaceTemplate` resources of a namespace, and reports in their status whether they
//! are valid. All components that need templates share the follower's one watch.

use std::{collections::BTreeMap, fmt, future, sync::Arc, time::Duration};

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

/// The templates of the resources by name.
type FollowedTemplates = BTreeMap<String, FollowedTemplate>;

/// The content of a WorkspaceTemplate that workspaces use, or the problem that prevents its use.
#[derive(Debug, Clone)]
struct FollowedTemplate {
    /// The last spec that could be parsed.
    spec: Option<WorkspaceTemplateSpec>,
    template: Result<Arc<Template>, InvalidTemplate>,
}

pub struct TemplateFollower {
    resources: TemplateApi,
    statuses: Api<WorkspaceTemplate>,
    default: String,
    known: FollowedTemplates,
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

// The templates contain environments.
impl fmt::Debug for TemplateFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateFollower").field("default", &self.default).finish_non_exhaustive()
    }
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
        let mut known = FollowedTemplates::new();
        for resource in listed {
            known.insert(resource.name_any(), FollowedTemplate::of(&resource, None));
        }
        let (templates, receiver) = watch::channel(Arc::new(usable(&known, default)));
        let (default, specs) = (default.to_owned(), watch::Sender::new(Arc::new(specs(&known))));
        Ok((Self { resources, statuses, default, known, templates, specs, leadership }, receiver))
    }

    /// Returns a handle that looks up the templates that this follower knows.
    pub fn lookup(&self) -> TemplateLookup {
        TemplateLookup { resources: self.resources.clone(), specs: self.specs.subscribe() }
    }

    /// Follows changes of the templates. Never returns.
    pub async fn run(mut self) {
        let mut listed = FollowedTemplates::new();
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
        listed: &mut FollowedTemplates,
        unwritten: &mut BTreeMap<String, WorkspaceTemplate>,
    ) {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(resource)) => listed.extend([self.apply(resource, unwritten)]),
            // Templates that are not listed yet stay known until the list is complete.
            Ok(Event::InitDone) => {
                self.known = std::mem::take(listed);
                unwritten.retain(|name, _| self.known.contains_key(name));
            }
            Ok(Event::Apply(resource)) => {
                let applied = self.apply(resource, unwritten);
                self.known.extend([applied]);
            }
            Ok(Event::Delete(resource)) => {
                let name = resource.name_any();
                self.known.remove(&name);
                unwritten.remove(&name);
            }
            Err(error) => {
                tracing::warn!(%error, "failed to watch templates; using the last known ones and retrying")
            }
        }
        self.templates.send_replace(Arc::new(usable(&self.known, &self.default)));
        let specs = specs(&self.known);
        if **self.specs.borrow() != specs {
            self.specs.send_replace(Arc::new(specs));
        }
    }

    /// Returns the content to use for a resource. Adds the resource to `unwritten` if it can be parsed.
    fn apply(
        &self,
        resource: DeserializeGuard<WorkspaceTemplate>,
        unwritten: &mut BTreeMap<String, WorkspaceTemplate>,
    ) -> (String, FollowedTemplate) {
        let name = resource.name_any();
        let known = FollowedTemplate::of(&resource, self.known.get(&name));
        unwritten.extend(resource.0.ok().map(|resource| (name.clone(), resource)));
        (name, known)
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

impl FollowedTemplate {
    /// Reads a resource. If the resource cannot be parsed, its previous content `before` is used. A
    /// resource whose overrides are not valid is not used.
    fn of(resource: &DeserializeGuard<WorkspaceTemplate>, before: Option<&Self>) -> Self {
        let invalid = |problem| Err(InvalidTemplate { file: None, line: None, problem });
        match &resource.0 {
            Ok(resource) => {
                let usable = || Ok(Arc::new(from_spec(&resource.spec)));
                let template = problem(resource).map_or_else(usable, |problem| invalid(problem.to_string()));
                Self { spec: Some(resource.spec.clone()), template }
            }
            Err(error) => {
                let (name, error) = (resource.name_any(), &error.error);
                tracing::error!(name, problem = error, "ignoring invalid template");
                let unreadable = || invalid(format!("the WorkspaceTemplate {name} cannot be read: {error}"));
                let template = before.and_then(|before| before.template.clone().ok());
                Self {
                    spec: before.and_then(|before| before.spec.clone()),
                    template: template.map_or_else(unreadable, Ok),
                }
            }
        }
    }
}

fn usable(known: &FollowedTemplates, default: &str) -> Templates {
    let known = known.iter().map(|(name, known)| (name.clone(), known.template.clone()));
    Templates { known: known.collect(), default: default.to_owned() }
}

fn specs(known: &FollowedTemplates) -> TemplateSpecs {
    known.iter().filter_map(|(name, known)| Some((name.clone(), known.spec.clone()?))).collect()
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
        let (mut listed, mut unwritten) = (FollowedTemplates::new(), BTreeMap::new());
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
        let refused = |known: &FollowedTemplate| {
            let known = [("gpu".to_owned(), known.clone())].into();
            usable(&known, "gpu").get("gpu").err().map(|error| error.to_string())
        };
        let valid = FollowedTemplate::of(&resource(json!({})), None);
        assert_eq!(refused(&valid), None);
        let broken = FollowedTemplate::of(&resource(json!({"spec": {"hostPID": true}})), Some(&valid));
        let error = refused(&broken).unwrap();
        assert!(error.starts_with("template gpu is not valid: podOverrides.spec.hostPID: "), "{error}");
        let mended = FollowedTemplate::of(&resource(json!({"spec": {"hostPID": false}})), Some(&broken));
        assert_eq!(refused(&mended), None);
        let unreadable: DeserializeGuard<WorkspaceTemplate> = serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
            "metadata": {"name": "gpu"}, "spec": {"image": 7},
        }))
        .unwrap();
        assert_eq!(
            refused(&FollowedTemplate::of(&unreadable, Some(&mended))),
            None,
            "the content before is used"
        );
        assert!(refused(&FollowedTemplate::of(&unreadable, None)).unwrap().contains("cannot be read"));
    }
}

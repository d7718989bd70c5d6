//! Watches workspaces and templates, and reports the specs that follow from them to the driver.

use std::sync::{Arc, PoisonError};

use futures_util::StreamExt;
use kube::{
    ResourceExt,
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};
use podling_core::id::WorkspaceId;

use super::{
    KubernetesStore, readable, record,
    resource_cache::ResourceCache,
    spec::stored_spec,
    status::{NotServedReason, has_record},
};
use crate::{
    driver::{DriverError, DriverHandle},
    kubernetes::{ClaimReceiver, Workspace, WorkspaceTemplateSpec, id_of},
    template::TemplateSpecs,
    watches::watch_all,
};

/// Why a resource is not served.
enum NotServed {
    /// The driver has ended.
    DriverGone(DriverError),
    /// The resource is not served, for this reason.
    Because(Box<Workspace>, NotServedReason, String),
}

impl NotServed {
    fn invalid(resource: Workspace, problem: impl ToString) -> Self {
        Self::Because(resource.into(), NotServedReason::Invalid, problem.to_string())
    }

    fn duplicate(resource: Workspace, problem: String) -> Self {
        Self::Because(resource.into(), NotServedReason::Duplicate, problem)
    }
}

impl From<DriverError> for NotServed {
    fn from(error: DriverError) -> Self {
        Self::DriverGone(error)
    }
}

impl KubernetesStore {
    /// Reports the specs of workspaces to the driver, whenever a resource or its template changes. Runs
    /// until the driver has ended.
    pub async fn watch_resources(
        &self,
        driver: &DriverHandle,
        mut claims: ClaimReceiver,
    ) -> Result<(), DriverError> {
        let mut workspaces = watch_all(self.all_workspaces.clone(), watcher::Config::default());
        let mut templates = self.templates.subscribe();
        // The workspaces may have been loaded with templates that have changed since.
        templates.mark_changed();
        let mut handled = self.loaded_templates.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            tokio::select! {
                Some(event) = workspaces.next() => {
                    self.handle_workspace_event(event, driver, &mut claims).await?;
                }
                Ok(()) = templates.changed() => {
                    let known = templates.borrow_and_update().clone();
                    for name in changed_templates(&handled, &known) {
                        for resource in self.workspaces_of_template(name) {
                            self.handle_change(Workspace::clone(&resource), driver, &mut claims).await?;
                        }
                    }
                    handled = known;
                }
                else => return Ok(()),
            }
        }
    }

    async fn handle_workspace_event(
        &self,
        event: Result<Event<DeserializeGuard<Workspace>>, watcher::Error>,
        driver: &DriverHandle,
        claims: &mut ClaimReceiver,
    ) -> Result<(), DriverError> {
        match event {
            Ok(Event::Apply(resource) | Event::InitApply(resource)) => {
                if let Some(resource) = readable(resource) {
                    self.handle_change(resource, driver, claims).await?;
                }
            }
            Ok(Event::Delete(resource)) => {
                if let Some(resource) = readable(resource) {
                    self.handle_deletion(&resource);
                }
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to watch workspaces; edits are delayed");
            }
        }
        Ok(())
    }

    /// Returns the latest versions of the workspaces that use this template.
    fn workspaces_of_template(&self, template: &str) -> Vec<Arc<Workspace>> {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = caches.values().filter_map(|cache| cache.latest());
        latest.filter(|latest| latest.spec.template == template).collect()
    }

    async fn handle_change(
        &self,
        resource: Workspace,
        driver: &DriverHandle,
        claims: &mut ClaimReceiver,
    ) -> Result<(), DriverError> {
        match self.report_change(resource, driver, claims).await {
            Err(NotServed::DriverGone(error)) => Err(error),
            Err(NotServed::Because(resource, reason, why)) => {
                self.mark_not_served(&resource, reason, &why).await;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn report_change(
        &self,
        resource: Workspace,
        driver: &DriverHandle,
        claims: &mut ClaimReceiver,
    ) -> Result<(), NotServed> {
        let id = match id_of(&resource) {
            Ok(id) => id,
            Err(error) => return Err(NotServed::invalid(resource, error)),
        };
        let cache = self.cache(&id);
        if let Some(other) = cache.latest().filter(|latest| latest.name_any() != resource.name_any()) {
            let why = format!(
                "its id {id} belongs to the workspace {}; create it without spec.id",
                other.name_any()
            );
            return Err(NotServed::duplicate(resource, why));
        }
        let template = self.template(&resource.spec.template).await;
        let written = cache.written.lock().await;
        if cache.is_released(&resource) {
            return Ok(());
        }
        if !written.is_served() && cache.latest().is_none() {
            if written.is_archived() && !has_record(&resource) {
                // The response to the creation of this resource was lost. A user's copy of an earlier
                // resource restores nothing.
                if written.is_restoring() {
                    drop(written);
                    cache.set_loaded(resource).await;
                    return self.report_spec(id, &cache, template.as_ref(), driver).await;
                }
                let why = format!(
                    "its id {id} belonged to a deleted workspace; \
                     create it without spec.id, with the archive as spec.source"
                );
                return Err(NotServed::duplicate(resource, why));
            }
            // Only a resource without a record is affected by an existing claim.
            let has_claim = !has_record(&resource) && has_claim(claims, &id).await;
            let record = match record(&resource, template.as_ref(), has_claim) {
                Ok(record) => record,
                Err(problem) => return Err(NotServed::invalid(resource, problem)),
            };
            drop(written);
            cache.set_loaded(resource).await;
            driver.add_stored(record).await?;
            return self.report_spec(id, &cache, template.as_ref(), driver).await;
        }
        cache.observe(resource);
        if let Some(latest) = cache.latest() {
            self.restore_finalizer(&cache, &latest).await;
        }
        self.report_spec(id, &cache, template.as_ref(), driver).await
    }

    /// Reports the newest known spec. The driver ignores what has not changed.
    async fn report_spec(
        &self,
        id: WorkspaceId,
        cache: &ResourceCache,
        template: Option<&WorkspaceTemplateSpec>,
        driver: &DriverHandle,
    ) -> Result<(), NotServed> {
        match cache.latest() {
            Some(latest) => Ok(driver.observe_spec(id, stored_spec(&latest, template)).await?),
            None => Ok(()),
        }
    }

    fn handle_deletion(&self, resource: &Workspace) {
        let Ok(id) = id_of(resource) else { return };
        let cache = self.cache(&id);
        if cache.take_released(resource) {
            self.drop_if_empty(&id);
        } else if cache.latest().is_some_and(|latest| latest.uid() == resource.uid()) {
            tracing::warn!(workspace = %id, "workspace resource is gone; its data is retained");
            cache.mark_deleted();
        }
    }
}

/// Returns whether the workspace has a volume claim. Waits for the first list of claims.
async fn has_claim(claims: &mut ClaimReceiver, id: &WorkspaceId) -> bool {
    // The watch of claims ends only together with this watch.
    claims.wait_for(|claims| claims.listed).await.is_ok_and(|claims| claims.claims.contains_key(id))
}

/// Returns the names of templates that are new or have changed. A template that was deleted keeps
/// its effect on workspaces until they change.
fn changed_templates<'t>(before: &TemplateSpecs, now: &'t TemplateSpecs) -> Vec<&'t str> {
    let changed = now.iter().filter(|(name, spec)| before.get(*name) != Some(*spec));
    changed.map(|(name, _)| name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn new_and_changed_templates_reach_workspaces() {
        let specs = |images: &[(&str, &str)]| -> TemplateSpecs {
            let spec = |image: &str| serde_json::from_value(json!({"image": image})).expect("a template");
            images.iter().map(|(name, image)| ((*name).to_owned(), spec(image))).collect()
        };
        let before = specs(&[("same", "a"), ("changed", "a"), ("deleted", "a")]);
        let now = specs(&[("same", "a"), ("changed", "b"), ("created-while-disconnected", "a")]);
        assert_eq!(changed_templates(&before, &now), ["changed", "created-while-disconnected"]);
    }
}

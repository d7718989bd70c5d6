//! The authenticated caller of a request, with its permissions. `identity` creates it from a
//! verified token.

use std::{collections::BTreeSet, sync::Arc};

use podling_core::id::{Owner, WorkspaceId};
use podling_proto::{
    error::{Reason, WireError},
    v1::Verb,
    verb::{self, Verbs},
};

use crate::snapshot::{Snapshot, WorkspaceView};

/// Workspaces of other owners that an error names.
const MAX_NAMESAKES: usize = 3;

/// The holder of a valid token. Every authenticated request to the control plane's own services
/// carries it as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The owner that the token acts for.
    pub owner: Owner,
    pub verbs: Verbs,
    /// The workspaces that the token is restricted to. `None` means all workspaces of the owner, or
    /// with `admin` all workspaces.
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// Expiry in seconds since 1970; `None` for the root token.
    pub expires: Option<u64>,
}

impl Principal {
    /// Checks that the token allows `verb`. Fails with `VERB_MISSING` otherwise.
    pub fn may(&self, verb: Verb) -> Result<(), WireError> {
        if self.verbs.allow(verb) {
            return Ok(());
        }
        let name = verb::name(verb);
        let message = format!("the token lacks the verb {name:?}; use a token that has it");
        Err(WireError::new(Reason::VerbMissing, message).with("verb", name))
    }

    /// Returns whether the caller may see the workspace. A workspace that the caller may not see is
    /// reported as not found.
    pub fn sees(&self, view: &WorkspaceView) -> bool {
        (self.verbs.allow(Verb::Admin) || self.owner == view.spec.owner)
            && self.workspaces.as_ref().is_none_or(|ids| ids.contains(&view.spec.id))
    }

    /// Finds a workspace by its id. Fails with `WORKSPACE_NOT_FOUND` for workspaces of other
    /// owners. Fails with `WORKSPACE_DENIED` for ids outside the token's restriction, whether they
    /// exist or not.
    pub fn find<'a>(
        &self,
        snapshot: &'a Snapshot,
        id: &WorkspaceId,
    ) -> Result<&'a Arc<WorkspaceView>, WireError> {
        if self.workspaces.as_ref().is_some_and(|ids| !ids.contains(id)) {
            let message = format!("the token is restricted to workspaces other than {id}");
            return Err(WireError::new(Reason::WorkspaceDenied, message).with("id", id));
        }
        snapshot.get(id).filter(|view| self.sees(view)).ok_or_else(|| not_found(id.as_str()))
    }

    /// Finds a workspace by its name among the workspaces of `owner`, or by its id. Fails like
    /// [`Self::find`].
    pub fn find_named<'a>(
        &self,
        snapshot: &'a Snapshot,
        owner: &Owner,
        text: &str,
    ) -> Result<&'a Arc<WorkspaceView>, WireError> {
        // Names come first, because a name may look like an id.
        let by_name = text.parse().ok().and_then(|name| snapshot.by_name(owner, &name));
        let found = match (text.parse(), by_name.filter(|view| self.sees(view))) {
            (_, Some(view)) => Ok(view),
            (Ok(id), None) => self.find(snapshot, &id),
            (Err(_), None) => Err(not_found(text)),
        };
        found.map_err(|error| match error.reason() {
            Reason::WorkspaceNotFound => {
                let deleted = self.deleted(snapshot, owner, text);
                deleted.or_else(|| self.namesakes(snapshot, owner, text)).unwrap_or(error)
            }
            _ => error,
        })
    }

    /// Returns an error that says that the owner's workspace of this name was deleted, with the key
    /// of its newest archive. `None` if no archive is left.
    fn deleted(&self, snapshot: &Snapshot, owner: &Owner, text: &str) -> Option<WireError> {
        let is_deleted = |view: &&Arc<WorkspaceView>| {
            view.spec.owner == *owner && view.spec.name.as_str() == text && view.is_gone() && self.sees(view)
        };
        let deleted = snapshot.workspaces.values().filter(is_deleted);
        let newest = deleted.flat_map(|view| &view.archives).max_by_key(|archive| archive.at)?;
        let message = format!("workspace {text:?} was deleted, and only its archives are left");
        let error = WireError::new(Reason::WorkspaceNotFound, message).with("id", text);
        Some(error.with("archive", &newest.key.0))
    }

    /// Returns an error that names the owners of other workspaces of this name, with their ids.
    /// `None` if the caller sees none.
    fn namesakes(&self, snapshot: &Snapshot, owner: &Owner, text: &str) -> Option<WireError> {
        let is_namesake = |view: &&Arc<WorkspaceView>| {
            view.spec.name.as_str() == text && !view.is_gone() && self.sees(view)
        };
        let mut namesakes = snapshot.workspaces.values().filter(is_namesake).peekable();
        let first = namesakes.peek()?.spec.clone();
        let shown: Vec<_> = namesakes
            .take(MAX_NAMESAKES)
            .map(|view| format!("{} (id {})", view.spec.owner, view.spec.id))
            .collect();
        let message = format!(
            "{owner} has no workspace {text:?}, but workspaces of this name belong to {}; name it by its \
             id, or use a token of its owner",
            shown.join(", ")
        );
        let error = WireError::new(Reason::WorkspaceNotFound, message).with("id", text);
        Some(error.with("owner", &first.owner).with("workspace", &first.id))
    }
}

fn not_found(text: &str) -> WireError {
    WireError::new(Reason::WorkspaceNotFound, format!("workspace {text:?} does not exist")).with("id", text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_core::{
        archive::{Archive, ArchiveKey},
        time::Timestamp,
        workspace::{DesiredState, Spec, State},
    };

    use super::*;
    use crate::samples;

    fn principal(owner: &str, verbs: Verbs) -> Principal {
        Principal { owner: owner.parse().unwrap(), verbs, workspaces: None, expires: None }
    }

    #[test]
    fn name_of_a_deleted_workspace_names_its_newest_archive() {
        let spec = Spec { desired_state: DesiredState::Deleted, ..samples::spec(1, "demo") };
        let owner = spec.owner.clone();
        let archive = |key: &str, at| Archive {
            key: ArchiveKey(key.into()),
            generation: at,
            at: Timestamp(at),
            observed_time: Duration::ZERO,
            entries: 0,
            left_out: 0,
            bytes: 0,
            archive_bytes: 0,
        };
        let archives = vec![archive("new", 2), archive("old", 1)];
        let view = WorkspaceView { state: State::Archived, archives, ..samples::view(spec.clone()) };
        let snapshot =
            Snapshot { workspaces: [(spec.id.clone(), Arc::new(view))].into(), ..Snapshot::default() };
        let principal = principal(owner.as_str(), "read".parse().unwrap());
        let error = principal.find_named(&snapshot, &owner, "demo").unwrap_err();
        assert_eq!(
            (error.reason(), error.metadata()["archive"].as_str()),
            (Reason::WorkspaceNotFound, "new")
        );
        let unknown = principal.find_named(&snapshot, &owner, "demo2").unwrap_err();
        assert!(!unknown.metadata().contains_key("archive"));
    }

    #[test]
    fn missing_name_of_another_owner_says_whose_it_is() {
        let spec = Spec { owner: "alice".parse().unwrap(), ..samples::spec(1, "demo") };
        let id = spec.id.clone();
        let workspaces = [(id.clone(), Arc::new(samples::view(spec)))].into();
        let snapshot = Snapshot { workspaces, ..Snapshot::default() };
        let find = |principal: &Principal| {
            principal.find_named(&snapshot, &principal.owner, "demo").unwrap_err().message().to_owned()
        };
        let told = find(&principal("root", Verbs::admin()));
        assert!(told.contains(&format!("belong to alice (id {id})")) && told.contains("by its id"), "{told}");
        let other = find(&principal("bob", "read".parse().unwrap()));
        assert!(!other.contains("alice"), "owners do not learn of each other: {other}");
    }
}

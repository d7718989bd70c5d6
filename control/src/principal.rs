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
        match (text.parse(), by_name.filter(|view| self.sees(view))) {
            (_, Some(view)) => Ok(view),
            (Ok(id), None) => self.find(snapshot, &id),
            (Err(_), None) => Err(not_found(text)),
        }
    }
}

fn not_found(text: &str) -> WireError {
    WireError::new(Reason::WorkspaceNotFound, format!("workspace {text:?} does not exist")).with("id", text)
}

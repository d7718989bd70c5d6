//! Who calls, and what they may do. The edges put it together; everybody else only asks it.

use std::{collections::BTreeSet, sync::Arc};

use podling_core::id::{Owner, WorkspaceId};
use podling_proto::{
    error::{Reason, WireError},
    v1::Verb,
    verb::{self, Verbs},
};

use crate::snapshot::{Snapshot, WorkspaceView};

/// The holder of a valid token. In the extensions of every request that got past the authentication layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// On whose behalf.
    pub owner: Owner,
    /// What the token allows.
    pub verbs: Verbs,
    /// The workspaces it is narrowed to; `None`: all of the owner's (with `admin`: all).
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// When the token ends, seconds since 1970; `None`: the root token.
    pub expires: Option<u64>,
}

impl Principal {
    /// Whether the token carries `verb`; the refusal names it.
    pub fn may(&self, verb: Verb) -> Result<(), WireError> {
        if self.verbs.allow(verb) {
            return Ok(());
        }
        let name = verb::name(verb);
        Err(WireError::new(Reason::VerbMissing, format!("this token does not allow {name:?}"))
            .with("verb", name))
    }

    /// Whether the workspace is the caller's to see: others are as if they did not exist.
    pub fn sees(&self, view: &WorkspaceView) -> bool {
        (self.verbs.allow(Verb::Admin) || self.owner == view.spec.owner)
            && self.workspaces.as_ref().is_none_or(|ids| ids.contains(&view.spec.id))
    }

    /// The workspace with this id. Others' are as if they did not exist; what a narrowed token leaves out is denied whether it
    /// exists or not.
    pub fn find<'a>(
        &self,
        snapshot: &'a Snapshot,
        id: &WorkspaceId,
    ) -> Result<&'a Arc<WorkspaceView>, WireError> {
        if self.workspaces.as_ref().is_some_and(|ids| !ids.contains(id)) {
            let message = format!("this token is narrowed to other workspaces than {id}");
            return Err(WireError::new(Reason::WorkspaceDenied, message).with("id", id));
        }
        snapshot.get(id).filter(|view| self.sees(view)).ok_or_else(|| not_found(id.as_str()))
    }

    /// The workspace with this id, or else `owner`'s of this name, as far as the caller may see it.
    pub fn find_named<'a>(
        &self,
        snapshot: &'a Snapshot,
        owner: &Owner,
        text: &str,
    ) -> Result<&'a Arc<WorkspaceView>, WireError> {
        // A name may look like an id.
        let by_name = text.parse().ok().and_then(|name| snapshot.by_name(owner, &name));
        match (text.parse(), by_name.filter(|view| self.sees(view))) {
            (_, Some(view)) => Ok(view),
            (Ok(id), None) => self.find(snapshot, &id),
            (Err(_), None) => Err(not_found(text)),
        }
    }
}

fn not_found(text: &str) -> WireError {
    WireError::new(Reason::WorkspaceNotFound, format!("there is no workspace {text:?}")).with("id", text)
}

//! Who calls, and what they may do. The edges put it together; everybody else only asks it.

use std::collections::BTreeSet;

use podling_core::id::{Owner, WorkspaceId};
use podling_proto::{
    error::{Reason, WireError},
    v1::Verb,
    verb::{self, Verbs},
};

use crate::snapshot::WorkspaceView;

/// The holder of a valid token. In the extensions of every request that got past the authentication layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// On whose behalf.
    pub owner: Owner,
    /// What the token allows.
    pub verbs: Verbs,
    /// The workspaces it is narrowed to; `None`: all of the owner's (with `admin`: all).
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// When the token ends, seconds since 1970; `None`: the root token.
    pub expires: Option<u64>,
}

impl Caller {
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
}

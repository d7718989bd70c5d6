//! Changes of a spec, as functions of the newest spec in the store. Two writers may change a spec at
//! once, and neither change is lost. `apply` repeats the checks that a later spec can invalidate.

use crate::{
    policy::PolicyOverrides,
    quota::Quotas,
    workspace::{DesiredSpec, DesiredState, ResourceOverrides},
};

/// Highest number of a request. The resource stores the number as an `int64`.
const MAX_REQUEST_SEQ: u64 = i64::MAX as u64;

/// A change of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpecChange {
    /// Changes nothing. The newest spec is read.
    Read,
    /// Requests that the workspace wakes, unless the newest spec does so already.
    Wake {
        /// Number of a request that was acted on before the workspace fell asleep. It wakes no more.
        acted_on: Option<u64>,
    },
    /// Requests that the workspace falls asleep.
    Sleep,
    /// Records that the workspace fell asleep by its policy. Applies only to the spec of this
    /// generation, because a later one may contain a request to wake.
    FellAsleep {
        generation: i64,
    },
    /// Deletes the workspace, after archiving it unless `discard` is set.
    Delete {
        discard: bool,
    },
    /// Takes a deletion back and sets this desired state, which is `Asleep` for a sleeping workspace.
    Undelete(DesiredState),
    /// Requests that an archived or deleted workspace is restored.
    Restore,
    SetPolicy(Box<PolicyOverrides>),
    /// Requests other resources, unless the result exceeds a quota.
    Resize {
        overrides: ResourceOverrides,
        quotas: Quotas,
    },
}

impl SpecChange {
    /// Returns the changed spec. Returns `None` if the newest spec, of this generation, already
    /// fulfils the change or no longer permits it.
    pub fn apply(&self, newest: &DesiredSpec, generation: i64) -> Option<DesiredSpec> {
        let mut next = newest.clone();
        match self {
            Self::Read => return None,
            Self::Wake { .. } if newest.desired_state.is_gone() => return None,
            Self::Wake { acted_on }
                if newest.desired_state == DesiredState::Awake && *acted_on != Some(newest.request_seq) =>
            {
                return None;
            }
            Self::Restore if newest.desired_state == DesiredState::Discarded => return None,
            Self::Wake { .. } | Self::Restore => next.request(DesiredState::Awake),
            Self::FellAsleep { generation: seen } if *seen != generation => return None,
            Self::Sleep | Self::FellAsleep { .. } if newest.desired_state != DesiredState::Awake => {
                return None;
            }
            Self::Sleep | Self::FellAsleep { .. } => next.request(DesiredState::Asleep),
            Self::Delete { discard: true } => next.desired_state = DesiredState::Discarded,
            Self::Delete { discard: false } if newest.desired_state.is_gone() => return None,
            Self::Delete { discard: false } => next.desired_state = DesiredState::Deleted,
            Self::Undelete(state) if newest.desired_state == DesiredState::Deleted => {
                next.desired_state = *state;
            }
            Self::Undelete(_) => return None,
            Self::SetPolicy(_) | Self::Resize { .. } if newest.desired_state.is_gone() => return None,
            Self::SetPolicy(own) => next.policy = newest.policy.with(own).with_limited_warning(),
            Self::Resize { overrides, quotas } => {
                next.resources = newest.resources.with(*overrides);
                if !quotas.allow(next.resources) {
                    return None;
                }
            }
        }
        (next != *newest).then_some(next)
    }

    /// Returns whether a caller gets an error if the newest spec says `Deleted` or `Discarded` after
    /// this change.
    pub fn is_refused_while_deleting(&self) -> bool {
        match self {
            Self::Wake { .. }
            | Self::Sleep
            | Self::Undelete(_)
            | Self::Restore
            | Self::SetPolicy(_)
            | Self::Resize { .. } => true,
            Self::Read | Self::FellAsleep { .. } | Self::Delete { .. } => false,
        }
    }
}

impl DesiredSpec {
    /// Sets the desired state as a new request. The number tells the request apart from an earlier
    /// one for the same state, and from a later edit by a client that knows no numbers.
    fn request(&mut self, desired_state: DesiredState) {
        self.desired_state = desired_state;
        self.request_seq = (self.request_seq + 1) & MAX_REQUEST_SEQ;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::Policy, quota::Quota, workspace::Resources};

    fn desired(desired_state: DesiredState) -> DesiredSpec {
        let (resources, policy) = (Resources::default(), Policy::default());
        DesiredSpec { desired_state, request_seq: 3, resources, policy, env: Default::default() }
    }

    fn resize(cpu_millis: Option<u64>, memory_bytes: Option<u64>, most_cpu: Option<u64>) -> SpecChange {
        let owner = Quota { cpu_millis: most_cpu, ..Quota::default() };
        let overrides = ResourceOverrides { cpu_millis, memory_bytes };
        SpecChange::Resize { overrides, quotas: Quotas { owner, ..Quotas::default() } }
    }

    /// Returns the desired state and the number of the last request after the change.
    fn after(change: &SpecChange, before: DesiredState) -> Option<(DesiredState, u64)> {
        let changed = change.apply(&desired(before), 5)?;
        Some((changed.desired_state, changed.request_seq))
    }

    #[test]
    fn sleep_is_recorded_only_in_the_spec_that_was_decided_on() {
        let slept = |generation| SpecChange::FellAsleep { generation };
        assert_eq!(after(&slept(5), DesiredState::Awake), Some((DesiredState::Asleep, 4)));
        assert_eq!(after(&slept(4), DesiredState::Awake), None, "a later spec may contain a request");
        assert_eq!(after(&slept(5), DesiredState::Deleted), None);
    }

    #[test]
    fn deletion_wins_over_other_requests_until_it_is_taken_back() {
        let resize = resize(Some(1), Some(1), None);
        let wake = SpecChange::Wake { acted_on: Some(3) };
        for change in [wake, SpecChange::Sleep, resize, SpecChange::Delete { discard: false }] {
            assert_eq!(after(&change, DesiredState::Deleted), None, "{change:?}");
            assert_eq!(after(&change, DesiredState::Discarded), None, "{change:?}");
        }
        let undelete = SpecChange::Undelete(DesiredState::Asleep);
        assert_eq!(after(&undelete, DesiredState::Deleted), Some((DesiredState::Asleep, 3)));
        assert_eq!(after(&undelete, DesiredState::Discarded), None);
        assert_eq!(after(&SpecChange::Restore, DesiredState::Deleted), Some((DesiredState::Awake, 4)));
    }

    #[test]
    fn resizes_of_different_resources_are_both_made() {
        let mut newest = desired(DesiredState::Awake);
        for change in [resize(Some(2000), None, None), resize(None, Some(4 << 30), None)] {
            newest = change.apply(&newest, 5).expect("a change");
        }
        assert_eq!(newest.resources, Resources { cpu_millis: 2000, memory_bytes: 4 << 30 });
        let larger = resize(None, Some(8 << 30), Some(1000));
        assert_eq!(larger.apply(&newest, 5), None, "the result exceeds the quota");
    }

    #[test]
    fn wake_is_a_request_unless_one_is_pending() {
        let wake = |acted_on| SpecChange::Wake { acted_on };
        assert_eq!(after(&wake(None), DesiredState::Asleep), Some((DesiredState::Awake, 4)));
        assert_eq!(after(&wake(None), DesiredState::Awake), None, "it is awake, or about to be");
        assert_eq!(after(&wake(Some(2)), DesiredState::Awake), None, "a later request is pending");
        assert_eq!(after(&wake(Some(3)), DesiredState::Awake), Some((DesiredState::Awake, 4)));
        assert_eq!(after(&SpecChange::Sleep, DesiredState::Asleep), None);
    }
}

//! Folding of events into observations, independent of the order of events.

use podling_core::{
    decide::Action,
    observed::{ActionSuccess, AgentEnd, Observed, RunningAgents, UseState},
};

use crate::fixture::{NOW, SECOND, agents, archive, served};

#[test]
fn agent_end_reported_before_the_first_list_is_respected() {
    let mut observed = Observed::default();
    observed.agent_ended(3, "killed by SIGKILL".into());
    observed.apply_first_list([2, 3].into(), 3);
    assert_eq!(observed.processes, agents(&[2]));
    assert_eq!(observed.ended, Some(AgentEnd { epoch: 3, detail: "killed by SIGKILL".into() }));
    let mut reversed = Observed::default();
    reversed.apply_first_list([2, 3].into(), 3);
    reversed.agent_ended(3, "killed by SIGKILL".into());
    assert_eq!(reversed, observed);
}

#[test]
fn list_after_known_processes_is_ignored() {
    let mut observed = Observed::for_new_workspace();
    observed.apply_first_list([1].into(), 0);
    assert_eq!(observed.processes, RunningAgents::None);
}

#[test]
fn reported_use_outlives_the_agent() {
    let mut observed = served();
    observed.use_reported(UseState::No(SECOND));
    assert_eq!(observed.used_by, None);
    observed.use_reported(UseState::Yes);
    observed.use_reported(UseState::No(SECOND));
    observed.agent_ended(3, "killed by SIGKILL".into());
    assert_eq!((observed.used, observed.used_by), (UseState::Unknown, Some(3)));
}

#[test]
fn archive_made_again_after_its_removal_is_known() {
    let mut observed = Observed::for_new_workspace();
    observed.done(Action::ExpireArchive(3), Ok(ActionSuccess::Done), NOW);
    let again = ActionSuccess::Archived(Box::new(archive(3, SECOND)));
    observed.done(Action::Archive(3), Ok(again), NOW);
    assert!(observed.archived.is_some() && observed.expired.is_empty());
}

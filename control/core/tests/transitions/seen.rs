//! What is seen, folded: the order in which it is told does not matter.

use podling_core::{
    decide::Action,
    observed::{Achieved, AgentEnd, Observed, Processes, Used},
};

use crate::given::{NOW, SECOND, agents, archive, served};

#[test]
fn an_agent_whose_end_is_told_before_the_list_that_names_it_does_not_live() {
    let mut observed = Observed::default();
    observed.agent_ended(3, "killed by SIGKILL".into());
    observed.listed([2, 3].into(), 3);
    assert_eq!(observed.processes, agents(&[2]));
    assert_eq!(observed.ended, Some(AgentEnd { epoch: 3, detail: "killed by SIGKILL".into() }));
    let mut other_way_round = Observed::default();
    other_way_round.listed([2, 3].into(), 3);
    other_way_round.agent_ended(3, "killed by SIGKILL".into());
    assert_eq!(other_way_round, observed);
}

#[test]
fn what_is_known_already_no_list_changes() {
    let mut observed = Observed::of_new();
    observed.listed([1].into(), 0);
    assert_eq!(observed.processes, Processes::None);
}

#[test]
fn who_told_of_use_is_known_when_it_is_gone() {
    let mut observed = served();
    observed.use_reported(Used::No(SECOND));
    assert_eq!(observed.used_by, None);
    observed.use_reported(Used::Yes);
    observed.use_reported(Used::No(SECOND));
    observed.agent_ended(3, "killed by SIGKILL".into());
    assert_eq!((observed.used, observed.used_by), (Used::Unknown, Some(3)));
}

#[test]
fn an_archive_that_is_made_anew_after_it_was_removed_is_there() {
    let mut observed = Observed::of_new();
    observed.done(Action::Expire(3), Ok(Achieved::Done), NOW);
    let again = Achieved::Archived(Box::new(archive(3, SECOND)));
    observed.done(Action::Archive(3), Ok(again), NOW);
    assert!(observed.archived.is_some() && observed.expired.is_empty());
}

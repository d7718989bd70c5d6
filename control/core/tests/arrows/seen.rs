//! What is seen, folded: the order in which it is told does not matter.

use podling_core::observed::{Ended, Observed, Processes};

use crate::given::agents;

#[test]
fn an_agent_whose_end_is_told_before_the_list_that_names_it_does_not_live() {
    let mut observed = Observed::default();
    observed.agent_ended(3, "killed by SIGKILL".into());
    observed.listed([2, 3].into(), 3);
    assert_eq!(observed.processes, agents(&[2]));
    assert_eq!(observed.ended, Some(Ended { epoch: 3, how: "killed by SIGKILL".into() }));
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

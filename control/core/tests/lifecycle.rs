//! The lifecycle in a small simulated world: whatever happens in whatever order, the laws hold; and when faults stop, every
//! workspace arrives where it is wanted.

#[path = "lifecycle/world.rs"]
mod world;

use podling_core::{
    status::Phase,
    workspace::{State, Wanted},
};
use proptest::prelude::*;
use world::{Fault, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn laws_hold_whatever_happens_and_faults_that_stop_are_overcome(
        faults in prop::collection::vec(any_fault(), 1..80),
        wanted_deleted in any::<bool>(),
    ) {
        let mut world = World::new();
        for fault in faults {
            world.suffer(fault);
        }
        if wanted_deleted {
            world.spec.wanted = Wanted::Deleted;
        }
        world.heal();
        prop_assert!(world.settle(), "it did not arrive: {world:#?}");
    }
}

#[test]
fn a_fresh_workspace_is_awake_after_one_start() {
    let mut world = World::new();
    assert!(world.settle());
    assert_eq!((world.status.state(), world.status.epoch, world.status.failures), (State::Awake, 1, 0));
}

#[test]
fn a_control_plane_that_comes_back_finds_its_agent_and_starts_none() {
    let mut world = World::new();
    assert!(world.settle());
    world.suffer(Fault::ControlPlaneDies { after_the_action: false });
    world.suffer(Fault::ControlPlaneStarts);
    assert!(world.settle());
    assert_eq!(world.status.epoch, 1);
}

#[test]
fn an_agent_that_dies_again_and_again_is_called_failed_and_tried_ever_more_slowly() {
    let mut world = World::new();
    for _ in 0..12 {
        world.suffer(Fault::ActionFails);
        world.suffer(Fault::ActionSucceeds);
        world.suffer(Fault::TimePasses(600));
    }
    assert!(world.status.failures >= 5, "{world:#?}");
    assert!(world.settle());
}

#[test]
fn down_ends_everything_and_the_next_up_brings_it_back() {
    let mut world = World::new();
    assert!(world.settle());
    world.suffer(Fault::Down);
    for _ in 0..4 {
        world.suffer(Fault::ActionSucceeds);
    }
    assert_eq!(world.status.phase, Phase::Asleep);
    assert!(!world.anything_runs());
    world.suffer(Fault::ControlPlaneDies { after_the_action: false });
    world.suffer(Fault::ControlPlaneStarts);
    assert!(world.settle());
    assert_eq!((world.status.state(), world.status.epoch), (State::Awake, 2));
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::ActionSucceeds),
        2 => Just(Fault::ActionFails),
        1 => Just(Fault::ActionFailsHalfway),
        2 => Just(Fault::AgentDies),
        3 => Just(Fault::AgentSaysHello),
        2 => Just(Fault::LinkBreaks),
        3 => (0_u64..700).prop_map(Fault::TimePasses),
        1 => (-100_000_i64..100_000).prop_map(Fault::ClockJumps),
        2 => any::<bool>().prop_map(|after_the_action| Fault::ControlPlaneDies { after_the_action }),
        3 => Just(Fault::ControlPlaneStarts),
        1 => Just(Fault::SomebodyWaits),
        1 => Just(Fault::Down),
        1 => Just(Fault::SomebodyDeletes),
    ]
}

//! Level-triggered: what was decided is decided again, whatever was seen.

use std::time::Duration;

use podling_core::{
    decide::{Action, decide},
    observed::{Ended, Observed, Processes, Trouble},
    status::{Phase, Status},
    time::Timestamp,
    workspace::Wanted,
};
use proptest::prelude::*;

use crate::given::*;

proptest! {
    /// Also for what should never be seen together.
    #[test]
    fn deciding_twice_says_the_same(
        phase in prop_oneof![
            (0_u64..1000).prop_map(|ms| pending(Duration::from_millis(ms * 1000))),
            Just(Phase::Starting), Just(Phase::Awake), Just(Phase::FallingAsleep), Just(Phase::Asleep), Just(Phase::Deleting),
        ],
        failures in 0_u32..9,
        deleted in any::<bool>(),
        processes in prop_oneof![
            Just(Processes::Unseen),
            Just(Processes::None),
            prop::collection::btree_set(1_u64..6, 0..3).prop_map(Processes::Some),
        ],
        ended in prop::option::of(1_u64..6),
        connected in prop::option::of(1_u64..6),
        silence in 0_u64..1000,
        trouble in prop::option::of((any::<bool>(), 0_u32..9, 0_u64..1000)),
        removed in any::<bool>(),
        standby in any::<bool>(),
    ) {
        let trouble = trouble.map(|(stop, failures, ago)| Trouble {
            action: if stop { Action::Stop } else { Action::Remove },
            failures,
            at: Timestamp(NOW.0 - ago * 1000),
            error: "no".into(),
        });
        let ended = ended.map(|epoch| Ended { epoch, how: "so".into() });
        let silence = Duration::from_secs(silence);
        let observed = Observed { processes, ended, connected, silence, trouble, removed, standby };
        let spec = spec(if deleted { Wanted::Deleted } else { Wanted::Awake });
        let status = Status { failures, ..status(phase) };
        let once = decide(&spec, &status, &observed, NOW);
        prop_assert_eq!(&decide(&spec, &once.status, &observed, NOW), &once);
        prop_assert!(once.status.epoch <= status.epoch + 1, "at most one start at a time");
    }
}

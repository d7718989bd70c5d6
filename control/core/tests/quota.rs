//! Room and the line for it.

use std::{collections::BTreeMap, time::Duration};

use podling_core::{
    id::{Owner, WorkspaceId},
    quota::{Quota, QuotaRequest, Quotas, admission_queue},
    workspace::Resources,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct One {
    id: WorkspaceId,
    owner: Owner,
    resources: Resources,
    has: Option<Resources>,
    waits: Option<Duration>,
}

fn one(n: u64, owner: &str, cpu_millis: u64, waits: Option<u64>) -> One {
    One {
        id: WorkspaceId::from_bits(n),
        owner: owner.parse().expect("an owner"),
        resources: Resources { cpu_millis, memory_bytes: 1 },
        has: None,
        waits: waits.map(Duration::from_secs),
    }
}

fn claimant(one: &One) -> QuotaRequest<'_> {
    let has = one.has.or(one.waits.is_none().then_some(one.resources));
    let waits = one.waits.map(|since| (since, one.resources));
    QuotaRequest { id: &one.id, owner: &one.owner, has, waits }
}

fn cpu(owner: Option<u64>, total: Option<u64>) -> Quotas {
    let quota = |cpu_millis| Quota { cpu_millis, ..Quota::default() };
    Quotas { owner: quota(owner), total: quota(total) }
}

/// Who waits, in order.
fn waiting(all: &[One], quotas: &Quotas) -> Vec<u64> {
    let line = admission_queue(all.iter().map(claimant), quotas);
    let places: BTreeMap<usize, u64> = line.iter().map(|(id, place)| (*place, id.bits())).collect();
    assert_eq!(places.keys().copied().collect::<Vec<_>>(), (1..=line.len()).collect::<Vec<_>>());
    places.into_values().collect()
}

#[test]
fn first_come_first_served() {
    let all =
        [one(1, "a", 1, None), one(2, "b", 1, Some(9)), one(3, "b", 1, Some(7)), one(4, "c", 1, Some(8))];
    assert_eq!(waiting(&all, &cpu(None, Some(2))), [4, 2]);
    assert_eq!(waiting(&all, &cpu(None, None)), [] as [u64; 0]);
    assert_eq!(waiting(&all, &cpu(None, Some(1))), [3, 4, 2]);
}

#[test]
fn who_waits_for_its_owners_share_keeps_only_its_owners_others_waiting() {
    let all =
        [one(1, "a", 2, None), one(2, "a", 2, Some(1)), one(3, "a", 1, Some(2)), one(4, "b", 2, Some(3))];
    assert_eq!(
        waiting(&all, &cpu(Some(3), Some(9))),
        [2, 3],
        "a smaller one does not overtake a larger one of its owner"
    );
}

#[test]
fn a_large_one_is_not_overtaken_by_small_ones() {
    let all = [one(1, "a", 3, None), one(2, "b", 3, Some(1)), one(3, "c", 1, Some(2))];
    assert_eq!(waiting(&all, &cpu(None, Some(5))), [2, 3]);
}

#[test]
fn who_wants_more_than_it_has_waits_for_the_rest_like_everybody() {
    let grows = |n, has, wants, since| One {
        has: Some(Resources { cpu_millis: has, memory_bytes: 1 }),
        ..one(n, "a", wants, Some(since))
    };
    let all = [grows(1, 1, 3, 5), one(2, "a", 1, Some(6)), one(3, "b", 1, Some(7))];
    assert_eq!(waiting(&all, &cpu(Some(3), None)), [2], "what it has is not counted twice");
    assert_eq!(waiting(&all, &cpu(Some(2), None)), [1], "it never fits, and keeps nobody waiting");
    let all = [one(4, "a", 2, None), grows(1, 1, 3, 5), one(2, "a", 1, Some(6)), one(3, "b", 1, Some(7))];
    assert_eq!(waiting(&all, &cpu(Some(4), None)), [1, 2], "who came later does not overtake it");
    assert_eq!(waiting(&all, &cpu(None, Some(5))), [2, 3], "it fits just so");
    let all = [one(4, "a", 2, None), one(2, "a", 1, Some(4)), grows(1, 1, 2, 5)];
    assert_eq!(waiting(&all, &cpu(Some(4), None)), [1], "nor does it overtake who came before");
}

#[test]
fn one_that_never_fits_keeps_nobody_waiting() {
    let all = [one(1, "a", 9, Some(1)), one(2, "a", 1, Some(2)), one(3, "b", 1, Some(3))];
    assert_eq!(waiting(&all, &cpu(None, Some(5))), [1]);
    assert_eq!(waiting(&all, &cpu(Some(5), None)), [1], "nor its owner's others");
}

fn any_one() -> impl Strategy<Value = (u8, u64, Option<u64>)> {
    (0_u8..4, 1_u64..5, prop::option::weighted(0.7, 0_u64..20))
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let bound = || prop::option::weighted(0.7, 1_u64..12);
    (bound(), bound()).prop_map(|(awake, cpu_millis)| Quota { awake, cpu_millis, memory_bytes: None })
}

fn fits(taken: &[&One], quota: &Quota) -> bool {
    let cpu: u64 = taken.iter().map(|one| one.resources.cpu_millis).sum();
    quota.awake.is_none_or(|most| taken.len() as u64 <= most)
        && quota.cpu_millis.is_none_or(|most| cpu <= most)
}

/// All that have room, or may have it.
fn holders<'a>(all: &'a [One], waiting: &[u64]) -> Vec<&'a One> {
    all.iter().filter(|one| !waiting.contains(&one.id.bits())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_let_in_fits(
        ones in prop::collection::vec(any_one(), 0..20), owner in any_quota(), total in any_quota(),
    ) {
        let make = |(n, (whose, cpu, waits)): (usize, _)| one(n as u64, &format!("o{whose}"), cpu, waits);
        let all: Vec<One> = ones.into_iter().enumerate().map(make).collect();
        let line = waiting(&all, &Quotas { owner, total });
        let (before, after): (Vec<_>, _) = (all.iter().filter(|o| o.waits.is_none()).collect(), holders(&all, &line));
        prop_assert!(after.len() == before.len() || fits(&after, &total));
        for whose in 0..4 {
            let owner_is = |one: &&&One| one.owner.as_str() == format!("o{whose}");
            let mine: Vec<&One> = after.iter().filter(owner_is).copied().collect();
            let had = before.iter().filter(owner_is).count();
            prop_assert!(mine.len() == had || fits(&mine, &owner), "owner {}", whose);
        }
    }

    /// With others coming all the time, and one that has room going now and then, everybody who can ever fit gets in.
    #[test]
    fn nobody_waits_for_ever(
        cpu_wanted in 1_u64..6, comers in prop::collection::vec((0_u8..4, 1_u64..6), 60), total in 5_u64..9,
    ) {
        let quotas = cpu(Some(6), Some(total));
        let mut all: Vec<One> = (0..total).map(|n| one(n, "first", 1, Some(0))).collect();
        all.push(one(999, "patient", cpu_wanted.min(total), Some(1)));
        for (now, (whose, cpu)) in comers.into_iter().enumerate() {
            let line = waiting(&all, &quotas);
            for one in &mut all {
                if !line.contains(&one.id.bits()) {
                    one.waits = None;
                }
            }
            if all.iter().any(|one| one.id.bits() == 999 && one.waits.is_none()) {
                return Ok(());
            }
            // The one that has had room for longest goes.
            if let Some(oldest) = all.iter().position(|one| one.waits.is_none()) {
                all.remove(oldest);
            }
            let comer = now as u64 + 2;
            all.push(one(1000 + comer, &format!("o{whose}"), cpu, Some(comer)));
        }
        prop_assert!(false, "it is still waiting: {:#?}", all);
    }
}

//! Tests of the quotas and the admission queue.

use std::{collections::BTreeMap, time::Duration};

use podling_core::{
    id::{Owner, WorkspaceId},
    quota::{Quota, QuotaRequest, Quotas, admission_queue},
    workspace::Resources,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct TestWorkspace {
    id: WorkspaceId,
    owner: Owner,
    resources: Resources,
    held: Option<Resources>,
    requested: Option<Duration>,
}

fn workspace(n: u64, owner: &str, cpu_millis: u64, requested: Option<u64>) -> TestWorkspace {
    TestWorkspace {
        id: WorkspaceId::from_bits(n),
        owner: owner.parse().expect("valid owner"),
        resources: Resources { cpu_millis, memory_bytes: 1 },
        held: None,
        requested: requested.map(Duration::from_secs),
    }
}

fn quota_request(workspace: &TestWorkspace) -> QuotaRequest<'_> {
    let held = workspace.held.or(workspace.requested.is_none().then_some(workspace.resources));
    let requested = workspace.requested.map(|since| (since, workspace.resources));
    QuotaRequest { id: &workspace.id, owner: &workspace.owner, held, requested }
}

fn cpu(owner: Option<u64>, total: Option<u64>) -> Quotas {
    let quota = |cpu_millis| Quota { cpu_millis, ..Quota::default() };
    Quotas { owner: quota(owner), total: quota(total) }
}

/// Returns the ids of the queued workspaces in queue order.
fn queued(all: &[TestWorkspace], quotas: &Quotas) -> Vec<u64> {
    let queue = admission_queue(all.iter().map(quota_request), quotas);
    let positions: BTreeMap<usize, u64> = queue.iter().map(|(id, position)| (*position, id.bits())).collect();
    assert_eq!(positions.keys().copied().collect::<Vec<_>>(), (1..=queue.len()).collect::<Vec<_>>());
    positions.into_values().collect()
}

#[test]
fn queue_is_served_in_order_of_arrival() {
    let all = [
        workspace(1, "a", 1, None),
        workspace(2, "b", 1, Some(9)),
        workspace(3, "b", 1, Some(7)),
        workspace(4, "c", 1, Some(8)),
    ];
    assert_eq!(queued(&all, &cpu(None, Some(2))), [4, 2]);
    assert_eq!(queued(&all, &cpu(None, None)), [] as [u64; 0]);
    assert_eq!(queued(&all, &cpu(None, Some(1))), [3, 4, 2]);
}

#[test]
fn owner_quota_holds_back_only_workspaces_of_that_owner() {
    let all = [
        workspace(1, "a", 2, None),
        workspace(2, "a", 2, Some(1)),
        workspace(3, "a", 1, Some(2)),
        workspace(4, "b", 2, Some(3)),
    ];
    assert_eq!(
        queued(&all, &cpu(Some(3), Some(9))),
        [2, 3],
        "a smaller workspace overtakes a larger one of its owner"
    );
}

#[test]
fn large_workspace_is_not_overtaken_by_small_ones() {
    let all = [workspace(1, "a", 3, None), workspace(2, "b", 3, Some(1)), workspace(3, "c", 1, Some(2))];
    assert_eq!(queued(&all, &cpu(None, Some(5))), [2, 3]);
}

#[test]
fn resize_waits_in_the_queue_for_its_additional_quota() {
    let grows = |n, held, wants, since| TestWorkspace {
        held: Some(Resources { cpu_millis: held, memory_bytes: 1 }),
        ..workspace(n, "a", wants, Some(since))
    };
    let all = [grows(1, 1, 3, 5), workspace(2, "a", 1, Some(6)), workspace(3, "b", 1, Some(7))];
    assert_eq!(queued(&all, &cpu(Some(3), None)), [2], "allocated resources are counted twice");
    assert_eq!(queued(&all, &cpu(Some(2), None)), [1], "a resize that never fits holds back others");
    let all = [
        workspace(4, "a", 2, None),
        grows(1, 1, 3, 5),
        workspace(2, "a", 1, Some(6)),
        workspace(3, "b", 1, Some(7)),
    ];
    assert_eq!(queued(&all, &cpu(Some(4), None)), [1, 2], "a later workspace overtakes the resize");
    assert_eq!(queued(&all, &cpu(None, Some(5))), [2, 3], "a resize that just fits is not admitted");
    let all = [workspace(4, "a", 2, None), workspace(2, "a", 1, Some(4)), grows(1, 1, 2, 5)];
    assert_eq!(queued(&all, &cpu(Some(4), None)), [1], "the resize overtakes an earlier workspace");
}

#[test]
fn reduced_request_holds_its_quota_until_it_is_durable() {
    let shrinks = TestWorkspace {
        held: Some(Resources { cpu_millis: 3, memory_bytes: 1 }),
        ..workspace(1, "a", 1, Some(5))
    };
    let all = [shrinks, workspace(2, "a", 1, Some(6))];
    assert_eq!(queued(&all, &cpu(None, Some(3))), [2]);
    assert_eq!(queued(&all, &cpu(None, Some(4))), [] as [u64; 0]);
}

#[test]
fn workspace_that_never_fits_holds_back_no_other() {
    let all = [workspace(1, "a", 9, Some(1)), workspace(2, "a", 1, Some(2)), workspace(3, "b", 1, Some(3))];
    assert_eq!(queued(&all, &cpu(None, Some(5))), [1]);
    assert_eq!(queued(&all, &cpu(Some(5), None)), [1], "it holds back other workspaces of its owner");
}

fn any_workspace() -> impl Strategy<Value = (u8, u64, Option<u64>)> {
    (0_u8..4, 1_u64..5, prop::option::weighted(0.7, 0_u64..20))
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let bound = || prop::option::weighted(0.7, 1_u64..12);
    (bound(), bound()).prop_map(|(awake, cpu_millis)| Quota { awake, cpu_millis, memory_bytes: None })
}

fn fits(admitted: &[&TestWorkspace], quota: &Quota) -> bool {
    let cpu: u64 = admitted.iter().map(|workspace| workspace.resources.cpu_millis).sum();
    quota.awake.is_none_or(|most| admitted.len() as u64 <= most)
        && quota.cpu_millis.is_none_or(|most| cpu <= most)
}

/// Returns the workspaces that hold quota or are admitted.
fn admitted<'a>(all: &'a [TestWorkspace], queue: &[u64]) -> Vec<&'a TestWorkspace> {
    all.iter().filter(|workspace| !queue.contains(&workspace.id.bits())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn admitted_workspaces_fit_the_quota(
        workspaces in prop::collection::vec(any_workspace(), 0..20),
        owner in any_quota(),
        total in any_quota(),
    ) {
        let make = |(n, (owner_index, cpu, requested)): (usize, _)| {
            workspace(n as u64, &format!("o{owner_index}"), cpu, requested)
        };
        let all: Vec<TestWorkspace> = workspaces.into_iter().enumerate().map(make).collect();
        let queue = queued(&all, &Quotas { owner, total });
        let before: Vec<_> = all.iter().filter(|o| o.requested.is_none()).collect();
        let after = admitted(&all, &queue);
        prop_assert!(after.len() == before.len() || fits(&after, &total));
        for owner_index in 0..4 {
            let name = format!("o{owner_index}");
            let owner_is = |workspace: &&&TestWorkspace| workspace.owner.as_str() == name;
            let mine: Vec<&TestWorkspace> = after.iter().filter(owner_is).copied().collect();
            let had = before.iter().filter(owner_is).count();
            prop_assert!(mine.len() == had || fits(&mine, &owner), "owner {}", owner_index);
        }
    }

    /// Workspaces keep joining the queue, and admitted ones keep ending. A workspace that fits the
    /// quotas is admitted in the end.
    #[test]
    fn workspace_that_can_fit_is_admitted_in_the_end(
        cpu_wanted in 1_u64..6,
        arrivals in prop::collection::vec((0_u8..4, 1_u64..6), 60),
        total in 5_u64..9,
    ) {
        let quotas = cpu(Some(6), Some(total));
        let mut all: Vec<TestWorkspace> = (0..total).map(|n| workspace(n, "first", 1, Some(0))).collect();
        all.push(workspace(999, "patient", cpu_wanted.min(total), Some(1)));
        for (now, (owner_index, cpu)) in arrivals.into_iter().enumerate() {
            let queue = queued(&all, &quotas);
            for workspace in &mut all {
                if !queue.contains(&workspace.id.bits()) {
                    workspace.requested = None;
                }
            }
            if all.iter().any(|workspace| workspace.id.bits() == 999 && workspace.requested.is_none()) {
                return Ok(());
            }
            // The workspace that was admitted first ends.
            if let Some(oldest) = all.iter().position(|workspace| workspace.requested.is_none()) {
                all.remove(oldest);
            }
            let arrival = now as u64 + 2;
            all.push(workspace(1000 + arrival, &format!("o{owner_index}"), cpu, Some(arrival)));
        }
        prop_assert!(false, "the workspace is still queued: {:#?}", all);
    }
}

//! The process group that a child leads. It can be signalled while it has members, even after its
//! leader has ended.
//!
//! A group's id is its leader's process id. The kernel does not reuse that id while the group has
//! members, but may reuse it once the group is empty. So a group that was found empty is never
//! signalled again. If the id names a process although the leader was reaped, the group belongs to
//! another process. All groups without a leader are checked each time a child ends.
//!
//! One race remains: a process can reuse the id, create a group, add members and end, all before
//! any child of the agent ends.

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group, test_kill_process, test_kill_process_group},
};

use super::{ChildId, ChildTable, Children};

/// The process group that a child leads or has led. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    children: Children,
    id: Pid,
    child_id: ChildId,
}

impl ProcessGroup {
    pub(super) fn new(children: Children, id: Pid, child_id: ChildId) -> Self {
        Self { children, id, child_id }
    }

    /// Signals all members. Returns `false` if the group is empty, so a foreign group is never
    /// signalled.
    pub fn signal(&self, signal: Signal) -> bool {
        // No process is reaped under the lock, so the id cannot be reused in between.
        let mut table = self.children.lock();
        table.is_owned_by(self.id, self.child_id) && kill_process_group(self.id, signal).is_ok()
    }

    /// Returns whether the group has members. A leader that is not yet reaped counts.
    pub fn has_members(&self) -> bool {
        self.children.lock().is_owned_by(self.id, self.child_id)
    }
}

impl ChildTable {
    /// Returns whether the group with this id is still the group that this child led.
    fn is_owned_by(&mut self, id: Pid, child_id: ChildId) -> bool {
        if let Some(leader) = self.tracked.get(&id) {
            return leader.child_id == child_id;
        }
        if self.leaderless.get(&id) != Some(&child_id) {
            return false;
        }
        let is_ours = !exists(test_kill_process(id)) && has_members(id);
        if !is_ours {
            self.leaderless.remove(&id);
        }
        is_ours
    }

    pub(super) fn remove_empty_groups(&mut self) {
        self.leaderless.retain(|id, _| has_members(*id));
    }
}

/// Returns whether the group with this id has members.
pub(super) fn has_members(id: Pid) -> bool {
    exists(test_kill_process_group(id))
}

/// Returns whether the test found a process. EPERM also proves that the process exists.
fn exists(tested: Result<(), Errno>) -> bool {
    tested.is_ok() || tested == Err(Errno::PERM)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use rustix::process::kill_process;
    use tokio::sync::watch;

    use super::*;
    use crate::child::ExitStatus;

    #[test]
    fn reused_pid_is_not_taken_for_old_group() {
        let mut table = ChildTable::default();
        // A process in a group of its own stands for the process that the id names.
        let mut holder = std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let id = Pid::from_child(&holder);
        let insert = |table: &mut ChildTable| table.insert(id, watch::channel(None).0);
        let first = insert(&mut table);
        assert!(table.is_owned_by(id, first));
        table.reaped(id, ExitStatus::Code(0));
        assert!(!table.is_owned_by(id, first), "the id names a process although the leader was reaped");
        let second = insert(&mut table);
        assert!(
            table.is_owned_by(id, second) && !table.is_owned_by(id, first),
            "the id belongs to the second child"
        );
        table.reaped(id, ExitStatus::Code(0));
        let third = insert(&mut table);
        assert!(!table.is_owned_by(id, second), "the second group was empty when the id was reused");
        assert!(table.is_owned_by(id, third));
        kill_process(id, Signal::KILL).unwrap();
        holder.wait().unwrap();
        table.reaped(id, ExitStatus::Signal(9));
        assert!(!table.is_owned_by(id, third) && table.leaderless.is_empty(), "the group is empty");
    }
}

//! The process group a child leads: it can be signalled for as long as anybody next_child_id in it, also when its leader has ended.
//!
//! A group is known by its leader's process id, and the kernel gives that number to nobody else while the group has members.
//! It may do so once the group is empty; therefore a group that was found empty is never signalled again, and one whose number
//! names a process although its leader was reaped is another's. All groups without a leader are looked at whenever a child of
//! ours ends. What is left is a number that was given again to somebody who made a group, put others into it and ended, all
//! before any child of ours did.

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group, test_kill_process, test_kill_process_group},
};

use super::{ChildId, ChildTable, Children};

/// The group that one child leads or has led. Cheap to clone.
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

    /// Signals all in it; `false` if it is empty, so that another's group is never hit.
    pub fn signal(&self, signal: Signal) -> bool {
        // Under the lock nobody is reaped, so what is found cannot become another's meanwhile.
        let mut table = self.children.lock();
        table.is_owned_by(self.id, self.child_id) && kill_process_group(self.id, signal).is_ok()
    }

    /// Whether anybody is in it; a leader that nobody has reaped yet counts.
    pub fn has_members(&self) -> bool {
        self.children.lock().is_owned_by(self.id, self.child_id)
    }
}

impl ChildTable {
    /// Whether the group of this number is still the one of this child.
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

    pub(super) fn forget_empty_groups(&mut self) {
        self.leaderless.retain(|id, _| has_members(*id));
    }
}

/// Whether anybody is in the group of this number.
pub(super) fn has_members(id: Pid) -> bool {
    exists(test_kill_process_group(id))
}

/// One that may not be signalled is there all the same.
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
    fn a_number_that_was_given_again_is_nobody_elses_group() {
        let mut table = ChildTable::default();
        // Somebody who next_child_id in a group of their own stands for what the number names at the time.
        let mut holder = std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let id = Pid::from_child(&holder);
        let insert = |table: &mut ChildTable| table.insert(id, watch::channel(None).0);
        let first = insert(&mut table);
        assert!(table.is_owned_by(id, first));
        table.reaped(id, ExitStatus::Code(0));
        assert!(!table.is_owned_by(id, first), "the number names a process, and the leader was reaped");
        let second = insert(&mut table);
        assert!(table.is_owned_by(id, second) && !table.is_owned_by(id, first), "a child of ours has it now");
        table.reaped(id, ExitStatus::Code(0));
        let third = insert(&mut table);
        assert!(!table.is_owned_by(id, second), "its group was empty when the number was given to the third");
        assert!(table.is_owned_by(id, third));
        kill_process(id, Signal::KILL).unwrap();
        holder.wait().unwrap();
        table.reaped(id, ExitStatus::Signal(9));
        assert!(!table.is_owned_by(id, third) && table.leaderless.is_empty(), "nobody is left in it");
    }
}

//! The process group a child leads: it can be signalled for as long as anybody lives in it, also when its leader has ended.
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

use super::{Children, Life, Table};

/// The group that one child leads or has led. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Group {
    children: Children,
    id: Pid,
    life: Life,
}

impl Group {
    pub(super) fn new(children: Children, id: Pid, life: Life) -> Self {
        Self { children, id, life }
    }

    /// Signals all in it; `false` if it is empty, so that another's group is never hit.
    pub fn signal(&self, signal: Signal) -> bool {
        // Under the lock nobody is reaped, so what is found cannot become another's meanwhile.
        let mut table = self.children.lock();
        table.is_of(self.id, self.life) && kill_process_group(self.id, signal).is_ok()
    }

    /// Whether anybody is in it; a leader that nobody has reaped yet counts.
    pub fn is_inhabited(&self) -> bool {
        self.children.lock().is_of(self.id, self.life)
    }
}

impl Table {
    /// Whether the group of this number is still the one of this child.
    fn is_of(&mut self, id: Pid, life: Life) -> bool {
        if let Some(leader) = self.waited.get(&id) {
            return leader.life == life;
        }
        if self.leaderless.get(&id) != Some(&life) {
            return false;
        }
        let is_ours = !exists(test_kill_process(id)) && is_inhabited(id);
        if !is_ours {
            self.leaderless.remove(&id);
        }
        is_ours
    }

    pub(super) fn let_go_of_empty_groups(&mut self) {
        self.leaderless.retain(|id, _| is_inhabited(*id));
    }
}

/// Whether anybody is in the group of this number.
pub(super) fn is_inhabited(id: Pid) -> bool {
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
    use crate::child::Ended;

    #[test]
    fn a_number_that_was_given_again_is_nobody_elses_group() {
        let mut table = Table::default();
        // Somebody who lives in a group of their own stands for what the number names at the time.
        let mut holder = std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let id = Pid::from_child(&holder);
        let begin = |table: &mut Table| table.begin(id, watch::channel(None).0);
        let first = begin(&mut table);
        assert!(table.is_of(id, first));
        table.reaped(id, Ended::Code(0));
        assert!(!table.is_of(id, first), "the number names a process, and the leader was reaped");
        let second = begin(&mut table);
        assert!(table.is_of(id, second) && !table.is_of(id, first), "a child of ours has it now");
        table.reaped(id, Ended::Code(0));
        let third = begin(&mut table);
        assert!(!table.is_of(id, second), "its group was empty when the number was given to the third");
        assert!(table.is_of(id, third));
        kill_process(id, Signal::KILL).unwrap();
        holder.wait().unwrap();
        table.reaped(id, Ended::Signal(9));
        assert!(!table.is_of(id, third) && table.leaderless.is_empty(), "nobody is left in it");
    }
}

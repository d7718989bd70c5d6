//! One output of a process: its log, and how much more of the pipe may be read. Pure.

use crate::byte_log::ByteLog;

/// Who must not lose what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequiredOutput {
    /// The slowest connected watcher has taken everything before this.
    From(u64),
    /// Nobody watches now, but somebody may come back: all that is held.
    All,
    /// Nobody came: the newest bytes replace the oldest.
    None,
}

#[derive(Debug)]
pub(super) struct OutputLog {
    pub(super) log: ByteLog,
    /// The pipe has ended.
    pub(super) closed: bool,
}

impl OutputLog {
    pub(super) fn new(epoch: u64, max_bytes: usize) -> Self {
        Self { log: ByteLog::new(epoch, max_bytes), closed: false }
    }

    /// How many bytes may come without losing what is wanted.
    pub(super) fn capacity(&self, required: RequiredOutput) -> usize {
        let keep = match required {
            RequiredOutput::From(taken) => taken.max(self.log.oldest()),
            RequiredOutput::All => self.log.oldest(),
            RequiredOutput::None => self.log.next(),
        };
        let kept = usize::try_from(self.log.next().saturating_sub(keep)).unwrap_or(usize::MAX);
        self.log.max_bytes().saturating_sub(kept)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_log_waits_for_the_slowest_watcher_only() {
        let mut output = OutputLog::new(1, 10);
        output.log.push(b"0123456789");
        assert_eq!(output.capacity(RequiredOutput::From(0)), 0);
        assert_eq!(output.capacity(RequiredOutput::From(4)), 4);
        assert_eq!(output.capacity(RequiredOutput::All), 0);
        assert_eq!(output.capacity(RequiredOutput::None), 10);
    }

    proptest! {
        #[test]
        fn filling_the_room_never_loses_what_is_wanted(max in 1usize..300, pushes in prop::collection::vec((0usize..400, 0u64..400), 1..30)) {
            let mut output = OutputLog::new(1, max);
            let mut taken = 0;
            for (offered, read) in pushes {
                let capacity = output.capacity(RequiredOutput::From(taken));
                output.log.push(&vec![0; offered.min(capacity)]);
                prop_assert!(output.log.oldest() <= taken);
                taken = (taken + read).min(output.log.next());
            }
        }
    }
}

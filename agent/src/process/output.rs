//! One output of a process: its byte log, and how much of the pipe may be read now. Pure.

use crate::byte_log::ByteLog;

/// Output that must not be evicted from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequiredOutput {
    /// Output from this offset on, because the slowest connected watcher has everything before it.
    From(u64),
    /// All output in the log, because no watcher is connected but one may return.
    All,
    /// No output. New bytes replace the oldest, because no watcher read them in time.
    None,
}

#[derive(Debug)]
pub(super) struct OutputLog {
    pub(super) log: ByteLog,
    /// True once the pipe is no longer read.
    pub(super) closed: bool,
}

impl OutputLog {
    pub(super) fn new(epoch: u64, max_bytes: usize) -> Self {
        Self { log: ByteLog::new(epoch, max_bytes), closed: false }
    }

    /// Returns the number of bytes that can be added without evicting required output.
    pub(super) fn capacity(&self, required: RequiredOutput) -> usize {
        let start = match required {
            RequiredOutput::From(taken) => taken.max(self.log.oldest()),
            RequiredOutput::All => self.log.oldest(),
            RequiredOutput::None => self.log.next(),
        };
        let required_bytes = usize::try_from(self.log.next().saturating_sub(start)).unwrap_or(usize::MAX);
        self.log.max_bytes().saturating_sub(required_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn full_log_waits_for_slowest_watcher() {
        let mut output = OutputLog::new(1, 10);
        output.log.push(b"0123456789");
        assert_eq!(output.capacity(RequiredOutput::From(0)), 0);
        assert_eq!(output.capacity(RequiredOutput::From(4)), 4);
        assert_eq!(output.capacity(RequiredOutput::All), 0);
        assert_eq!(output.capacity(RequiredOutput::None), 10);
    }

    proptest! {
        #[test]
        fn filling_capacity_never_loses_required_output(
            max in 1usize..300,
            pushes in prop::collection::vec((0usize..400, 0u64..400), 1..30),
        ) {
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

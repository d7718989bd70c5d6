//! Averages the CPU time and bytes that the workspace's processes use over a rolling window.
//!
//! Pure: process snapshots, time and the terminals' bytes are arguments.
//!
//! - Time before the first sample counts as time without use. Three seconds of CPU time in a new
//!   workspace are therefore 5 % of a window of one minute.
//! - Bytes printed to terminals are subtracted, so that a job that only prints counts as presence
//!   and not as work. Bytes that pass through a pipe (`make | tee log`) count at every read and
//!   write, and only the write to the terminal is subtracted.
//! - A child of the agent that starts and ends between two samples contributes its CPU time but not
//!   its bytes.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::assessment::{ActivitySignal, ObservedSignal};
use crate::{
    claim::AgentPolicy,
    procfs::{ProcSnapshot, ProcessStat},
};

/// Samples retained, which span 64 windows at four samples per window. When full, the oldest is
/// dropped. If the rest does not span a window, the average is too low.
const MAX_SAMPLES: usize = 256;

/// Resource use of all processes of the workspace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessUsage {
    /// CPU use averaged over the window; 1.0 is one full core.
    pub cpu_cores: f64,
    /// Sum of the resident memory of all processes. Shared pages count once per process.
    pub memory_bytes: u64,
    /// Bytes read and written per second, averaged over the window.
    pub io_bytes_per_second: f64,
    pub processes: u32,
    pub busiest: Option<BusiestProcess>,
}

/// The process that used the most CPU time between the last two samples.
#[derive(Debug, Clone, PartialEq)]
pub struct BusiestProcess {
    pub name: String,
    pub pid: u32,
    /// CPU use between the last two samples; 1.0 is one full core.
    pub cores: f64,
}

/// Turns cumulative process counters into rates over a rolling window.
#[derive(Debug)]
pub struct CpuIoSampler {
    ticks_per_second: f64,
    page_bytes: u64,
    cpu: MonotonicTotal,
    io: MonotonicTotal,
    previous: HashMap<(u32, u64), ProcessCounters>,
    /// Bytes of ended processes whose parent is the agent or has ended too. The counters of no live
    /// process include them.
    retired_bytes: u64,
    samples: VecDeque<UsageSample>,
    usage: ProcessUsage,
}

#[derive(Debug, Clone, Copy)]
struct ProcessCounters {
    parent: u32,
    own_ticks: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct UsageSample {
    at: Instant,
    ticks: u64,
    bytes: u64,
}

/// Sum of cumulative counters, made monotonic. A process snapshot is not atomic, so a child that is
/// reaped meanwhile can be missing from one snapshot and included in the next. A single lower sum
/// is therefore ignored. After a second one, the total continues from there.
#[derive(Debug, Default)]
struct MonotonicTotal {
    grown: u64,
    level: Option<u64>,
    dipped: bool,
}

// === impl ProcessUsage ===

impl ProcessUsage {
    /// Converts CPU and IO use that reaches the policy's thresholds to signals. They count for one
    /// window after the last sample, which was taken at `at`.
    pub fn signals(&self, at: Instant, policy: &AgentPolicy) -> Vec<ObservedSignal> {
        let until = Some(at + policy.work_window);
        let observed = |signal, detail| ObservedSignal { signal, detail, last_seen: at, until };
        let mut signals = Vec::new();
        if self.cpu_cores >= policy.cpu_cores {
            let subject = match &self.busiest {
                // A process that causes at least 80 % of the CPU use is named alone.
                Some(b) if b.cores >= self.cpu_cores * 0.8 => format!("{} (pid {}) uses", b.name, b.pid),
                Some(b) => format!("{} (pid {}) and others use", b.name, b.pid),
                None => "processes use".to_owned(),
            };
            let detail = format!("{subject} {:.0} % of a core", self.cpu_cores * 100.0);
            signals.push(observed(ActivitySignal::Cpu, detail));
        }
        if self.io_bytes_per_second >= policy.io_bytes_per_second {
            let detail = format!("processes move {:.0} KiB/s", self.io_bytes_per_second / 1024.0);
            signals.push(observed(ActivitySignal::Io, detail));
        }
        signals
    }
}

// === impl CpuIoSampler ===

impl CpuIoSampler {
    /// Creates an empty sampler. `ticks_per_second` and `page_bytes` are the machine's units.
    pub fn new(ticks_per_second: u64, page_bytes: u64) -> Self {
        Self {
            ticks_per_second: ticks_per_second as f64,
            page_bytes,
            cpu: MonotonicTotal::default(),
            io: MonotonicTotal::default(),
            previous: HashMap::new(),
            retired_bytes: 0,
            samples: VecDeque::new(),
            usage: ProcessUsage::default(),
        }
    }

    /// Returns the usage as of the last sample.
    pub fn usage(&self) -> &ProcessUsage {
        &self.usage
    }

    /// Returns the time of the last sample.
    pub fn sampled_at(&self) -> Option<Instant> {
        self.samples.back().map(|p| p.at)
    }

    /// Adds a sample. `terminal_bytes` is the total printed to terminals since the agent started.
    pub fn add(&mut self, walk: &ProcSnapshot, terminal_bytes: u64, at: Instant, window: Duration) {
        let since = self.sampled_at();
        let now: HashMap<_, _> = walk.processes.iter().map(|p| (id(p), self.counters(p))).collect();
        let alive = |pid: u32| walk.processes.iter().any(|p| p.stat.pid == pid);
        self.retired_bytes += self
            .previous
            .iter()
            .filter(|(id, counters)| !now.contains_key(*id) && !alive(counters.parent))
            .map(|(_, counters)| counters.bytes)
            .sum::<u64>();
        let ticks: u64 = walk.processes.iter().map(|p| p.stat.own_ticks + p.stat.reaped_ticks).sum();
        let bytes: u64 = now.values().map(|counters| counters.bytes).sum();
        let ticks = self.cpu.advance(walk.reaped_ticks + ticks);
        let bytes = self.io.advance((self.retired_bytes + bytes).saturating_sub(terminal_bytes));
        let busiest = since.and_then(|since| self.busiest(walk, at.saturating_duration_since(since)));
        self.previous = now;
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(UsageSample { at, ticks, bytes });
        self.usage = ProcessUsage {
            cpu_cores: self.rate(window, |p| p.ticks) / self.ticks_per_second,
            memory_bytes: walk.processes.iter().map(|p| p.stat.resident_pages * self.page_bytes).sum(),
            io_bytes_per_second: self.rate(window, |p| p.bytes),
            processes: walk.processes.len() as u32,
            busiest,
        };
    }

    fn counters(&self, process: &ProcessStat) -> ProcessCounters {
        let before = self.previous.get(&id(process)).map_or(0, |counters| counters.bytes);
        // The agent may not read the bytes of a process that changed its user, so the last value is
        // used.
        let bytes = process.bytes.unwrap_or(before);
        ProcessCounters { parent: process.stat.parent, own_ticks: process.stat.own_ticks, bytes }
    }

    fn busiest(&self, walk: &ProcSnapshot, passed: Duration) -> Option<BusiestProcess> {
        let used = |p: &ProcessStat| {
            let before = self.previous.get(&id(p)).map_or(0, |counters| counters.own_ticks);
            p.stat.own_ticks.saturating_sub(before)
        };
        let process = walk.processes.iter().max_by_key(|p| used(p)).filter(|p| used(p) > 0)?;
        let seconds = passed.as_secs_f64();
        let cores = if seconds > 0.0 { used(process) as f64 / self.ticks_per_second / seconds } else { 0.0 };
        Some(BusiestProcess { name: process.stat.name.clone(), pid: process.stat.pid, cores })
    }

    /// Returns the growth per second of the counter `of` over the window that ends with the last
    /// sample.
    fn rate(&self, window: Duration, of: impl Fn(&UsageSample) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        let from =
            self.samples.iter().rev().find(|p| last.at.duration_since(p.at) >= window).unwrap_or(first);
        let passed = last.at.duration_since(from.at).max(window).as_secs_f64();
        if passed > 0.0 { of(last).saturating_sub(of(from)) as f64 / passed } else { 0.0 }
    }
}

/// Identifies a process, also if the kernel reuses its process id.
fn id(process: &ProcessStat) -> (u32, u64) {
    (process.stat.pid, process.stat.start_ticks)
}

// === impl MonotonicTotal ===

impl MonotonicTotal {
    fn advance(&mut self, level: u64) -> u64 {
        let before = *self.level.get_or_insert(level);
        if level >= before {
            self.grown += level - before;
            self.level = Some(level);
            self.dipped = false;
        } else if std::mem::replace(&mut self.dipped, true) {
            self.level = Some(level);
            self.dipped = false;
        }
        self.grown
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::procfs::ProcStat;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const AGENT: u32 = 1;

    fn process(pid: u32, parent: u32, own_ticks: u64, reaped_ticks: u64, bytes: u64) -> ProcessStat {
        let name = format!("p{pid}");
        let stat = ProcStat { pid, parent, name, own_ticks, reaped_ticks, ..ProcStat::default() };
        ProcessStat { stat, bytes: Some(bytes) }
    }

    fn walk(processes: Vec<ProcessStat>, reaped_ticks: u64) -> ProcSnapshot {
        ProcSnapshot { processes, reaped_ticks }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn cpu_is_averaged_over_window_and_process_named() {
        let (mut sampler, start) = (CpuIoSampler::new(100, 4096), Instant::now());
        for i in 0..=4u64 {
            let ticks = if i == 0 { 0 } else { 1500 * i };
            sampler.add(&walk(vec![process(7, AGENT, ticks, 0, 0)], 0), 0, after(start, 15 * i), MINUTE);
            assert!((sampler.usage().cpu_cores - 0.25 * i as f64).abs() < 0.01, "{:?}", sampler.usage());
        }
        let busiest = sampler.usage().busiest.clone().expect("busiest");
        assert_eq!((busiest.pid, busiest.name.as_str()), (7, "p7"));
        assert!((busiest.cores - 1.0).abs() < 0.01);
        for i in 5..=8 {
            sampler.add(&walk(vec![process(7, AGENT, 6000, 0, 0)], 0), 0, after(start, 15 * i), MINUTE);
        }
        assert!(sampler.usage().cpu_cores < 0.001, "usage after a minute of rest: {:?}", sampler.usage());
    }

    #[test]
    fn short_lived_children_between_samples_count() {
        let (mut sampler, start) = (CpuIoSampler::new(100, 4096), Instant::now());
        sampler.add(&walk(vec![process(7, AGENT, 0, 0, 0)], 0), 0, start, MINUTE);
        sampler.add(&walk(vec![process(7, AGENT, 10, 590, 0)], 0), 0, after(start, 15), MINUTE);
        assert!((sampler.usage().cpu_cores - 0.1).abs() < 0.001, "{:?}", sampler.usage());
        sampler.add(&walk(vec![], 600), 0, after(start, 30), MINUTE);
        assert!((sampler.usage().cpu_cores - 0.1).abs() < 0.001, "CPU of a reaped child counts once");
    }

    #[test]
    fn process_missing_from_one_sample_counts_once() {
        let (mut sampler, start) = (CpuIoSampler::new(100, 4096), Instant::now());
        let big = || process(7, AGENT, 1_000_000, 0, 1 << 40);
        sampler.add(&walk(vec![big()], 0), 0, start, MINUTE);
        sampler.add(&walk(vec![], 0), 0, after(start, 15), MINUTE);
        sampler.add(&walk(vec![], 1_000_000), 0, after(start, 30), MINUTE);
        assert!(sampler.usage().cpu_cores < 0.001, "{:?}", sampler.usage());
        assert!(sampler.usage().io_bytes_per_second < 1.0, "{:?}", sampler.usage());
    }

    #[test]
    fn terminal_output_is_not_work_but_copying_is() {
        let (mut sampler, start) = (CpuIoSampler::new(100, 4096), Instant::now());
        let mib = 1u64 << 20;
        sampler.add(&walk(vec![process(7, AGENT, 0, 0, 0)], 0), 0, start, MINUTE);
        sampler.add(&walk(vec![process(7, AGENT, 0, 0, 60 * mib)], 0), 60 * mib, after(start, 60), MINUTE);
        assert!(sampler.usage().io_bytes_per_second < 1.0, "{:?}", sampler.usage());
        sampler.add(&walk(vec![process(7, AGENT, 0, 0, 120 * mib)], 0), 60 * mib, after(start, 120), MINUTE);
        assert!((sampler.usage().io_bytes_per_second - mib as f64).abs() < 1.0, "{:?}", sampler.usage());
    }

    #[test]
    fn total_continues_after_permanent_drop() {
        let mut total = MonotonicTotal::default();
        let grown: Vec<_> = [100, 40, 40, 50].into_iter().map(|level| total.advance(level)).collect();
        assert_eq!(grown, [0, 0, 0, 10]);
    }

    proptest! {
        #[test]
        fn constant_counters_are_never_work(
            ticks in 0u64..1_000_000,
            bytes in 0u64..u64::MAX / 4,
            walks in 2u64..20,
        ) {
            let (mut sampler, start) = (CpuIoSampler::new(100, 4096), Instant::now());
            for i in 0..walks {
                let snapshot = walk(vec![process(7, AGENT, ticks, 0, bytes)], 0);
                sampler.add(&snapshot, 0, after(start, 15 * i), MINUTE);
            }
            prop_assert_eq!(sampler.usage().cpu_cores, 0.0);
            prop_assert_eq!(sampler.usage().io_bytes_per_second, 0.0);
        }
    }
}

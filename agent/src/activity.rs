//! Collects activity inputs, assesses them, and notifies watchers of changes.
//!
//! [`ActivityMonitor`] is the shared handle. Exactly one task runs [`ActivityMonitor::run`], which
//! samples the processes and notifies watchers. Independent of gRPC.

pub mod assessment;
pub mod calls;
pub mod cpu_io;
pub mod idle;
pub mod leases;
pub mod notices;

use std::{
    fmt, io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use self::{
    assessment::{ActivityAssessment, ActivityInputs, ActivityLevel, ActivitySignal, ObservedSignal},
    calls::ClientCalls,
    cpu_io::{CpuIoSampler, ProcessUsage},
    idle::{ClockReading, IdleCounter},
    leases::{KeepAwakeLease, LeaseError, LeaseTable},
    notices::{CommandFailure, PendingWarning, SleepNotice},
};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    claim::{AgentPolicy, ClaimReceiver},
    procfs::ProcSnapshot,
    util::lock,
};

/// Shortest timer of the monitor's task. Bounds the CPU use of the task under any policy.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Minimum number of process samples in one averaging window.
const SAMPLES_PER_WINDOW: u32 = 4;
/// Maximum distance of two heartbeats, in intervals, at which the time between them counts as idle
/// time. At a larger distance the agent may have been stopped. Jitter adds a tenth of an interval
/// at most.
const GAP_INTERVALS: u32 = 2;
/// Maximum time between two running marks. A gap in the marks shows that the agent was stopped
/// between two heartbeats, for example by SIGSTOP.
const MAX_RUNNING_MARK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum number of running marks within one idle timeout. Shortens the interval of the marks if
/// the idle timeout is below 5 s.
const MARKS_PER_IDLE_TIMEOUT: u32 = 5;
/// Intervals without a running mark that count as a gap. Each stop that lasts an idle timeout is
/// detected, but delays of a busy machine are tolerated.
const MISSED_MARKS_PER_GAP: u32 = 3;

/// Reads the current state of the terminals.
pub type PresenceProbe = Box<dyn Fn() -> TerminalPresence + Send + Sync>;

/// Published to watchers after each change of the activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityRevision {
    /// Increases with each change of the level, the evidence, the leases, the sleep warning or the
    /// failure of the workspace's command.
    pub revision: u64,
    pub urgent: UrgentActivity,
}

/// The part of the activity whose changes are reported to the control plane at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrgentActivity {
    pub level: ActivityLevel,
    /// Whether the workspace's own command fails.
    pub command_fails: bool,
}

/// Foreground commands and totals of all terminals.
#[derive(Debug, Clone, Default)]
pub struct TerminalPresence {
    /// Foreground commands as English text for display, such as `vim in terminal 'main'`.
    pub foreground: Vec<String>,
    /// Number of open terminals.
    pub terminals: u32,
    /// Bytes printed to terminals since the agent started.
    pub terminal_bytes: u64,
}

/// Collects and assesses the activity of the workspace. Clones share one state.
#[derive(Clone)]
pub struct ActivityMonitor(Arc<ActivityShared>);

struct ActivityShared {
    gate: Arc<AdmissionGate>,
    claims: ClaimReceiver,
    probe: PresenceProbe,
    /// Start of the work and presence caps until the first intent: the agent's start, or the first
    /// claim once it has arrived.
    cap_anchor: Mutex<CapAnchor>,
    leases: Mutex<LeaseTable>,
    calls: ClientCalls,
    pending_warning: Mutex<PendingWarning>,
    command_failure: Mutex<Option<Arc<CommandFailure>>>,
    sampler: Mutex<CpuIoSampler>,
    idle: Mutex<IdleCounter>,
    revision: watch::Sender<ActivityRevision>,
    wake: Notify,
}

#[derive(Debug, Clone, Copy)]
struct CapAnchor {
    at: Instant,
    claimed: bool,
}

impl ActivityMonitor {
    pub fn new(gate: Arc<AdmissionGate>, claims: ClaimReceiver, probe: PresenceProbe) -> Self {
        let ticks = rustix::param::clock_ticks_per_second();
        Self(Arc::new(ActivityShared {
            gate,
            claims,
            probe,
            cap_anchor: Mutex::new(CapAnchor { at: Instant::now(), claimed: false }),
            leases: Mutex::default(),
            calls: ClientCalls::default(),
            pending_warning: Mutex::default(),
            command_failure: Mutex::default(),
            sampler: Mutex::new(CpuIoSampler::new(ticks, rustix::param::page_size() as u64)),
            idle: Mutex::default(),
            revision: watch::Sender::new(ActivityRevision {
                revision: 0,
                urgent: UrgentActivity { level: ActivityLevel::Idle, command_fails: false },
            }),
            wake: Notify::new(),
        }))
    }

    /// Samples the processes and publishes changes forever. Fails if /proc cannot be read. Exactly
    /// one task runs this.
    pub async fn run(&self) -> io::Result<()> {
        let mut intents = self.0.gate.subscribe();
        let mut claims = self.0.claims.clone();
        let mut published: Option<ActivitySnapshot> = None;
        let mut next_sample = Instant::now();
        loop {
            if Instant::now() >= next_sample {
                self.sample().await?;
                let policy = self.policy();
                next_sample =
                    Instant::now() + policy.heartbeat_interval.min(policy.work_window / SAMPLES_PER_WINDOW);
            }
            let snapshot = self.snapshot();
            if published.as_ref().is_none_or(|published| !published.is_equivalent(&snapshot)) {
                let urgent = snapshot.urgent();
                self.0.revision.send_modify(|p| *p = ActivityRevision { revision: p.revision + 1, urgent });
            }
            let next_change = snapshot.assessment.next_change_in().unwrap_or(Duration::MAX);
            let pause = next_sample.saturating_duration_since(Instant::now()).min(next_change).max(MIN_PAUSE);
            published = Some(snapshot);
            tokio::select! {
                () = self.sleep_marking_running(pause) => {}
                () = self.0.wake.notified() => {}
                () = self.0.calls.changed() => {}
                Ok(()) = intents.changed() => {}
                // A claim changes the policy, and with it the sampling interval.
                Ok(()) = claims.changed() => next_sample = Instant::now(),
            }
            self.mark_running();
        }
    }

    /// Sleeps for `pause`, and sets running marks meanwhile.
    async fn sleep_marking_running(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(self.running_mark_interval())).await;
            self.mark_running();
        }
    }

    /// Assesses the activity now. Does not read /proc, but reuses the process counters of the last
    /// sample.
    pub fn snapshot(&self) -> ActivitySnapshot {
        let now = Instant::now();
        let policy = self.policy();
        let presence = (self.0.probe)();
        let leases = lock(&self.0.leases).held(now);
        let sampler = lock(&self.0.sampler);
        let (usage, sampled_at) = (sampler.usage().clone(), sampler.sampled_at());
        drop(sampler);
        let intents: Vec<_> = Intent::RECORDED
            .into_iter()
            .filter_map(|intent| Some((intent, self.0.gate.last_admitted(intent)?)))
            .collect();
        let last_intent = intents.iter().map(|(_, at)| *at).max();
        let (terminals, terminal_bytes) = (presence.terminals, presence.terminal_bytes);
        let mut observed: Vec<_> = leases.iter().map(KeepAwakeLease::signal).collect();
        observed.extend(sampled_at.into_iter().flat_map(|at| usage.signals(at, &policy)));
        observed.extend(presence.signals(now));
        observed.extend(self.0.calls.signals(last_intent, policy.call_cap, now));
        // Read after the calls under way, so that a call that ends in between is not missed.
        let last_use = last_intent.max(self.0.calls.last_ended());
        let signals = ActivityInputs { claimed: self.cap_anchor(now), intents, observed };
        let assessment = ActivityAssessment::assess(&signals, &policy, now);
        let mut idle = lock(&self.0.idle);
        idle.observe(assessment.in_use(), last_use);
        ActivitySnapshot {
            counted_idle: idle.counted(),
            idle_timeout: policy.idle_timeout,
            leases,
            warning: lock(&self.0.pending_warning).current(assessment.in_use(), last_use),
            command_failure: lock(&self.0.command_failure).clone(),
            usage,
            terminals,
            terminal_bytes,
            at: now,
            assessment,
        }
    }

    /// Returns the table in which the server records calls under way.
    pub fn calls(&self) -> &ClientCalls {
        &self.0.calls
    }

    pub fn subscribe(&self) -> watch::Receiver<ActivityRevision> {
        self.0.revision.subscribe()
    }

    /// Returns whether a client waits for a call that counts.
    pub fn is_called(&self) -> bool {
        let evidence = self.snapshot().assessment.evidence;
        evidence.iter().any(|evidence| evidence.signal == ActivitySignal::ClientCall && !evidence.capped)
    }

    /// Creates or renews the lease `name`. Waits while the admission gate holds requests.
    pub async fn keep_awake(
        &self,
        name: &str,
        reason: &str,
        duration: Duration,
    ) -> Result<KeepAwakeLease, LeaseError> {
        Attempt::retry_while_held(|| {
            let longest = self.policy().lease_cap;
            let mut leases = lock(&self.0.leases);
            // Admit under the lock of the leases. Once the gate holds requests, an assessment
            // therefore sees each lease that was admitted before.
            self.0.gate.try_admit(Intent::Lease, 0)?;
            let lease = leases.take(name, reason, duration, longest, Instant::now())?;
            drop(leases);
            self.0.wake.notify_one();
            Ok(lease)
        })
        .await
    }

    pub fn release_lease(&self, name: &str) -> Result<(), LeaseError> {
        lock(&self.0.leases).release(name, Instant::now())?;
        self.0.wake.notify_one();
        Ok(())
    }

    /// Sets the control plane's sleep warning; `None` withdraws it.
    pub fn warn(&self, warning: Option<SleepNotice>) {
        lock(&self.0.pending_warning).warn(warning, Instant::now());
        self.0.wake.notify_one();
    }

    /// Sets the failure of the workspace's command. `None` means that the command runs.
    pub fn set_command_failure(&self, failure: Option<Arc<CommandFailure>>) {
        *lock(&self.0.command_failure) = failure;
        self.0.wake.notify_one();
    }

    /// Assesses the activity for the heartbeat `sequence`, and records that this heartbeat is being
    /// sent.
    pub fn heartbeat(&self, sequence: u64) -> ActivitySnapshot {
        self.mark_running();
        let snapshot = self.snapshot();
        lock(&self.0.idle).heartbeat_sent(sequence, snapshot.assessment.in_use(), clocks());
        snapshot
    }

    /// Counts idle time up to the heartbeat `sequence`, which the control plane has acknowledged.
    pub fn heartbeat_acknowledged(&self, sequence: u64) {
        let longest = self.policy().heartbeat_interval * GAP_INTERVALS;
        // Assess first, because an intent since the heartbeat resets the counted time.
        self.snapshot();
        lock(&self.0.idle).acknowledged(sequence, longest);
    }

    /// Discards unacknowledged heartbeats after the connection to the control plane was lost.
    pub fn disconnected(&self) {
        lock(&self.0.idle).disconnected();
    }

    /// Sets a running mark. A gap between two marks shows that the agent was stopped meanwhile.
    fn mark_running(&self) {
        lock(&self.0.idle).mark_running(clocks(), self.running_mark_interval() * MISSED_MARKS_PER_GAP);
    }

    fn running_mark_interval(&self) -> Duration {
        (self.policy().idle_timeout / MARKS_PER_IDLE_TIMEOUT).clamp(MIN_PAUSE, MAX_RUNNING_MARK_INTERVAL)
    }

    async fn sample(&self) -> io::Result<()> {
        let processes = tokio::task::spawn_blocking(ProcSnapshot::take).await.map_err(io::Error::other)??;
        let bytes = (self.0.probe)().terminal_bytes;
        lock(&self.0.sampler).add(&processes, bytes, Instant::now(), self.policy().work_window);
        Ok(())
    }

    fn policy(&self) -> AgentPolicy {
        self.0.claims.borrow().as_ref().map(|claim| claim.policy.clone()).unwrap_or_default()
    }

    fn cap_anchor(&self, now: Instant) -> Instant {
        let claimed = self.0.claims.borrow().is_some();
        let mut since = lock(&self.0.cap_anchor);
        if claimed && !since.claimed {
            *since = CapAnchor { at: now, claimed };
        }
        since.at
    }
}

impl TerminalPresence {
    /// Converts the foreground commands to signals, which count while they are observed.
    fn signals(self, now: Instant) -> impl Iterator<Item = ObservedSignal> {
        let signal = ActivitySignal::ForegroundJob;
        self.foreground.into_iter().map(move |detail| ObservedSignal {
            signal,
            detail,
            last_seen: now,
            until: None,
        })
    }
}

impl fmt::Debug for ActivityMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivityMonitor")
            .field("revision", &*self.0.revision.borrow())
            .finish_non_exhaustive()
    }
}

fn clocks() -> ClockReading {
    let read = |id| {
        let time = clock_gettime(id);
        Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
    };
    ClockReading { monotonic: read(ClockId::Monotonic), boottime: read(ClockId::Boottime) }
}

#[derive(Debug, Clone)]
pub struct ActivitySnapshot {
    pub assessment: ActivityAssessment,
    /// Idle time observed between acknowledged heartbeats.
    pub counted_idle: Duration,
    /// Counted idle time after which the policy lets the workspace sleep.
    pub idle_timeout: Duration,
    /// Leases that had not expired, ordered by name.
    pub leases: Vec<KeepAwakeLease>,
    /// The control plane's pending sleep warning, if any.
    pub warning: Option<SleepNotice>,
    /// The last failure of the workspace's own command, until the command has run for a while.
    pub command_failure: Option<Arc<CommandFailure>>,
    pub usage: ProcessUsage,
    /// Number of open terminals.
    pub terminals: u32,
    /// Bytes printed to terminals since the agent started.
    pub terminal_bytes: u64,
    pub at: Instant,
}

impl ActivitySnapshot {
    /// Returns whether a watcher sees no difference between the snapshots. Compares the
    /// assessments, the leases, the warning and the failure of the workspace's command.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.leases == other.leases
            && self.warning == other.warning
            && self.command_failure == other.command_failure
            && self.assessment.is_equivalent(&other.assessment)
    }

    /// Returns the part whose changes are reported at once.
    pub fn urgent(&self) -> UrgentActivity {
        UrgentActivity { level: self.assessment.level, command_fails: self.command_failure.is_some() }
    }
}

//! The world of one workspace: its driver's memory, what really runs, and the faults that may befall either.
//!
//! It checks the laws at the moment an action is carried out; the driver's bookkeeping is `Observed`'s own.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    decide::{Action, decide, hurry},
    id::WorkspaceId,
    observed::{Observed, Processes},
    policy::Policy,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Epoch, Spec, Wanted},
};

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    ActionSucceeds,
    ActionFails,
    /// A start that left a process behind; anything else: nothing done.
    ActionFailsHalfway,
    AgentDies,
    AgentSaysHello,
    LinkBreaks,
    /// Seconds, witnessed by the driver if it lives.
    TimePasses(u64),
    /// Seconds: the wall clock alone.
    ClockJumps(i64),
    /// `after_the_action`: what was in flight happened, but nobody learned of it.
    ControlPlaneDies {
        after_the_action: bool,
    },
    ControlPlaneStarts,
    SomebodyWaits,
    SomebodyDeletes,
    Down,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) spec: Spec,
    /// Durable.
    pub(crate) status: Status,
    /// Durable: the record is gone.
    forgotten: bool,
    now: Timestamp,
    driver: Option<Memory>,
    agents: BTreeSet<Epoch>,
    orphans: bool,
    storage: bool,
    ever_started: BTreeSet<Epoch>,
}

#[derive(Debug)]
struct Memory {
    observed: Observed,
    in_flight: Option<Action>,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Timestamp(1_000_000_000);
        let mut world = Self {
            spec: spec(now),
            status: Status::new(now),
            forgotten: false,
            now,
            driver: Some(Memory { observed: Observed::of_new(), in_flight: None }),
            agents: BTreeSet::new(),
            orphans: false,
            storage: false,
            ever_started: BTreeSet::new(),
        };
        world.drive();
        world
    }

    pub(crate) fn anything_runs(&self) -> bool {
        self.orphans || !self.agents.is_empty()
    }

    pub(crate) fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::ActionSucceeds => self.perform(Ok(())),
            Fault::ActionFails => self.perform(Err("no")),
            Fault::ActionFailsHalfway => {
                if matches!(self.driver, Some(Memory { in_flight: Some(Action::Start(_)), .. })) {
                    self.orphans = true;
                }
                self.perform(Err("halfway"));
            }
            Fault::AgentDies => {
                if let Some(epoch) = self.agents.pop_last() {
                    self.orphans = true;
                    if let Some(memory) = &mut self.driver {
                        memory.observed.agent_ended(epoch, "killed by SIGKILL".into());
                    }
                }
            }
            Fault::AgentSaysHello => {
                if let (Some(memory), Some(epoch)) = (&mut self.driver, self.agents.last())
                    && memory.observed.processes.lives(*epoch)
                {
                    memory.observed.connected = Some(*epoch);
                    memory.observed.silence = Duration::ZERO;
                }
            }
            Fault::LinkBreaks => {
                if let Some(memory) = &mut self.driver {
                    memory.observed.connected = None;
                }
            }
            Fault::TimePasses(seconds) => {
                self.now = self.now.plus(Duration::from_secs(seconds));
                if let Some(Memory { observed, .. }) = &mut self.driver
                    && observed.connected.is_none()
                    && observed.processes.lives(self.status.epoch)
                {
                    observed.silence += Duration::from_secs(seconds);
                }
            }
            Fault::ClockJumps(seconds) => {
                self.now = Timestamp(self.now.0.saturating_add_signed(seconds * 1000))
            }
            Fault::ControlPlaneDies { after_the_action } => {
                if after_the_action {
                    self.perform_silently();
                }
                self.driver = None;
            }
            Fault::ControlPlaneStarts => self.start_control_plane(),
            Fault::SomebodyWaits => {
                if self.driver.is_some() {
                    self.status = hurry(&self.status, self.now);
                }
            }
            Fault::SomebodyDeletes => {
                if self.driver.is_some() {
                    self.spec.wanted = Wanted::Deleted;
                }
            }
            Fault::Down => {
                if let Some(memory) = &mut self.driver {
                    memory.observed.standby = true;
                }
            }
        }
        self.drive();
    }

    /// No more faults: the control plane is up and stays up.
    pub(crate) fn heal(&mut self) {
        if self.driver.as_ref().is_some_and(|memory| memory.observed.standby) {
            self.driver = None;
        }
        self.start_control_plane();
        self.drive();
    }

    /// Lets everything take its course; whether it arrived.
    pub(crate) fn settle(&mut self) -> bool {
        for _ in 0..200 {
            let arrived = match self.spec.wanted {
                Wanted::Deleted => self.forgotten && !self.storage && !self.anything_runs(),
                Wanted::Awake => {
                    self.status.phase == Phase::Awake && self.agents.contains(&self.status.epoch)
                }
            };
            if arrived {
                return true;
            }
            self.suffer(Fault::ActionSucceeds);
            self.suffer(Fault::AgentSaysHello);
            self.suffer(Fault::TimePasses(20));
        }
        false
    }

    fn start_control_plane(&mut self) {
        if self.driver.is_none() && !self.forgotten {
            let mut observed = Observed::default();
            observed.listed(self.agents.clone(), self.status.epoch);
            self.driver = Some(Memory { observed, in_flight: None });
        }
    }

    /// What the driver does after every event: decide, make it durable, give the order away.
    fn drive(&mut self) {
        let Some(memory) = &mut self.driver else { return };
        if self.forgotten {
            return;
        }
        let decision = decide(&self.spec, &self.status, &memory.observed, self.now);
        assert_eq!(
            decide(&self.spec, &decision.status, &memory.observed, self.now),
            decision,
            "deciding twice says the same"
        );
        self.status = decision.status;
        if let (None, Some(action)) = (memory.in_flight, decision.action) {
            memory.in_flight = Some(action);
            memory.observed.ordered(action);
        }
    }

    fn perform(&mut self, result: Result<(), &str>) {
        let Some(Memory { in_flight: Some(action), .. }) = self.driver else { return };
        if result.is_ok() {
            self.perform_silently();
        }
        if let Some(memory) = &mut self.driver {
            memory.in_flight = None;
            memory.observed.done(action, result.map_err(str::to_owned), self.now);
        }
    }

    fn perform_silently(&mut self) {
        let Some(Memory { in_flight: Some(action), .. }) = self.driver else { return };
        match action {
            Action::Start(epoch) => {
                assert!(!self.anything_runs(), "a start is ordered only when nothing runs: {self:#?}");
                assert!(self.ever_started.insert(epoch), "no epoch is started twice: {self:#?}");
                assert!(self.ever_started.last() == Some(&epoch), "epochs grow: {self:#?}");
                self.agents.insert(epoch);
                self.storage = true;
            }
            Action::Stop => {
                self.agents.clear();
                self.orphans = false;
            }
            Action::Remove => {
                assert!(!self.anything_runs(), "storage goes only when nothing runs: {self:#?}");
                assert_eq!(self.spec.wanted, Wanted::Deleted, "storage goes only when somebody said so");
                self.storage = false;
            }
            Action::Forget => {
                assert!(!self.storage && !self.anything_runs(), "a record goes last: {self:#?}");
                self.forgotten = true;
            }
        }
        if let Some(Memory { observed: Observed { processes: Processes::Unseen, .. }, .. }) = self.driver {
            panic!("nothing is ordered while nobody knows what runs: {self:#?}");
        }
    }
}

pub(crate) fn spec(now: Timestamp) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        wanted: Wanted::Awake,
        created: now,
        request_id: String::new(),
    }
}

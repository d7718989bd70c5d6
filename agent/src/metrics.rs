//! Metrics of the agent, which it serves at `/metrics` in the OpenMetrics text format.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};

/// Counters that change as events happen, and gauges that are set at each scrape. Clones share one
/// registry.
#[derive(Debug, Clone)]
pub struct AgentMetrics(Arc<MetricsInner>);

#[derive(Debug)]
struct MetricsInner {
    registry: Registry,
    restarts: Family<TaskLabel, Counter>,
    heartbeats: Counter,
    heartbeats_acknowledged: Counter,
    /// Connections to the control plane that broke or could not be established.
    control_connection_failures: Counter,
    connections: Gauge,
    /// Connections closed because too many were open, or too many without a valid token.
    connections_rejected: Counter,
    gauges: Gauges,
}

/// Gauges, and counters of other modules, that [`AgentMetrics::set_gauges`] sets at each scrape.
#[derive(Debug, Default)]
struct Gauges {
    terminals: Gauge,
    processes: Gauge,
    activity_level: Gauge,
    counted_idle: Gauge,
    cpu: Gauge<f64, AtomicU64>,
    memory: Gauge,
    terminal_output: Counter,
    viewers: Gauge,
    client_processes: Gauge,
    terminal_panics: Counter,
    leases: Gauge,
    claimed: Gauge,
}

/// Values of the gauges at one scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct MetricsReading {
    /// Terminals whose program runs.
    pub terminals: u32,
    /// Number of processes in the workspace.
    pub processes: u32,
    /// 0 idle, 1 busy, 2 active.
    pub activity_level: u8,
    pub counted_idle_seconds: u64,
    /// CPU use over the policy's window; 1.0 is one full core.
    pub cpu_cores: f64,
    /// Sum of the resident memory of all processes.
    pub memory_bytes: u64,
    /// Bytes printed to terminals since the agent started.
    pub terminal_bytes: u64,
    /// Number of viewers of all terminals.
    pub viewers: u32,
    /// Running processes that clients started.
    pub client_processes: u32,
    /// Panics in a terminal's task or screen since the agent started.
    pub terminal_panics: u64,
    /// Number of keep-awake leases.
    pub leases: u32,
    /// Whether the agent has a claim.
    pub claimed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
}

impl AgentMetrics {
    pub fn new() -> Self {
        let mut all = Registry::with_prefix("podling_agent");
        let registry = &mut all;
        let inner = MetricsInner {
            restarts: metric(registry, "task_restarts", "Restarts of the agent's own tasks after a failure"),
            heartbeats: metric(registry, "heartbeats", "Heartbeats sent"),
            heartbeats_acknowledged: metric(registry, "heartbeats_acknowledged", "Heartbeats acknowledged"),
            control_connection_failures: metric(
                registry,
                "control_connection_failures",
                "Connections to the control plane that broke or could not be established",
            ),
            connections: metric(registry, "connections", "Open connections"),
            connections_rejected: metric(
                registry,
                "connections_rejected",
                "Connections closed because too many were open, or too many without a valid token",
            ),
            gauges: Gauges {
                terminals: metric(registry, "terminals", "Open terminals"),
                processes: metric(registry, "processes", "Processes in the workspace"),
                activity_level: metric(registry, "activity_level", "0 idle, 1 busy, 2 active"),
                counted_idle: metric_in(
                    registry,
                    Unit::Seconds,
                    "counted_idle",
                    "Idle time between acknowledged heartbeats",
                ),
                cpu: metric(registry, "cpu_cores", "CPU use in cores, averaged over the policy's window"),
                memory: metric_in(
                    registry,
                    Unit::Bytes,
                    "memory",
                    "Resident memory of all processes of the workspace",
                ),
                terminal_output: metric_in(
                    registry,
                    Unit::Bytes,
                    "terminal_output",
                    "Output of all terminals since the agent started",
                ),
                viewers: metric(registry, "viewers", "Viewers of terminals"),
                client_processes: metric(
                    registry,
                    "client_processes",
                    "Running processes started by clients",
                ),
                terminal_panics: metric(registry, "terminal_panics", "Panics in terminal tasks and screens"),
                leases: metric(registry, "leases", "Keep-awake leases"),
                claimed: metric(registry, "claimed", "1 if the agent is claimed for a workspace, else 0"),
            },
            registry: Registry::default(),
        };
        Self(Arc::new(MetricsInner { registry: all, ..inner }))
    }

    /// Counts a restart of one of the agent's own tasks.
    pub fn task_restarted(&self, task: &'static str) {
        self.0.restarts.get_or_create(&TaskLabel { task }).inc();
    }

    pub fn heartbeat_sent(&self) {
        self.0.heartbeats.inc();
    }

    pub fn heartbeat_acknowledged(&self) {
        self.0.heartbeats_acknowledged.inc();
    }

    pub fn control_connection_failed(&self) {
        self.0.control_connection_failures.inc();
    }

    /// Returns the gauge of open connections.
    pub fn connections(&self) -> &Gauge {
        &self.0.connections
    }

    /// Counts a connection that was closed because of a limit.
    pub fn connection_rejected(&self) {
        self.0.connections_rejected.inc();
    }

    pub fn set_gauges(&self, reading: MetricsReading) {
        let gauges = &self.0.gauges;
        gauges.terminals.set(reading.terminals.into());
        gauges.processes.set(reading.processes.into());
        gauges.activity_level.set(reading.activity_level.into());
        gauges.counted_idle.set(whole(reading.counted_idle_seconds));
        gauges.cpu.set(reading.cpu_cores);
        gauges.memory.set(whole(reading.memory_bytes));
        gauges.terminal_output.inner().store(reading.terminal_bytes, Ordering::Relaxed);
        gauges.viewers.set(reading.viewers.into());
        gauges.client_processes.set(reading.client_processes.into());
        gauges.terminal_panics.inner().store(reading.terminal_panics, Ordering::Relaxed);
        gauges.leases.set(reading.leases.into());
        gauges.claimed.set(reading.claimed.into());
    }

    /// Formats all metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = encode(&mut text, &self.0.registry);
        text
    }
}

impl Default for AgentMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Creates and registers a metric.
fn metric<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Creates and registers a metric with a unit.
fn metric_in<M: Metric + Clone + Default>(registry: &mut Registry, unit: Unit, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_other_modules_are_counters() {
        let metrics = AgentMetrics::new();
        metrics.set_gauges(MetricsReading {
            terminal_bytes: 7,
            terminal_panics: 2,
            ..MetricsReading::default()
        });
        let text = metrics.encode();
        for line in [
            "# TYPE podling_agent_terminal_output_bytes counter",
            "podling_agent_terminal_output_bytes_total 7",
            "# TYPE podling_agent_terminal_panics counter",
            "podling_agent_terminal_panics_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}

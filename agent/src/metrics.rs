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

/// Gauges, and counters of other modules, that are set at each scrape.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Terminals whose program runs.
    pub terminals: Gauge,
    /// Number of processes in the workspace.
    pub processes: Gauge,
    /// 0 idle, 1 busy, 2 active.
    pub activity_level: Gauge,
    pub counted_idle: Gauge,
    /// CPU use over the policy's window; 1.0 is one full core.
    pub cpu: Gauge<f64, AtomicU64>,
    /// Sum of the resident memory of all processes.
    pub memory: Gauge,
    /// Bytes printed to terminals since the agent started.
    pub terminal_output: Counter,
    /// Number of viewers of all terminals.
    pub viewers: Gauge,
    /// Running processes that clients started.
    pub client_processes: Gauge,
    /// Panics in a terminal's task or screen since the agent started.
    pub terminal_panics: Counter,
    /// Number of keep-awake leases.
    pub leases: Gauge,
    /// 1 if the agent has a claim, else 0.
    pub claimed: Gauge,
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

    pub fn gauges(&self) -> &Gauges {
        &self.0.gauges
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

/// Sets a counter that another module counts.
pub(crate) fn set_counter(counter: &Counter, total: u64) {
    counter.inner().store(total, Ordering::Relaxed);
}

/// Converts to the type of a gauge. Larger numbers are clamped.
pub(crate) fn whole(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_other_modules_are_counters() {
        let metrics = AgentMetrics::new();
        set_counter(&metrics.gauges().terminal_output, 7);
        set_counter(&metrics.gauges().terminal_panics, 2);
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

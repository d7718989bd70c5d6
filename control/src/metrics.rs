//! The control plane's Prometheus metrics. docs/api.md lists them.

use std::{fmt, sync::atomic::AtomicU64};

use http::{HeaderMap, response};
use podling_core::workspace::AgentConnection;
use podling_proto::{
    error::{self, WireError},
    error_response::WireProtocol,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use tonic::Code;

use crate::snapshot::{SnapshotReceiver, WorkspaceView};

pub struct ControlMetrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Calls held until their workspace is awake.
    pub held: Gauge,
    /// Open connections at the public address.
    pub connections: Gauge,
    /// Open connections of agents.
    pub agent_connections: Gauge,
    /// Heartbeats that the driver has acknowledged.
    pub heartbeats: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// "gateway" for forwarded requests, "control" for the control plane's own.
    surface: &'static str,
    /// The name of a gRPC code, or an HTTP status.
    code: String,
}

/// The outcome of one exchange. Dropping it counts a request with that outcome, or with `Cancelled`
/// if no outcome was set.
#[derive(Debug)]
pub struct ExchangeOutcome {
    requests: Family<RequestLabels, Counter>,
    surface: &'static str,
    code: Option<String>,
}

// The registry contains the snapshots, with environments and credentials.
impl fmt::Debug for ControlMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlMetrics").finish_non_exhaustive()
    }
}

impl ControlMetrics {
    /// Creates all metrics with the value 0. Workspaces are counted in `snapshots` at each scrape.
    /// `queue` returns the number of events that wait for the driver.
    pub fn new(snapshots: SnapshotReceiver, queue: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        let mut registry = Registry::with_prefix("podling");
        let requests = Family::<RequestLabels, Counter>::default();
        let (held, connections, agent_connections) = (Gauge::default(), Gauge::default(), Gauge::default());
        let heartbeats = Counter::<u64, AtomicU64>::default();
        registry.register("requests", "Completed requests, by gRPC code or HTTP status", requests.clone());
        registry.register("held_requests", "Calls held until their workspace is awake", held.clone());
        registry.register("connections", "Open connections at the public address", connections.clone());
        registry.register("agent_connections", "Open connections of agents", agent_connections.clone());
        registry.register("heartbeats", "Acknowledged heartbeats", heartbeats.clone());
        registry.register_collector(Box::new(WorkspaceCollector(snapshots)));
        registry.register_collector(Box::new(DriverQueueCollector(queue)));
        Self { registry, requests, held, connections, agent_connections, heartbeats }
    }

    /// Renders all metrics in the Prometheus text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _written = text::encode(&mut out, &self.registry);
        out
    }

    /// Counts a request that was answered with `error`.
    pub fn count_error(&self, surface: &'static str, error: &WireError) {
        let code = code_name(error::code(error.reason()));
        self.requests.get_or_create(&RequestLabels { surface, code }).inc();
    }

    /// Returns the outcome of an exchange whose response has these headers. The trailers of a gRPC
    /// response complete it later.
    pub fn exchange(&self, surface: &'static str, parts: &response::Parts) -> ExchangeOutcome {
        ExchangeOutcome {
            requests: self.requests.clone(),
            surface,
            code: grpc_code(&parts.headers).or_else(|| http_status_code(parts)),
        }
    }
}

// === impl ExchangeOutcome ===

impl ExchangeOutcome {
    /// Takes the result from the response's trailers.
    pub(crate) fn set_trailers(&mut self, trailers: &HeaderMap) {
        self.code = grpc_code(trailers).or(self.code.take());
    }

    /// Records that the exchange ended early with `error`.
    pub(crate) fn set_error(&mut self, error: &WireError) {
        self.code = Some(code_name(error::code(error.reason())));
    }
}

impl Drop for ExchangeOutcome {
    fn drop(&mut self) {
        let code = self.code.take().unwrap_or_else(|| code_name(Code::Cancelled));
        self.requests.get_or_create(&RequestLabels { surface: self.surface, code }).inc();
    }
}

/// Returns the HTTP status of a response. Returns `None` for gRPC, whose status follows in
/// trailers.
fn http_status_code(parts: &response::Parts) -> Option<String> {
    (WireProtocol::of(&parts.headers) != WireProtocol::Grpc).then(|| parts.status.as_str().to_owned())
}

/// Returns the name of the gRPC status in these headers. Other numbers than those of gRPC become
/// `Unknown`, so that an agent cannot add labels.
fn grpc_code(headers: &HeaderMap) -> Option<String> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse::<i32>().ok()?;
    Some(code_name(Code::from_i32(code)))
}

fn code_name(code: Code) -> String {
    format!("{code:?}")
}

/// Counts workspaces by state, and those with an unknown connection.
#[derive(Debug)]
struct WorkspaceCollector(SnapshotReceiver);

impl Collector for WorkspaceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.borrow().clone();
        let count = |is: &dyn Fn(&WorkspaceView) -> bool| {
            i64::try_from(snapshot.workspaces.values().filter(|w| is(w)).count()).unwrap_or(i64::MAX)
        };
        let mut states =
            encoder.encode_descriptor("workspaces", "Workspaces, by state", None, MetricType::Gauge)?;
        for (state, name) in crate::snapshot::STATES {
            let gauge = ConstGauge::new(count(&|w| w.state == *state));
            gauge.encode(states.encode_family(&[("state", *name)])?)?;
        }
        let unknown =
            ConstGauge::new(count(&|w| w.agent.is_some() && w.connection == AgentConnection::Unknown));
        let help = "Workspaces whose connection to the agent is unknown";
        unknown.encode(encoder.encode_descriptor(
            "agent_connections_unknown",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

/// Counts events that wait for the driver.
struct DriverQueueCollector<F>(F);

impl<F: Fn() -> usize + Send + Sync + 'static> Collector for DriverQueueCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let waiting = ConstGauge::new(i64::try_from((self.0)()).unwrap_or(i64::MAX));
        let help = "Events that wait for the driver";
        waiting.encode(encoder.encode_descriptor("driver_queue", help, None, MetricType::Gauge)?)
    }
}

impl<F> fmt::Debug for DriverQueueCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DriverQueueCollector")
    }
}

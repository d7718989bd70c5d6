//! What the control plane counts, for Prometheus. Must not know who reads it.

use std::{fmt, sync::atomic::AtomicU64};

use http::{HeaderMap, response};
use podling_core::workspace::AgentConnection;
use podling_proto::error::{self, WireError};
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

use crate::snapshot::{Snapshots, WorkspaceView};

/// Everything that is counted.
pub struct ControlMetrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Calls that wait for a workspace.
    pub held: Gauge,
    /// Public connections.
    pub connections: Gauge,
    /// Connections of agents.
    pub agent_connections: Gauge,
    /// Heartbeats that were taken.
    pub beats: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// "gateway" or "control".
    surface: &'static str,
    /// Name of a gRPC code, or an HTTP status.
    code: String,
}

/// How one exchange ends; counted once it is known, and if nothing else is said, when the exchange is given up.
#[derive(Debug)]
pub struct ExchangeOutcome {
    requests: Family<RequestLabels, Counter>,
    surface: &'static str,
    code: Option<String>,
}

impl ControlMetrics {
    /// Counters at nought. WorkspaceCollector are counted in the snapshots whenever somebody reads; `queue` says how many events wait
    /// for the driver.
    pub fn new(snapshots: Snapshots, queue: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        let mut registry = Registry::with_prefix("podling");
        let requests = Family::<RequestLabels, Counter>::default();
        let (held, connections, agent_connections) = (Gauge::default(), Gauge::default(), Gauge::default());
        let beats = Counter::<u64, AtomicU64>::default();
        registry.register(
            "requests",
            "Requests that were answered, by gRPC code or HTTP status",
            requests.clone(),
        );
        registry.register("held_requests", "Calls that wait for a workspace to be awake", held.clone());
        registry.register("connections", "Open connections at the public address", connections.clone());
        registry.register("agent_connections", "Open connections of agents", agent_connections.clone());
        registry.register("beats", "Heartbeats that were taken", beats.clone());
        registry.register_collector(Box::new(WorkspaceCollector(snapshots)));
        registry.register_collector(Box::new(DriverQueueCollector(queue)));
        Self { registry, requests, held, connections, agent_connections, beats }
    }

    /// All of it in the text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _written = text::encode(&mut out, &self.registry);
        out
    }

    /// An error of our own was the answer.
    pub fn count_error(&self, surface: &'static str, error: &WireError) {
        self.count(surface, code_name(error::code(error.reason())));
    }

    /// An exchange whose answer began like this.
    pub fn exchange(&self, surface: &'static str, parts: &response::Parts) -> ExchangeOutcome {
        ExchangeOutcome {
            requests: self.requests.clone(),
            surface,
            code: code_of(parts).or_else(|| plain(parts)),
        }
    }

    fn count(&self, surface: &'static str, code: String) {
        self.requests.get_or_create(&RequestLabels { surface, code }).inc();
    }
}

impl fmt::Debug for ControlMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlMetrics").finish_non_exhaustive()
    }
}

// === impl ExchangeOutcome ===

impl ExchangeOutcome {
    /// It ended with these trailers.
    pub(crate) fn set_trailers(&mut self, trailers: &HeaderMap) {
        self.code = grpc_code(trailers).or(self.code.take());
    }

    /// It was broken off.
    pub(crate) fn set_error(&mut self, why: &WireError) {
        self.code = Some(code_name(error::code(why.reason())));
    }
}

impl Drop for ExchangeOutcome {
    fn drop(&mut self) {
        let code = self.code.take().unwrap_or_else(|| code_name(Code::Cancelled));
        self.requests.get_or_create(&RequestLabels { surface: self.surface, code }).inc();
    }
}

/// What an answer without gRPC trailers to come says.
fn plain(parts: &response::Parts) -> Option<String> {
    let content_type = parts.headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    let trailers_come =
        content_type.starts_with(b"application/grpc") && !content_type.starts_with(b"application/grpc-web");
    (!trailers_come).then(|| parts.status.as_str().to_owned())
}

fn code_of(parts: &response::Parts) -> Option<String> {
    grpc_code(&parts.headers)
}

/// An agent may say anything: only codes that exist become a label.
fn grpc_code(headers: &HeaderMap) -> Option<String> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse::<i32>().ok()?;
    Some(code_name(Code::from_i32(code)))
}

fn code_name(code: Code) -> String {
    format!("{code:?}")
}

/// WorkspaceCollector by state and link.
#[derive(Debug)]
struct WorkspaceCollector(Snapshots);

impl Collector for WorkspaceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.borrow().clone();
        let count = |is: &dyn Fn(&WorkspaceView) -> bool| {
            i64::try_from(snapshot.workspaces.values().filter(|w| is(w)).count()).unwrap_or(i64::MAX)
        };
        let mut states = encoder.encode_descriptor(
            "workspaces",
            "WorkspaceCollector, by state",
            None,
            MetricType::Gauge,
        )?;
        for (state, name) in crate::snapshot::STATES {
            let gauge = ConstGauge::new(count(&|w| w.state == *state));
            gauge.encode(states.encode_family(&[("state", *name)])?)?;
        }
        let unknown = ConstGauge::new(count(&|w| w.agent.is_some() && w.link == Link::Unknown));
        let help = "WorkspaceCollector whose agent is silent";
        unknown.encode(encoder.encode_descriptor("links_unknown", help, None, MetricType::Gauge)?)
    }
}

/// What waits for the driver.
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

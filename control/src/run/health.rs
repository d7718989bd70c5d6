//! Liveness and readiness of this replica, for the kubelet. The public address cannot tell them: a
//! standby replica forwards its connections, so the leader would answer for it.

use std::{future::Future, net::SocketAddr};

use axum::{Router, routing::get};
use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use super::{ControlPlaneError, platform::bind};
use crate::server::{ServerListener, ShutdownSignals};

/// A replica's listener for probes.
#[derive(Debug)]
pub(super) struct HealthListener {
    listener: ServerListener,
    stopping: CancellationToken,
}

impl HealthListener {
    /// Binds the listener. The replica is ready until `stopping` is cancelled: a standby replica
    /// holds connections while there is no leader, so it can take new ones at any time.
    pub(super) async fn bind(
        address: SocketAddr,
        stopping: CancellationToken,
    ) -> Result<Self, ControlPlaneError> {
        let bound = bind(address).await?;
        let listener = ServerListener::public(bound, None, ShutdownSignals::default(), Gauge::default());
        Ok(Self { listener, stopping })
    }

    /// Answers probes until `run` has ended.
    pub(super) async fn serve_while<T>(self, run: impl Future<Output = T>) -> T {
        let stopping = self.stopping;
        let readiness = move || {
            let stopping = stopping.is_cancelled();
            async move {
                match stopping {
                    false => (StatusCode::OK, "ready\n"),
                    true => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
                }
            }
        };
        let router = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(readiness));
        let serving = async {
            self.listener.serve(router).await;
            std::future::pending().await
        };
        tokio::select! {
            done = run => done,
            never = serving => never,
        }
    }
}

//! The control plane's public server without a driver. The tests publish the snapshots themselves.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podling_control::{
    api::tokens::TokensService,
    gateway::Gateway,
    identity::{ControlIdentity, MissingSecrets, TokenGrant, root_token_file},
    metrics::ControlMetrics,
    principal::Principal,
    server::{
        GrpcServices, MAX_MESSAGE_BYTES, PublicRouter, ServerListener, ShutdownSignals, TcpAcceptor, cors,
    },
    snapshot::{AgentView, Snapshot, WorkspaceView},
};
use podling_core::{
    id::{Owner, WorkspaceId},
    workspace::{AgentConnection, Spec, State},
};
use podling_proto::control::v1::tokens_server::TokensServer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tower::Layer;

use crate::{demo, fake_agent::FakeAgent, samples};

/// Upper bound of each wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// The server, with the root token and the ends of the channels that a driver would hold.
pub(crate) struct GatewayHarness {
    pub(crate) identity: Arc<ControlIdentity>,
    pub(crate) root: Principal,
    pub(crate) root_token: String,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) wakes: mpsc::Receiver<WorkspaceId>,
    pub(crate) metrics: Arc<ControlMetrics>,
    pub(crate) stopping: ShutdownSignals,
    pub(crate) address: String,
    pub(crate) serving: JoinHandle<()>,
    data: tempfile::TempDir,
}

impl Drop for GatewayHarness {
    fn drop(&mut self) {
        self.stopping.draining.cancel();
        self.stopping.streams.cancel();
    }
}

impl GatewayHarness {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().expect("directory");
        let identity =
            Arc::new(ControlIdentity::open(data.path(), MissingSecrets::Create).expect("identity"));
        let root_token =
            std::fs::read_to_string(root_token_file(data.path())).expect("token").trim().to_owned();
        let (snapshots, snapshot_receiver) = watch::channel(Arc::new(Snapshot::default()));
        let (wake, wakes) = mpsc::channel(16);
        let metrics = Arc::new(ControlMetrics::new(snapshot_receiver.clone(), || 0));
        let stopping = ShutdownSignals::default();
        let gateway = Arc::new(Gateway::new(
            identity.clone(),
            snapshot_receiver.clone(),
            wake,
            metrics.clone(),
            stopping.streams.clone(),
        ));
        let tokens = TokensServer::new(TokensService::new(identity.clone(), snapshot_receiver));
        let grpc = GrpcServices::default().unary(tokens, MAX_MESSAGE_BYTES);
        let router = PublicRouter::new(
            identity.clone(),
            gateway,
            metrics.clone(),
            grpc,
            axum::Router::new(),
            stopping.draining.clone(),
        );
        let router = cors(&["https://console.example".to_owned()]).layer(router);
        let tcp_listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let listener = ServerListener::public(
            Arc::new(TcpAcceptor::new(tcp_listener)),
            None,
            stopping.clone(),
            metrics.connections.clone(),
        );
        let address = listener.url().expect("url").replace("http://", "");
        let serving = TaskTracker::new().spawn(listener.serve(router));
        let root = identity.authenticate(Some(&root_token)).expect("root");
        Self { identity, root, root_token, snapshots, wakes, metrics, stopping, address, serving, data }
    }

    /// Starts the server with the workspace `demo` awake, and its agent.
    pub(crate) async fn with_agent() -> (Self, FakeAgent) {
        let (harness, agent) = (Self::start().await, FakeAgent::start("one", 200).await);
        harness.set_workspace(&demo(), "ada", State::Awake, Some(&agent.view));
        (harness, agent)
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Publishes a snapshot with the workspace in this state.
    pub(crate) fn set_workspace(
        &self,
        id: &WorkspaceId,
        owner: &str,
        state: State,
        agent: Option<&AgentView>,
    ) {
        self.snapshots.send_modify(|snapshot| {
            let mut workspaces = snapshot.workspaces.clone();
            let version = workspaces.get(id).map_or(1, |view| view.version + 1);
            workspaces.insert(id.clone(), Arc::new(view(id, owner, state, agent, version)));
            *snapshot = Arc::new(Snapshot {
                generation: snapshot.generation + 1,
                workspaces,
                observed_time: Duration::ZERO,
                down: None,
            });
        });
    }

    pub(crate) fn token(&self, verbs: &str, owner: &str) -> String {
        let grant = TokenGrant {
            verbs: verbs.parse().expect("verbs"),
            workspaces: None,
            owner: Some(owner.parse::<Owner>().expect("owner")),
            ttl: Duration::from_secs(60),
            agent: None,
        };
        self.identity.mint(&self.root, grant).expect("token").token
    }

    pub(crate) async fn h2(&self) -> http2::SendRequest<Body> {
        let tcp = TcpStream::connect(&self.address).await.expect("connect");
        tcp.set_nodelay(true).expect("nodelay");
        let (sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(tcp)).await.expect("h2");
        TaskTracker::new().spawn(connection);
        sender
    }

    pub(crate) async fn h1(&self) -> http1::SendRequest<Body> {
        let tcp = TcpStream::connect(&self.address).await.expect("connect");
        let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await.expect("h1");
        TaskTracker::new().spawn(connection);
        sender
    }

    /// Sends a request over HTTP/1.1 on a new connection, and waits for the head of the response.
    pub(crate) async fn send_h1(&self, request: Request<Body>) -> Response<Incoming> {
        within(self.h1().await.send_request(request)).await.expect("response")
    }

    /// Calls a gRPC method with an empty message and returns its status.
    pub(crate) async fn call(
        &self,
        path: &str,
        token: Option<&str>,
        workspace: Option<&WorkspaceId>,
    ) -> Status {
        let request = self.grpc(path, token, workspace, full_body(&[0; 5]));
        let response = within(self.h2().await.send_request(request)).await.expect("response");
        status(response).await
    }

    /// Sends a request for `demo` with the root token on a new connection, and waits for the head of
    /// the response.
    pub(crate) async fn open(&self, path: &str, body: Body) -> Response<Incoming> {
        let request = self.grpc(path, Some(&self.root_token), Some(&demo()), body);
        within(self.h2().await.send_request(request)).await.expect("response")
    }

    /// Calls a method of `demo` with the root token and an empty message, in a task.
    pub(crate) async fn call_in(&self, calls: &mut JoinSet<Status>, path: &str) {
        let request = self.grpc(path, Some(&self.root_token), Some(&demo()), full_body(&[0; 5]));
        let mut h2 = self.h2().await;
        calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
    }

    pub(crate) fn grpc(
        &self,
        path: &str,
        token: Option<&str>,
        workspace: Option<&WorkspaceId>,
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(id) = workspace {
            request = request.header("podling-workspace", id.as_str());
        }
        request.body(body).expect("request")
    }
}

/// Reads the whole body of a response.
pub(crate) async fn read_body(response: Response<Incoming>) -> Bytes {
    within(response.into_body().collect()).await.expect("body").to_bytes()
}

/// Reads the next frame of a response, which must have one.
pub(crate) async fn next_frame(response: &mut Response<Incoming>) -> Frame<Bytes> {
    within(response.frame()).await.expect("a frame").expect("no error")
}

/// Returns the gRPC status of a response, from its headers or its trailers.
pub(crate) async fn status(response: Response<Incoming>) -> Status {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let collected = within(response.into_body().collect()).await.expect("body");
    collected.trailers().and_then(Status::from_header_map).expect("grpc-status")
}

pub(crate) fn full_body(bytes: &[u8]) -> Body {
    Full::new(Bytes::copy_from_slice(bytes)).map_err(|never| match never {}).boxed()
}

/// Creates a streamed body. Returns the sender of its frames, and the body.
pub(crate) fn streamed_body() -> (mpsc::Sender<Bytes>, Body) {
    use futures_util::StreamExt;
    let (tx, rx) = mpsc::channel(16);
    let frames = tokio_stream::wrappers::ReceiverStream::new(rx).map(|data| Ok(Frame::data(data)));
    (tx, BodyExt::boxed(http_body_util::StreamBody::new(frames)))
}

/// Waits for a future. Panics after [`DEADLINE`].
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

fn view(
    id: &WorkspaceId,
    owner: &str,
    state: State,
    agent: Option<&AgentView>,
    version: u64,
) -> WorkspaceView {
    let spec = Spec { id: id.clone(), owner: owner.parse().expect("owner"), ..samples::spec(1, "demo") };
    let connection = if agent.is_some() { AgentConnection::Connected } else { AgentConnection::Unknown };
    let agent = agent.cloned().map(Arc::new);
    WorkspaceView { state, connection, agent, version, ..samples::view(spec) }
}

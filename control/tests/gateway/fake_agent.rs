//! A fake agent: a real HTTP/2 server over TLS with its own certificate. It records requests and
//! answers each path as the tests need it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, body::Body, extract::State, response::Response, routing::any};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use podling_control::{
    backend::InstanceId,
    snapshot::{AgentAddress, AgentView, Fingerprint},
};
use podling_proto::agent::v1::{
    ActivityLevel, ActivityState, GetActivityRequest, GetActivityResponse, KeepAwakeRequest,
    KeepAwakeResponse, WatchActivityRequest, WatchActivityResponse,
    activity_server::{Activity, ActivityServer},
};
use podling_testkit::{
    net::{BoxedStream, FREE_PORT, TestServer},
    tls::{self_signed, server_config},
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower::Layer;

/// The requests, connections and exchanges that the fake agent has observed.
#[derive(Debug, Default)]
pub(crate) struct AgentObservations {
    pub(crate) requests: Mutex<Vec<Parts>>,
    pub(crate) connections: AtomicUsize,
    /// Number of exchanges in progress.
    pub(crate) open_exchanges: watch::Sender<usize>,
    /// Bytes that the transport has taken from the endless response.
    pub(crate) flooded: AtomicUsize,
}

/// A fake agent. Dropping it breaks all its connections, as the death of an agent does.
pub(crate) struct FakeAgent {
    pub(crate) view: AgentView,
    pub(crate) observed: Arc<AgentObservations>,
    _server: TestServer,
}

impl FakeAgent {
    pub(crate) async fn start(boot_id: &str, max_streams: u32) -> Self {
        let (certificate, key) = self_signed("podling-agent");
        let tls = TlsAcceptor::from(server_config(certificate.der().clone(), &key));
        let observed = Arc::new(AgentObservations::default());
        let (router, accepted) = (router(observed.clone()), observed.clone());
        let serve = move |stream| {
            accepted.connections.fetch_add(1, SeqCst);
            serve_connection(stream, tls.clone(), router.clone(), max_streams)
        };
        let server = TestServer::start(&FREE_PORT, serve).await;
        let view = AgentView {
            boot_id: boot_id.to_owned(),
            epoch: 1,
            version: "0.1.0".to_owned(),
            capabilities: Vec::new(),
            address: AgentAddress::Tcp(server.address.tcp().to_string()),
            fingerprint: Fingerprint::of(certificate.der()),
            instance: InstanceId(boot_id.to_owned()),
            image: None,
        };
        Self { view, observed, _server: server }
    }

    pub(crate) fn requests(&self) -> Vec<Parts> {
        self.observed.requests.lock().expect("lock").clone()
    }
}

async fn serve_connection(stream: BoxedStream, tls: TlsAcceptor, router: Router, max_streams: u32) {
    // The gateway ends the handshake if the certificate is not the pinned one.
    let Ok(io) = tls.accept(stream).await else { return };
    let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(max_streams)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router))
        .await;
}

fn router(observed: Arc<AgentObservations>) -> Router {
    let activity = tonic_web::GrpcWebLayer::new().layer(ActivityServer::new(FakeActivityService));
    Router::new()
        .route("/podling.agent.v1.Terminals/Attach", any(echo))
        .route("/podling.agent.v1.Terminals/Watch", any(flood))
        .route("/podling.agent.v1.Processes/Watch", any(stall))
        .route("/files/{*path}", any(file))
        .route_service("/podling.agent.v1.Activity/Watch", activity)
        .fallback(any(empty))
        .layer(axum::middleware::map_request_with_state(observed.clone(), record_request))
        .with_state(observed)
}

async fn record_request(
    State(observed): State<Arc<AgentObservations>>,
    request: Request<Body>,
) -> Request<Body> {
    let (parts, body) = request.into_parts();
    observed.requests.lock().expect("lock").push(parts.clone());
    Request::from_parts(parts, body)
}

/// Counts one exchange in progress until it is dropped.
struct OpenExchange(Arc<AgentObservations>);

impl OpenExchange {
    fn new(observed: &Arc<AgentObservations>) -> Self {
        observed.open_exchanges.send_modify(|n| *n += 1);
        Self(observed.clone())
    }
}

impl Drop for OpenExchange {
    fn drop(&mut self) {
        self.0.open_exchanges.send_modify(|n| *n -= 1);
    }
}

fn grpc(
    frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, axum::Error>> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().expect("value"));
    response
}

fn trailers() -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]))
}

/// Returns each frame of the request as it arrives, then trailers.
async fn echo(State(observed): State<Arc<AgentObservations>>, request: Request<Body>) -> Response {
    let open = OpenExchange::new(&observed);
    let frames = BodyStream::new(request.into_body()).map(move |frame| {
        let _open = &open;
        frame
    });
    grpc(frames.chain(stream::iter([Ok(trailers())])))
}

/// Streams data without an end.
async fn flood(State(observed): State<Arc<AgentObservations>>) -> Response {
    let open = OpenExchange::new(&observed);
    grpc(stream::repeat_with(move || {
        open.0.flooded.fetch_add(16 * 1024, SeqCst);
        Ok(Frame::data(Bytes::from_static(&[7; 16 * 1024])))
    }))
}

/// Sends one message and then neither data nor an end.
async fn stall(State(observed): State<Arc<AgentObservations>>) -> Response {
    let open = OpenExchange::new(&observed);
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x01x")))]);
    grpc(first.chain(stream::pending().map(move |frame: Result<Frame<Bytes>, axum::Error>| {
        let _open = &open;
        frame
    })))
}

/// Returns a file of the size in the path, or else the length of the request's body.
async fn file(request: Request<Body>) -> Response {
    let size = request.uri().path().rsplit('/').next().and_then(|n| n.parse().ok());
    let content = request.into_body().collect().await.expect("body").to_bytes();
    let body = match size {
        Some(size) => Body::from(vec![5; size]),
        None => Body::from(content.len().to_string()),
    };
    Response::builder().header("set-cookie", "a=b").header("etag", "\"1\"").body(body).expect("response")
}

/// Answers all other methods with an empty message.
async fn empty(request: Request<Body>) -> Response {
    request.into_body().collect().await.expect("body");
    grpc(stream::iter([Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(trailers())]))
}

/// A tonic service behind tonic-web, as in the agent.
struct FakeActivityService;

#[tonic::async_trait]
impl Activity for FakeActivityService {
    type WatchStream = stream::BoxStream<'static, Result<WatchActivityResponse, Status>>;

    async fn get(
        &self,
        _request: tonic::Request<GetActivityRequest>,
    ) -> Result<tonic::Response<GetActivityResponse>, Status> {
        Err(Status::unimplemented("not used by these tests"))
    }

    async fn watch(
        &self,
        _request: tonic::Request<WatchActivityRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let state = ActivityState { level: ActivityLevel::Busy.into(), ..ActivityState::default() };
        let message = WatchActivityResponse { activity: Some(state) };
        Ok(tonic::Response::new(stream::iter([Ok(message.clone()), Ok(message)]).boxed()))
    }

    async fn keep_awake(
        &self,
        _request: tonic::Request<KeepAwakeRequest>,
    ) -> Result<tonic::Response<KeepAwakeResponse>, Status> {
        Err(Status::unimplemented("not used by these tests"))
    }
}

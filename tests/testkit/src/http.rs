//! HTTP servers on free ports, and plain HTTP/1.1 requests as curl sends them, each on a connection
//! of its own.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1, http::response::Parts};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint},
};

use crate::{
    net::{BoxedStream, DialAddress, FREE_PORT, TestServer},
    wait::within,
};

/// Serves a router on a free port.
pub async fn serve(router: Router) -> TestServer {
    TestServer::start(&FREE_PORT, move |stream| serve_stream(stream, router.clone())).await
}

/// Serves a router over TLS.
pub async fn serve_tls(at: &DialAddress, tls: Arc<ServerConfig>, router: Router) -> TestServer {
    let tls = TlsAcceptor::from(tls);
    let serve = move |stream| {
        let (tls, router) = (tls.clone(), router.clone());
        async move {
            // The client may reject the certificate.
            let Ok(stream) = tls.accept(stream).await else { return };
            serve_stream(Box::new(stream), router).await;
        }
    };
    TestServer::start(at, serve).await
}

/// Serves a router on one connection, over HTTP/1.1 or HTTP/2.
pub async fn serve_stream(stream: BoxedStream, router: Router) {
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}

/// Serves gRPC services on a free port. Also returns a channel to them.
pub async fn serve_grpc(routes: Routes) -> (Channel, TestServer) {
    let server = serve(routes.into_axum_router()).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address.tcp())).expect("a URL");
    (endpoint.connect().await.expect("the server accepts a connection"), server)
}

/// Sends a request to `address` and reads the whole response. Panics if that fails.
pub async fn send(address: SocketAddr, mut request: Request<Bytes>) -> Response<Bytes> {
    let host = address.to_string().parse().expect("an address is a header value");
    request.headers_mut().insert("host", host);
    let stream = DialAddress::Tcp(address).connect().await.expect("server accepts a connection");
    let (parts, body) = exchange(stream, request).await;
    Response::from_parts(parts, body.expect("the body"))
}

/// Sends a request over a connection and reads the response. The body is an error if the server
/// aborted the transfer.
pub async fn exchange(stream: BoxedStream, request: Request<Bytes>) -> (Parts, hyper::Result<Bytes>) {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let response = within("the response", sender.send_request(request.map(Full::new))).await;
    let (parts, body) = response.expect("a response").into_parts();
    let body = within("the response body", body.collect()).await;
    (parts, body.map(|body| body.to_bytes()))
}

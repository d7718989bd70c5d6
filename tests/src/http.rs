//! Sends plain HTTP/1.1 requests as curl does, each on a connection of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use crate::wait::within;

/// Sends a request to `address` and reads the whole response. Panics if that fails.
pub async fn send(address: SocketAddr, mut request: Request<Bytes>) -> Response<Bytes> {
    let host = address.to_string().parse().expect("an address is a header value");
    request.headers_mut().insert("host", host);
    let stream = TcpStream::connect(address).await.expect("server accepts a connection");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let response = within("the response", sender.send_request(request.map(Full::new))).await;
    let (parts, body) = response.expect("a response").into_parts();
    let body = within("the response body", body.collect()).await.expect("the body");
    Response::from_parts(parts, body.to_bytes())
}

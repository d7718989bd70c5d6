//! Plain HTTP/1.1, as curl speaks it: one connection a request.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use crate::wait::within;

/// Sends a request and reads the whole answer.
pub async fn send(address: SocketAddr, mut request: Request<Bytes>) -> Response<Bytes> {
    let host = address.to_string().parse().expect("an address is a header value");
    request.headers_mut().insert("host", host);
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let answer = within("an answer", sender.send_request(request.map(Full::new))).await;
    let (parts, body) = answer.expect("an answer").into_parts();
    let body = within("the answer's body", body.collect()).await.expect("the body");
    Response::from_parts(parts, body.to_bytes())
}

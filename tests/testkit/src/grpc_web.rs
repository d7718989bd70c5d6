//! A gRPC-web client that is written from the protocol's specification (PROTOCOL-WEB.md). It uses
//! binary mode over HTTP/1.1 with one connection for each call, as a browser without HTTP/2 does.
//! It shares no code with the servers under test.

use std::{collections::VecDeque, marker::PhantomData, net::SocketAddr};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, client::conn::http1, header::HeaderName};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Status;

/// Flag byte of a frame with trailers.
const TRAILERS: u8 = 0x80;
/// Size of a frame's header, which is one flag byte and a length of four bytes.
const PREFIX_BYTES: usize = 5;

/// A caller with a token that addresses one workspace.
#[derive(Debug, Clone)]
pub struct GrpcWebClient {
    address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// The response to a call, which is read message by message.
#[derive(Debug)]
pub struct ResponseStream<T> {
    body: Incoming,
    parser: FrameParser,
    status: Option<Status>,
    _connection: JoinSet<()>,
    kind: PhantomData<T>,
}

/// Splits a body into frames. The body may arrive in pieces of any size.
#[derive(Debug, Default)]
pub struct FrameParser {
    buffer: BytesMut,
    frames: VecDeque<GrpcWebFrame>,
}

/// A frame of a gRPC-web body.
#[derive(Debug, PartialEq, Eq)]
pub enum GrpcWebFrame {
    Message(Bytes),
    /// Trailers, which are always the last frame.
    Trailers(Vec<(String, String)>),
}

// === impl GrpcWebClient ===

impl GrpcWebClient {
    /// Creates a caller that connects to `address`.
    pub fn new(address: SocketAddr, token: &str, workspace: &str) -> Self {
        let headers =
            [("authorization", format!("Bearer {token}")), ("podling-workspace", workspace.to_owned())];
        Self { address, headers: headers.map(|(key, value)| (key.to_owned(), value)).into() }
    }

    /// Calls a unary method and returns its response.
    pub async fn unary<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<A, Status> {
        let mut answers = self.stream(path, question).await?;
        let answer = answers.next().await?;
        if answers.next().await?.is_some() {
            return Err(Status::internal("a unary call returned two messages"));
        }
        answer.ok_or_else(|| Status::internal("a unary call returned no message"))
    }

    /// Calls a server-streaming method and returns the stream of its responses.
    pub async fn stream<Q: Message, A>(&self, path: &str, question: &Q) -> Result<ResponseStream<A>, Status> {
        self.send(path, question).await.map_err(|e| match e.downcast::<Status>() {
            Ok(status) => status,
            Err(error) => Status::unknown(format!("{error:#}")),
        })
    }

    async fn send<Q: Message, A>(&self, path: &str, question: &Q) -> Result<ResponseStream<A>> {
        let stream = TcpStream::connect(self.address).await.context("connecting to the gateway")?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP/1.1")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let mut request = Request::post(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/grpc-web+proto")
            .header("accept", "application/grpc-web+proto")
            .header("x-grpc-web", "1")
            .header("x-user-agent", "podling-stories/1");
        for (key, value) in &self.headers {
            request = request.header(key, value);
        }
        let request = request.body(Full::new(frame(question)))?;
        let response = sender.send_request(request).await.context("sending the request")?;
        ResponseStream::new(response, tasks)
    }
}

// === impl ResponseStream ===

impl<T> ResponseStream<T> {
    fn new(response: Response<Incoming>, connection: JoinSet<()>) -> Result<Self> {
        ensure!(response.status() == 200, "HTTP status {}", response.status());
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        ensure!(kind.starts_with("application/grpc-web"), "content-type {kind:?}");
        // A response with only headers carries an error without a message.
        let status = Status::from_header_map(response.headers());
        let (parser, kind) = (FrameParser::default(), PhantomData);
        Ok(Self { body: response.into_body(), parser, status, _connection: connection, kind })
    }
}

impl<T: Message + Default> ResponseStream<T> {
    /// Waits for the next message; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<T>, Status> {
        self.read().await.map_err(|e| match e.downcast::<Status>() {
            Ok(status) => status,
            Err(error) => Status::unknown(format!("{error:#}")),
        })
    }

    async fn read(&mut self) -> Result<Option<T>> {
        loop {
            match self.parser.next() {
                Some(GrpcWebFrame::Message(bytes)) => return Ok(Some(T::decode(bytes)?)),
                Some(GrpcWebFrame::Trailers(lines)) => self.status = Some(status(&lines)?),
                None => match self.body.frame().await.transpose().context("reading the response body")? {
                    Some(frame) => {
                        self.parser.push(&frame.into_data().map_err(|_| anyhow!("HTTP trailers"))?)?
                    }
                    None => {
                        ensure!(self.parser.is_empty(), "the body ends within a frame");
                        let status = self.status.clone().context("the body ends without trailers")?;
                        return if status.code() == tonic::Code::Ok { Ok(None) } else { Err(status.into()) };
                    }
                },
            }
        }
    }
}

// === impl FrameParser ===

impl FrameParser {
    /// Appends bytes of the body.
    ///
    /// # Errors
    ///
    /// Fails if the bytes violate the protocol.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        while let [flag, a, b, c, d, ..] = self.buffer[..] {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if self.buffer.len() < PREFIX_BYTES + length {
                break;
            }
            self.buffer.advance(PREFIX_BYTES);
            let content = self.buffer.split_to(length).freeze();
            ensure!(
                !matches!(self.frames.back(), Some(GrpcWebFrame::Trailers(_))),
                "a frame after the trailers"
            );
            self.frames.push_back(match flag {
                0 => GrpcWebFrame::Message(content),
                TRAILERS => GrpcWebFrame::Trailers(trailers(&content)?),
                other => bail!("a frame with flag {other:#x}"),
            });
        }
        Ok(())
    }

    /// Removes and returns the next complete frame; `None` if more bytes are needed.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<GrpcWebFrame> {
        self.frames.pop_front()
    }

    /// Returns whether no part of an incomplete frame is buffered.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Encodes a message as a frame with its header.
fn frame(message: &impl Message) -> Bytes {
    let content = message.encode_to_vec();
    let length = u32::try_from(content.len()).expect("a message is shorter than 4 GiB");
    [&[0][..], &length.to_be_bytes(), &content].concat().into()
}

/// Parses trailers, which are lines `key: value\r\n` as in HTTP/1.1, with lower-case keys.
fn trailers(content: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(content).context("trailers")?;
    text.split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (key, value) = line.split_once(':').with_context(|| format!("trailer {line:?}"))?;
            ensure!(key == key.to_lowercase(), "trailer {key:?} is not in lower case");
            Ok((key.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn status(lines: &[(String, String)]) -> Result<Status> {
    let mut map = HeaderMap::new();
    for (key, value) in lines {
        map.append(HeaderName::try_from(key)?, value.parse()?);
    }
    Status::from_header_map(&map).context("trailers without grpc-status")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] =
        b"\0\0\0\0\x02hi\0\0\0\0\0\x80\0\0\0\x2agrpc-status: 5\r\ngrpc-message: not%20here\r\n";

    #[test]
    fn frames_are_parsed_from_pieces_of_any_size() {
        for size in 1..=BODY.len() {
            let mut parser = FrameParser::default();
            for piece in BODY.chunks(size) {
                parser.push(piece).expect("a good body");
            }
            assert_eq!(parser.next(), Some(GrpcWebFrame::Message("hi".into())));
            assert_eq!(parser.next(), Some(GrpcWebFrame::Message("".into())));
            let Some(GrpcWebFrame::Trailers(lines)) = parser.next() else { panic!("no trailers") };
            let status = status(&lines).expect("a status");
            assert_eq!((status.code(), status.message()), (tonic::Code::NotFound, "not here"));
            assert!(parser.is_empty() && parser.next().is_none());
        }
    }

    #[test]
    fn protocol_violations_are_errors() {
        assert!(FrameParser::default().push(b"\x03\0\0\0\0").is_err(), "an unknown flag");
        let twice = [BODY, BODY].concat();
        assert!(FrameParser::default().push(&twice).is_err(), "a frame after the trailers");
        assert!(FrameParser::default().push(b"\x80\0\0\0\x01x").is_err(), "a trailer without a colon");
    }
}

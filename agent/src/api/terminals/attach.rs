//! The two directions of Attach. One task, the pump, passes requests to the terminal, while the
//! client reads the response stream.

use futures_util::stream;
use podling_proto::agent::v1 as pb;
use tonic::{Status, Streaming};

use super::{
    TerminalStream,
    error::status,
    request::{bad, input, size, target},
    response::attached,
};
use crate::terminal::{Attachment, AttachmentWriter, InputQueue, TerminalError};

/// Handles requests until the client sends no more. An error ends the stream.
pub(super) async fn pump(
    writer: AttachmentWriter,
    mut requests: Streaming<pb::AttachRequest>,
) -> Result<(), Status> {
    use pb::attach_request::Request as AttachCommand;
    let mut typing = InputQueue::new(writer.clone());
    loop {
        let request = tokio::select! {
            request = requests.message() => request?,
            () = typing.drain(), if typing.is_holding() => continue,
        };
        let Some(request) = request else { break };
        match request.request {
            Some(AttachCommand::Input(piece)) => typing.input(input(&piece)),
            Some(AttachCommand::Resize(resize)) => {
                let size_request = size(resize.size)?.ok_or_else(|| bad("resize.size", "set"))?;
                unless_ended(writer.resize(size_request, resize.take_ownership))?;
            }
            Some(AttachCommand::Ack(offset)) => writer.ack(offset),
            Some(AttachCommand::Signal(signal)) => {
                unless_ended(writer.signal(&signal.signal, target(&signal)))?
            }
            Some(AttachCommand::Open(_)) => return Err(bad("open", "the first request only").into()),
            // A request kind of a newer client.
            None => {}
        }
    }
    typing.drain().await;
    Ok(())
}

/// Ignores the error that the terminal has ended, because the response stream delivers the exit.
fn unless_ended(done: Result<(), TerminalError>) -> Result<(), Status> {
    match done {
        Err(TerminalError::TerminalEnded(_)) => Ok(()),
        done => done.map_err(status),
    }
}

/// Returns the stream of the terminal's events. It ends when the terminal has ended, or with the
/// error of a failed request. Dropping the stream stops the pump.
pub(super) fn responses(
    attachment: Attachment,
    failed: tokio::sync::oneshot::Receiver<Status>,
    ended: tokio_util::sync::DropGuard,
) -> TerminalStream<pb::AttachResponse> {
    let first = Some((attachment, Some(failed), ended));
    Box::pin(stream::unfold(first, async |open| {
        let (mut attachment, mut failed, ended) = open?;
        let problem = async {
            match &mut failed {
                // The pump drops the sender without an error when the client sends no more
                // requests. The client may still read.
                Some(failed) => match failed.await {
                    Ok(problem) => problem,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = attachment.next() => {
                let response = attached(event?);
                // A receiver that has delivered its value must not be polled again.
                let failed = failed.filter(|failed| !failed.is_terminated());
                Some((Ok(response), Some((attachment, failed, ended))))
            }
            problem = problem => Some((Err(problem), None)),
        }
    }))
}

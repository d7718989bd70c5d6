//! Attach's two directions: requests are pumped into the terminal while its responses are pulled.

use futures_util::stream;
use podling_proto::agent::v1 as pb;
use tonic::{Status, Streaming};

use super::{
    TerminalStream,
    error::status,
    request::{bad, input, size, target},
    response::attached,
};
use crate::terminal::{Attachment, TerminalError, Typing, Writer};

/// Takes requests until the client has no more; an error ends the stream.
pub(super) async fn pump(writer: Writer, mut requests: Streaming<pb::AttachRequest>) -> Result<(), Status> {
    use pb::attach_request::Request as AttachCommand;
    let mut typing = Typing::new(writer.clone());
    loop {
        let request = tokio::select! {
            request = requests.message() => request?,
            () = typing.settle(), if typing.waits() => continue,
        };
        let Some(request) = request else { break };
        match request.request {
            Some(AttachCommand::Input(piece)) => typing.input(input(&piece)),
            Some(AttachCommand::Resize(resize)) => {
                let wanted = size(resize.size)?.ok_or_else(|| bad("resize.size", "must be given"))?;
                unless_ended(writer.resize(wanted, resize.take))?;
            }
            Some(AttachCommand::Ack(offset)) => writer.ack(offset),
            Some(AttachCommand::Signal(signal)) => {
                unless_ended(writer.signal(&signal.signal, target(&signal)))?
            }
            Some(AttachCommand::Open(_)) => return Err(bad("open", "only the first request").into()),
            // A kind that a newer client knows.
            None => {}
        }
    }
    typing.settle().await;
    Ok(())
}

/// What comes too late for a terminal that has ended is no error of the stream, which is about to say so.
fn unless_ended(done: Result<(), TerminalError>) -> Result<(), Status> {
    match done {
        Err(TerminalError::Ended(_)) => Ok(()),
        done => done.map_err(status),
    }
}

/// What the terminal says, until it has ended or a request was wrong. Dropping it stops the pump.
pub(super) fn responses(
    attachment: Attachment,
    failed: tokio::sync::oneshot::Receiver<Status>,
    over: tokio_util::sync::DropGuard,
) -> TerminalStream<pb::AttachResponse> {
    let first = Some((attachment, Some(failed), over));
    Box::pin(stream::unfold(first, async |open| {
        let (mut attachment, mut failed, over) = open?;
        let problem = async {
            match &mut failed {
                // Without a problem its sender is dropped: the client has no more requests and goes on reading.
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
                // A receiver that has answered must not be asked again.
                let failed = failed.filter(|failed| !failed.is_terminated());
                Some((Ok(response), Some((attachment, failed, over))))
            }
            problem = problem => Some((Err(problem), None)),
        }
    }))
}

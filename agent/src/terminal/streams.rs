//! Opens attachments and watches of terminals. Each is registered by an id while it lives.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    AttachOptions, Attachment, TerminalError, TerminalId, TerminalWatch, Terminals, WatchOptions,
    WatchTarget,
    registry::TerminalsInner,
    viewer::{self, Viewer, ViewerOptions},
};

/// Limit on watches and attachments of the workspace. Another one is rejected.
const MAX_STREAMS: usize = 1024;
/// Limit on terminals in one watch.
pub(super) const MAX_WATCHED_TERMINALS: usize = 64;

/// Registration of a watch or an attachment. Dropping it removes the registration.
#[derive(Debug)]
pub(super) struct WatchGuard {
    id: String,
    inner: Arc<TerminalsInner>,
}

impl Terminals {
    /// Attaches to one terminal, for output and input.
    pub fn attach(&self, attach: &AttachOptions) -> Result<Attachment, TerminalError> {
        let terminal = self.find(&attach.terminal)?;
        let wake = Arc::new(Notify::new());
        let guard = self.watch_guard()?;
        let options = ViewerOptions {
            from: attach.from,
            client: attach.client.clone(),
            writes: !attach.read_only,
            size: attach.size,
            credit: attach.credit,
            lossless: attach.lossless,
        };
        let viewer = Viewer::join(&terminal, &options, &wake)?;
        let id = viewer.id();
        let watch = TerminalWatch::new(vec![viewer], VecDeque::new(), Arc::clone(&wake), Some(guard));
        Ok(Attachment::new(watch, terminal, id, wake, attach))
    }

    /// Watches one or several terminals. An event reports each terminal that cannot be watched; the
    /// others continue.
    pub fn watch(
        &self,
        terminals: &[WatchTarget],
        options: &WatchOptions,
    ) -> Result<TerminalWatch, TerminalError> {
        if !(1..=MAX_WATCHED_TERMINALS).contains(&terminals.len()) {
            return Err(TerminalError::BadField {
                field: "terminals",
                allowed: "a list of 1 to 64 terminals",
            });
        }
        if options.lossless && terminals.len() > 1 {
            return Err(TerminalError::BadField {
                field: "lossless",
                allowed: "false if more than one terminal is watched",
            });
        }
        let wake = Arc::new(Notify::new());
        let guard = self.watch_guard()?;
        let (mut viewers, mut failed, mut acks) = (Vec::new(), VecDeque::new(), HashMap::new());
        for WatchTarget { terminal: id, from } in terminals {
            let options = ViewerOptions {
                from: *from,
                client: options.client.clone(),
                // A browser sends its input by Write requests, so the viewer of a watch may write.
                writes: true,
                size: None,
                credit: options.credit,
                lossless: options.lossless,
            };
            match self.find(id).and_then(|terminal| Viewer::join(&terminal, &options, &wake)) {
                Ok(viewer) => {
                    acks.insert(id.clone(), (Arc::clone(viewer.terminal()), viewer.id()));
                    viewers.push(viewer);
                }
                Err(error) => failed.push_back((id.clone(), error)),
            }
        }
        self.inner.table().watches.insert(guard.id.clone(), acks);
        Ok(TerminalWatch::new(viewers, failed, wake, Some(guard)))
    }

    /// Grants credit to one terminal of a watch. The client has processed all output before
    /// `offset`.
    pub fn ack(&self, watch: &str, id: &TerminalId, epoch: u64, offset: u64) -> Result<(), TerminalError> {
        let (terminal, viewer) = {
            let table = self.inner.table();
            let acks =
                table.watches.get(watch).ok_or_else(|| TerminalError::WatchNotFound(watch.to_owned()))?;
            acks.get(id).cloned().ok_or_else(|| TerminalError::NotFound(id.clone()))?
        };
        viewer::ack(&terminal, viewer, epoch, offset);
        Ok(())
    }

    fn watch_guard(&self) -> Result<WatchGuard, TerminalError> {
        let mut table = self.inner.table();
        if table.watches.len() >= MAX_STREAMS {
            return Err(TerminalError::TooManyStreams { what: "terminal streams", limit: MAX_STREAMS });
        }
        let id = TerminalId::random().to_string();
        table.watches.insert(id.clone(), HashMap::new());
        Ok(WatchGuard { id, inner: Arc::clone(&self.inner) })
    }
}

impl WatchGuard {
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.inner.table().watches.remove(&self.id);
    }
}

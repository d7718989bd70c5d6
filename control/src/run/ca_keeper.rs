//! Keeps the ConfigMap with the CA certificate. Without it no pod of a workspace can start.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::time::sleep;

use super::secrets;
use crate::{leader_election::Leadership, watch_backoff::WatchBackoff};

/// Pause before a failed write is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Writes the ConfigMap `name` again whenever it is missing or its content differs from the file
/// `ca`. Ends only if the watch ends.
pub(super) async fn keep_ca(
    client: Client,
    namespace: String,
    name: &str,
    ca: &Path,
    leadership: Arc<Leadership>,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let mut updates = pin!(watch_object(maps, name).backoff(WatchBackoff::default()));
    while let Some(seen) = updates.next().await {
        match seen {
            Ok(Some(map)) if secrets::holds_ca(&map, ca) => continue,
            Ok(_) => {
                tracing::warn!(name, "the ConfigMap with the CA is missing or changed; writing it again")
            }
            Err(error) => {
                tracing::debug!(name, %error, "failed to watch the ConfigMap with the CA");
                continue;
            }
        }
        loop {
            leadership.wait().await;
            match secrets::publish_ca(&client, &namespace, name, ca).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "failed to write the ConfigMap; retrying"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}

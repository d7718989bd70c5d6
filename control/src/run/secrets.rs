//! Shares the secrets of the control plane between its replicas in a Secret.
//!
//! The first leader creates the Secret. Each replica remembers its content, so that the leader can
//! write back what is deleted from it. Long-lived secrets that no replica knows are created only if
//! no workspace depends on them, or on request.

use std::{
    collections::BTreeMap,
    path::Path,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    core::DeserializeGuard,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;
use tokio::time::sleep;

use super::{ControlPlaneError, error::LostSecret};
use crate::{
    identity::{
        ControlIdentity, ControlIdentityError, LONG_LIVED_SECRETS, MissingSecrets, SecretFileError,
        lost_secrets, secret_file,
    },
    kubernetes::{Workspace, WorkspaceArchive, has_status_code, objects::control_plane_labels},
    leader_election::Leadership,
    watch_backoff::WatchBackoff,
};

/// Name of the Secret.
const NAME: &str = "podling-control";
/// Annotation of the Secret with which an operator asks for new secrets in place of missing ones.
/// The leader that creates them removes it.
const CREATE_MISSING: &str = "podling.dev/create-missing-secrets";
/// Shared files of the data directory. The Secret's keys are their file names.
const FILES: [&str; 6] = [
    "root-token",
    "control/token-keys.json",
    "control/ca.pem",
    "control/ca.key",
    "control/tls.pem",
    "control/tls.key",
];
/// Attempts to write the Secret while other clients write it too.
const MAX_WRITE_ATTEMPTS: usize = 8;
/// Pause before a failed write is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Content of the Secret: file names without directories, and what the files contain.
type SecretData = BTreeMap<String, ByteString>;

/// The Secret that all replicas share.
pub(super) struct SharedSecret {
    secrets: Api<Secret>,
    workspaces: Api<DeserializeGuard<Workspace>>,
    archives: Api<DeserializeGuard<WorkspaceArchive>>,
    namespace: String,
    /// The newest content that had all long-lived secrets; empty if this replica has seen none.
    known: Mutex<SecretData>,
}

impl SharedSecret {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            workspaces: Api::namespaced(client.clone(), namespace),
            archives: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            known: Mutex::default(),
        }
    }

    /// Remembers the content of the Secret while this replica stands by. Never returns.
    pub(super) async fn remember(&self) {
        let mut versions = pin!(watch_object(self.secrets.clone(), NAME).backoff(WatchBackoff::default()));
        while let Some(version) = versions.next().await {
            match version {
                Ok(Some(secret)) => self.set_known(&secret.data.unwrap_or_default()),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "failed to watch the Secret {NAME}"),
            }
        }
    }

    /// Restores what is deleted from the Secret while this replica is the leader. Never returns.
    pub(super) async fn restore_when_deleted(&self, leadership: &Leadership) {
        let mut versions = pin!(watch_object(self.secrets.clone(), NAME).backoff(WatchBackoff::default()));
        while let Some(version) = versions.next().await {
            let mut secret = match version {
                Ok(secret) => secret,
                Err(error) => {
                    tracing::warn!(%error, "failed to watch the Secret {NAME}; retrying");
                    continue;
                }
            };
            loop {
                self.set_known(&data_of(secret.as_ref()));
                let missing = self.missing_in(secret.as_ref());
                if missing.is_empty() {
                    break;
                }
                // The write fails if another leader has restored the Secret in the meantime.
                leadership.wait().await;
                let names = missing.keys().cloned().collect::<Vec<_>>().join(", ");
                tracing::warn!(names, "secrets were deleted from the Secret {NAME}; writing them back");
                match self.write(secret.as_ref(), missing).await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(%error, "failed to restore the Secret {NAME}; retrying"),
                }
                sleep(RETRY_PAUSE).await;
                match self.secrets.get_opt(NAME).await {
                    Ok(now) => secret = now,
                    Err(error) => tracing::warn!(%error, "failed to read the Secret {NAME}; retrying"),
                }
            }
        }
    }

    /// Writes the secrets into the data directory, and opens the identity there. The Secret has
    /// precedence over what this replica remembers, and that over files in the data directory.
    /// Writes to the Secret the files that it lacks, and files that the identity has replaced, such
    /// as a signing key that was too old.
    ///
    /// Fails if a long-lived secret is missing although workspaces exist, unless `create_missing`
    /// is set or the Secret has the annotation [`CREATE_MISSING`].
    pub(super) async fn open(
        &self,
        data: &Path,
        create_missing: bool,
    ) -> Result<ControlIdentity, ControlPlaneError> {
        let failed = |source| ControlPlaneError::Cluster {
            operation: format!("read or write the Secret {NAME} in namespace {}", self.namespace),
            source: Box::new(source),
        };
        let mut attempts = 0;
        loop {
            let found = self.secrets.get_opt(NAME).await.map_err(failed)?;
            let create = found.as_ref().is_some_and(requests_new_secrets);
            self.write_files(data, &data_of(found.as_ref()), create)?;
            let may_create = create_missing
                || create
                || lost_secrets(data).is_empty()
                || !self.has_workspaces().await.map_err(failed)?;
            let missing = if may_create { MissingSecrets::Create } else { MissingSecrets::Refuse };
            let identity = match ControlIdentity::open(data, missing) {
                Err(ControlIdentityError::Lost { files, .. }) => {
                    let keys = files.iter().map(|file| key(file)).collect();
                    let (namespace, exists) = (self.namespace.clone(), found.is_some());
                    return Err(LostSecret { namespace, exists, keys, files }.into());
                }
                opened => opened?,
            };
            let (before, files) = (data_of(found.as_ref()), read_files(data)?);
            let changed: SecretData = files
                .clone()
                .into_iter()
                .filter(|(name, content)| before.get(name) != Some(content))
                .collect();
            let written = match changed.is_empty() && !create {
                true => Ok(()),
                false => self.write(found.as_ref(), changed).await,
            };
            match written {
                Ok(()) => {
                    self.set_known(&files);
                    return Ok(identity);
                }
                // Another client has created or changed the Secret, so its content is read again.
                Err(error) if has_status_code(&error, 409) && attempts < MAX_WRITE_ATTEMPTS => attempts += 1,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Creates the Secret with this content, or adds the content to the Secret in this version. Also
    /// removes the request for new secrets. Fails with 409 if another client was faster.
    async fn write(&self, found: Option<&Secret>, content: SecretData) -> Result<(), Error> {
        let Some(found) = found else {
            let labels = Some(control_plane_labels());
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), labels, ..ObjectMeta::default() };
            let secret = Secret { metadata, data: Some(content), ..Secret::default() };
            return self.secrets.create(&PostParams::default(), &secret).await.map(drop);
        };
        let mut metadata = json!({"resourceVersion": found.resource_version(), "uid": found.uid()});
        if requests_new_secrets(found) {
            metadata["annotations"] = json!({ CREATE_MISSING: null });
        }
        let patch = Patch::Merge(json!({"metadata": metadata, "data": content}));
        self.secrets.patch(NAME, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Returns what this replica knows and this version of the Secret lacks.
    fn missing_in(&self, secret: Option<&Secret>) -> SecretData {
        if secret.is_some_and(|secret| {
            secret.metadata.deletion_timestamp.is_some() || requests_new_secrets(secret)
        }) {
            return SecretData::new();
        }
        let data = data_of(secret);
        self.known().into_iter().filter(|(name, _)| !data.contains_key(name)).collect()
    }

    /// Remembers the content if no long-lived secret is missing in it.
    fn set_known(&self, data: &SecretData) {
        if LONG_LIVED_SECRETS.iter().all(|name| data.contains_key(key(name))) {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(data);
        }
    }

    fn known(&self) -> SecretData {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether a control plane has served workspaces in this namespace before.
    async fn has_workspaces(&self) -> Result<bool, Error> {
        let archives = self.archives.list_metadata(&ListParams::default().limit(1)).await?;
        if !archives.items.is_empty() {
            return Ok(true);
        }
        let was_served = |workspace: &DeserializeGuard<Workspace>| match &workspace.0 {
            Ok(workspace) => workspace.status.as_ref().is_some_and(|status| status.record.is_some()),
            // An older CRD has accepted it, so an earlier control plane may have served it.
            Err(_) => true,
        };
        Ok(self.workspaces.list(&ListParams::default()).await?.iter().any(was_served))
    }

    /// Writes the files of the data directory. Without `create`, files that the Secret lacks come
    /// from memory, or stay as they are. With it, they are removed, so that new ones are created.
    fn write_files(&self, data: &Path, secret: &SecretData, create: bool) -> Result<(), ControlPlaneError> {
        secret_file::create_private_dir(data)?;
        secret_file::create_private_dir(&data.join("control"))?;
        let known = if create { SecretData::new() } else { self.known() };
        for name in FILES {
            let path = data.join(name);
            match secret.get(key(name)).or_else(|| known.get(key(name))) {
                Some(content) => secret_file::write(&path, &content.0)?,
                None if create => secret_file::remove(&path)?,
                None => {}
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSecret").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Returns whether an operator asks for new secrets in place of those that the Secret lacks.
fn requests_new_secrets(secret: &Secret) -> bool {
    secret.annotations().get(CREATE_MISSING).is_some_and(|value| value == "true")
}

fn data_of(secret: Option<&Secret>) -> SecretData {
    secret.and_then(|secret| secret.data.clone()).unwrap_or_default()
}

/// Returns the Secret's key for a file, which is the file's name without directories.
fn key(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn read_files(data: &Path) -> Result<SecretData, SecretFileError> {
    let read = |name: &&str| {
        let content = secret_file::read(&data.join(name)).transpose()?;
        Some(content.map(|content| (key(name).to_owned(), ByteString(content))))
    };
    FILES.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use http::Method;
    use tokio::time::Instant;

    use super::*;
    use crate::samples;

    #[tokio::test(start_paused = true)]
    async fn deleted_secret_is_restored_once_the_process_leads_again() {
        let created = Arc::new(AtomicBool::new(false));
        let is_created = created.clone();
        let client = samples::api_client(move |method, uri| match *method {
            Method::POST => {
                created.store(true, SeqCst);
                (201, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}}))
            }
            _ if uri.path().ends_with(NAME) => samples::api_not_found(),
            _ => samples::api_list(json!([])),
        });
        let secret = SharedSecret::new(&client, "podling");
        let contents = LONG_LIVED_SECRETS.map(|name| (key(name).to_owned(), ByteString(b"secret".into())));
        secret.set_known(&contents.into());
        let leadership = Leadership::new(Instant::now(), Duration::ZERO);
        sleep(Duration::from_secs(10)).await;
        assert!(!leadership.is_leader(), "the leadership has expired");
        let renewed = async {
            sleep(Duration::from_secs(30)).await;
            assert!(!is_created.load(SeqCst), "only the leader writes");
            leadership.renew(Instant::now());
            sleep(Duration::from_secs(5)).await;
        };
        tokio::select! {
            () = secret.restore_when_deleted(&leadership) => unreachable!("it never returns"),
            () = renewed => assert!(is_created.load(SeqCst), "the leader writes the Secret back"),
        }
    }
}

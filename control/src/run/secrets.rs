//! Shares the secrets of the control plane between its replicas in a Secret.
//!
//! The first leader creates the Secret. Each replica remembers its newest usable content, so that
//! the leader can write back what is deleted or damaged. Long-lived secrets that no replica knows
//! are created only if no workspace depends on them, or on request.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    core::DeserializeGuard,
};
use serde_json::json;
use tokio::time::sleep;

use super::{
    ControlPlaneError,
    error::{LostSecret, SecretLoss, describe_damage, secret_key},
};
use crate::{
    identity::{
        ControlIdentity, ControlIdentityError, LONG_LIVED_SECRETS, MissingSecrets, SecretFileError,
        checks::{self, FILES, IdentityFiles},
        lost_secrets, secret_file,
    },
    kubernetes::{Workspace, WorkspaceArchive, has_status_code, objects::control_plane_labels},
    leader_election::Leadership,
    watches::watch_one,
};

/// Name of the Secret.
const NAME: &str = "podling-control";
/// Annotation of the Secret with which an operator asks for new secrets in place of missing ones.
/// The leader that creates them removes it.
const CREATE_MISSING: &str = "podling.dev/create-missing-secrets";
/// Attempts to write the Secret while other clients write it too.
const MAX_WRITE_ATTEMPTS: usize = 8;
/// Pause before a failed write is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The Secret that all replicas share.
pub(super) struct SharedSecret {
    secrets: Api<Secret>,
    workspaces: Api<DeserializeGuard<Workspace>>,
    archives: Api<DeserializeGuard<WorkspaceArchive>>,
    namespace: String,
    /// The newest content that was usable and had all long-lived secrets. Empty if this replica has
    /// seen none.
    known: Mutex<IdentityFiles>,
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
        let mut versions = watch_one(&self.secrets, NAME);
        while let Some(version) = versions.next().await {
            match version {
                Ok(Some(secret)) => {
                    let content = files_of(Some(&secret));
                    self.set_known(&content);
                    let damage = checks::unusable(&content);
                    if !damage.is_empty() {
                        let damage = describe_damage(&damage);
                        tracing::warn!(
                            damage,
                            "the Secret {NAME} is damaged; remembering its former content"
                        );
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "failed to watch the Secret {NAME}"),
            }
        }
    }

    /// Restores what is deleted or damaged in the Secret while this replica is the leader. Never
    /// returns.
    pub(super) async fn restore_when_damaged(&self, leadership: &Leadership) {
        let mut versions = watch_one(&self.secrets, NAME);
        while let Some(version) = versions.next().await {
            let mut secret = match version {
                Ok(secret) => secret,
                Err(error) => {
                    tracing::warn!(%error, "failed to watch the Secret {NAME}; retrying");
                    continue;
                }
            };
            loop {
                self.set_known(&files_of(secret.as_ref()));
                let Some(changes) = self.restoration(secret.as_ref()) else { break };
                // The write fails if another leader has restored the Secret in the meantime.
                leadership.wait().await;
                let damage = describe_damage(&damage(secret.as_ref(), &changes));
                match changes.is_empty() {
                    true => tracing::warn!("labels of the Secret {NAME} were removed; writing them back"),
                    false => tracing::warn!(damage, "the Secret {NAME} is damaged; writing values back"),
                }
                match self.write(secret.as_ref(), changes).await {
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
    /// Unusable values are skipped. Writes to the Secret the files that it lacks, and files that are
    /// replaced because they are unusable or too old.
    ///
    /// Fails if a long-lived secret is missing although workspaces exist, unless `create_missing`
    /// is set or the Secret has the annotation [`CREATE_MISSING`]. Fails also, and changes no file,
    /// if a long-lived secret is unusable and this replica has no usable one.
    pub(super) async fn open(
        &self,
        data: &Path,
        create_missing: bool,
    ) -> Result<ControlIdentity, ControlPlaneError> {
        let operation = format!("read or write the Secret {NAME} in namespace {}", self.namespace);
        let failed = |source| ControlPlaneError::cluster(operation.as_str())(source);
        let lost = |loss| LostSecret { namespace: self.namespace.clone(), loss };
        let mut attempts = 0;
        loop {
            let found = self.secrets.get_opt(NAME).await.map_err(failed)?;
            let create = found.as_ref().is_some_and(requests_new_secrets);
            let before = files_of(found.as_ref());
            let usable = self.usable_files(data, &before, create).map_err(lost)?;
            write_files(data, &usable)?;
            let may_create = create_missing
                || create
                || lost_secrets(data).is_empty()
                || !self.has_workspaces().await.map_err(failed)?;
            let missing = if may_create { MissingSecrets::Create } else { MissingSecrets::Refuse };
            let identity = match ControlIdentity::open(data, missing) {
                Err(ControlIdentityError::Lost { files, .. }) => {
                    return Err(lost(SecretLoss::Missing { files, has_secret: found.is_some() }).into());
                }
                opened => opened?,
            };
            let files = read_files(data)?;
            let changed = difference(&files, &before);
            let written = match changed.is_empty() && !create && missing_labels(found.as_ref()).is_empty() {
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

    /// Returns the usable files of the Secret's content, with those that it lacks from memory and
    /// from the data directory. With `create`, they are left out, so that new ones are created.
    fn usable_files(
        &self,
        data: &Path,
        content: &IdentityFiles,
        create: bool,
    ) -> Result<IdentityFiles, SecretLoss> {
        let mut files = content.clone();
        if !create {
            // Files that other users can access are not used.
            let mut on_disk = read_files(data).unwrap_or_default();
            let unusable = checks::unusable(&on_disk);
            on_disk.retain(|name, _| !unusable.contains_key(name));
            files = checks::repaired(&checks::repaired(&files, &self.known()), &on_disk);
        }
        let (mut damage, all) = (checks::unusable(&files), checks::unusable(content));
        let is_ca_key_damaged = damage.contains_key("control/ca.key");
        // All other files are created again.
        damage.retain(|name, _| {
            LONG_LIVED_SECRETS.contains(name) || (*name == "control/ca.pem" && is_ca_key_damaged)
        });
        if !damage.is_empty() {
            return Err(SecretLoss::Unusable { files: damage });
        }
        if !all.is_empty() {
            let damage = describe_damage(&all);
            tracing::warn!(damage, "the Secret {NAME} is damaged; replacing these values");
        }
        let unusable = checks::unusable(&files);
        files.retain(|name, _| !unusable.contains_key(name));
        Ok(files)
    }

    /// Creates the Secret with these files, or adds the files to the Secret in this version. Also
    /// restores labels and removes the request for new secrets. Fails with 409 if another client was
    /// faster.
    async fn write(&self, found: Option<&Secret>, files: IdentityFiles) -> Result<(), Error> {
        let entry = |(name, content)| (secret_key(name).to_owned(), ByteString(content));
        let data: BTreeMap<_, _> = files.into_iter().map(entry).collect();
        let Some(found) = found else {
            let labels = Some(control_plane_labels());
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), labels, ..ObjectMeta::default() };
            let secret = Secret { metadata, data: Some(data), ..Secret::default() };
            return self.secrets.create(&PostParams::default(), &secret).await.map(drop);
        };
        let mut metadata = json!({
            "resourceVersion": found.resource_version(),
            "uid": found.uid(),
            "labels": missing_labels(Some(found)),
        });
        if requests_new_secrets(found) {
            metadata["annotations"] = json!({ CREATE_MISSING: null });
        }
        let patch = Patch::Merge(json!({"metadata": metadata, "data": data}));
        self.secrets.patch(NAME, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Returns the files that must be written to restore the Secret, which may be none if only
    /// labels are missing. `None` if the Secret is complete, or an operator replaces secrets.
    fn restoration(&self, secret: Option<&Secret>) -> Option<IdentityFiles> {
        if secret.is_some_and(|secret| {
            secret.metadata.deletion_timestamp.is_some() || requests_new_secrets(secret)
        }) {
            return None;
        }
        let content = files_of(secret);
        let changes = difference(&checks::repaired(&content, &self.known()), &content);
        (!changes.is_empty() || !missing_labels(secret).is_empty()).then_some(changes)
    }

    /// Remembers the content if it is usable and no long-lived secret is missing in it.
    fn set_known(&self, content: &IdentityFiles) {
        let is_complete = LONG_LIVED_SECRETS.iter().all(|name| content.contains_key(name));
        if is_complete && checks::unusable(content).is_empty() {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            *known = checks::repaired(content, &known);
        }
    }

    fn known(&self) -> IdentityFiles {
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
}

/// Returns whether an operator asks for new secrets in place of those that the Secret lacks.
fn requests_new_secrets(secret: &Secret) -> bool {
    secret.annotations().get(CREATE_MISSING).is_some_and(|value| value == "true")
}

/// Returns the labels that were removed from the Secret. Other programs may set their values.
fn missing_labels(secret: Option<&Secret>) -> BTreeMap<String, String> {
    let Some(secret) = secret else { return BTreeMap::new() };
    let mut labels = control_plane_labels();
    labels.retain(|label, _| !secret.labels().contains_key(label));
    labels
}

/// Returns the files that the Secret contains.
fn files_of(secret: Option<&Secret>) -> IdentityFiles {
    let Some(data) = secret.and_then(|secret| secret.data.as_ref()) else { return IdentityFiles::new() };
    FILES.into_iter().filter_map(|name| Some((name, data.get(secret_key(name))?.0.clone()))).collect()
}

/// Returns the files that are not in `before`, or have another content there.
fn difference(files: &IdentityFiles, before: &IdentityFiles) -> IdentityFiles {
    let mut changed = files.clone();
    changed.retain(|name, content| before.get(name) != Some(content));
    changed
}

/// Says what was wrong with the files of the Secret that `changes` restore.
fn damage(secret: Option<&Secret>, changes: &IdentityFiles) -> BTreeMap<&'static str, &'static str> {
    let unusable = checks::unusable(&files_of(secret));
    changes.keys().map(|name| (*name, unusable.get(name).copied().unwrap_or("is missing"))).collect()
}

/// Writes the files of the data directory, and removes those that are not in `files`. A file that
/// cannot be read stays, so that the start fails with the cause.
fn write_files(data: &Path, files: &IdentityFiles) -> Result<(), SecretFileError> {
    secret_file::create_private_dir(data)?;
    secret_file::create_private_dir(&data.join("control"))?;
    for name in FILES {
        let path = data.join(name);
        match files.get(name) {
            Some(content) => secret_file::write(&path, content)?,
            None if secret_file::read(&path).is_ok() => secret_file::remove(&path)?,
            None => {}
        }
    }
    Ok(())
}

fn read_files(data: &Path) -> Result<IdentityFiles, SecretFileError> {
    let read = |name| Ok(secret_file::read(&data.join(name))?.map(|content| (name, content)));
    FILES.into_iter().filter_map(|name| read(name).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use http::Method;
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;
    use crate::samples;

    /// An API server with a Secret of this content, which workspaces depend on.
    #[derive(Clone)]
    struct ApiServer(Arc<Mutex<Option<Secret>>>);

    impl ApiServer {
        fn new(files: Option<&IdentityFiles>) -> Self {
            Self(Arc::new(Mutex::new(files.map(secret))))
        }

        fn client(&self) -> Client {
            let this = self.clone();
            samples::api_client(move |method, uri| match *method {
                Method::POST => {
                    let labels = json!(control_plane_labels());
                    (201, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"labels": labels}}))
                }
                _ if uri.path().ends_with("workspacearchives") => {
                    samples::api_list(json!([{"metadata": {}}]))
                }
                _ if uri.path().ends_with("secrets") => samples::api_list(json!([this.secret()])),
                _ => match this.secret() {
                    Value::Null => samples::api_not_found(),
                    secret => (200, secret),
                },
            })
        }

        fn secret(&self) -> Value {
            serde_json::to_value(&*self.0.lock().unwrap()).unwrap()
        }
    }

    fn secret(files: &IdentityFiles) -> Secret {
        let entry =
            |(name, content): (&&str, &Vec<u8>)| (secret_key(name).to_owned(), ByteString(content.clone()));
        let metadata = ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(control_plane_labels()),
            ..ObjectMeta::default()
        };
        Secret { metadata, data: Some(files.iter().map(entry).collect()), ..Secret::default() }
    }

    fn damaged(good: &IdentityFiles, names: &[&'static str]) -> IdentityFiles {
        let mut damaged = good.clone();
        damaged.extend(names.iter().map(|name| (*name, b"garbage".to_vec())));
        damaged
    }

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
        secret.set_known(&checks::sample());
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
            () = secret.restore_when_damaged(&leadership) => unreachable!("it never returns"),
            () = renewed => assert!(is_created.load(SeqCst), "the leader writes the Secret back"),
        }
    }

    #[tokio::test]
    async fn unusable_values_are_not_remembered_and_are_restored() {
        let good = checks::sample();
        let replica = SharedSecret::new(&ApiServer::new(None).client(), "podling");
        replica.set_known(&good);
        for names in FILES.map(|name| vec![name]).into_iter().chain([FILES.to_vec()]) {
            let content = damaged(&good, &names);
            replica.set_known(&content);
            assert_eq!(replica.known(), good, "{names:?}");
            let changes = replica.restoration(Some(&secret(&content))).expect("a change");
            let expected: IdentityFiles = names.iter().map(|name| (*name, good[name].clone())).collect();
            assert_eq!(changes, expected);
        }
        let other = checks::sample();
        let mut mixed = good.clone();
        mixed.insert("control/ca.key", other["control/ca.key"].clone());
        replica.set_known(&mixed);
        assert_eq!(replica.known(), good, "a key of another certificate is not remembered");
        let changes = replica.restoration(Some(&secret(&mixed))).expect("a change");
        assert_eq!(changes.into_keys().collect::<Vec<_>>(), ["control/ca.key"]);

        assert_eq!(replica.restoration(Some(&secret(&good))), None);
        let mut requested = secret(&damaged(&good, &["root-token"]));
        requested.annotations_mut().insert(CREATE_MISSING.into(), "true".into());
        assert_eq!(replica.restoration(Some(&requested)), None, "an operator replaces secrets");
        replica.set_known(&other);
        assert_eq!(replica.known(), other, "usable content is remembered");
    }

    #[tokio::test]
    async fn removed_labels_of_the_secret_are_restored() {
        let good = checks::sample();
        let replica = SharedSecret::new(&ApiServer::new(None).client(), "podling");
        replica.set_known(&good);
        let mut labelled = secret(&good);
        labelled.labels_mut().insert("app.kubernetes.io/instance".into(), "argo".into());
        assert_eq!(replica.restoration(Some(&labelled)), None, "labels of other programs stay");
        labelled.labels_mut().remove("app.kubernetes.io/name");
        assert_eq!(replica.restoration(Some(&labelled)), Some(IdentityFiles::new()));
        assert_eq!(missing_labels(Some(&labelled)).len(), 1);
    }

    #[tokio::test]
    async fn start_with_unusable_secret_needs_memory_or_disk() {
        let good = checks::sample();
        for names in FILES.map(|name| vec![name]).into_iter().chain([FILES.to_vec()]) {
            let server = ApiServer::new(Some(&damaged(&good, &names)));
            let directory = tempfile::tempdir().unwrap();
            let data = directory.path().join("data");
            let replica = SharedSecret::new(&server.client(), "podling");
            let opened = replica.open(&data, false).await;
            let lost: Vec<_> = names.iter().filter(|name| LONG_LIVED_SECRETS.contains(name)).collect();
            if lost.is_empty() {
                opened.expect("a derived file is created again");
            } else {
                let error = opened.expect_err("the secret is lost").to_string();
                for name in lost {
                    let key = secret_key(name);
                    let remedy = format!(r#"{{"op":"remove","path":"/data/{key}"}}"#);
                    assert!(
                        error.contains(&format!("{key} is not")) || error.contains("contains no"),
                        "{error}"
                    );
                    assert!(
                        error.contains(&remedy) && error.contains("-n podling annotate secret"),
                        "{error}"
                    );
                }
                assert!(!error.contains("--create-missing-secrets"), "{error}");
                assert!(!data.exists(), "nothing is written");
            }

            let remembering = SharedSecret::new(&server.client(), "podling");
            remembering.set_known(&good);
            remembering.open(&data, false).await.expect("the replica remembers");
            assert_eq!(read_files(&data).unwrap(), good);
            SharedSecret::new(&server.client(), "podling").open(&data, false).await.expect("on disk");
            assert_eq!(read_files(&data).unwrap(), good);
        }
    }
}

//! What all replicas of the control plane have in common and nobody else may know: it lies in a Secret, and is made by whoever comes first. And
//! what everybody may know of it.

use std::{collections::BTreeMap, fs, path::Path};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Error,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::RunError;
use crate::identity::{ControlIdentity, SecretFileError, secret_file};

/// The Secret.
const NAME: &str = "podling-control";
/// What of the data folder is shared; the key of each is its name.
const FILES: [&str; 6] = [
    "root-token",
    "control/token-keys.json",
    "control/ca.pem",
    "control/ca.key",
    "control/tls.pem",
    "control/tls.key",
];

/// Brings the secrets into the data folder: those there are, or new ones, which are there for all from then on.
pub(super) async fn share(client: &Client, namespace: &str, data: &Path) -> Result<(), RunError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |source| RunError::Cluster {
        operation: format!("sharing the secret {NAME}"),
        source: Box::new(source),
    };
    if let Some(found) = secrets.get_opt(NAME).await.map_err(failed)? {
        return write(data, &found);
    }
    drop(ControlIdentity::open(data)?);
    let secret = Secret {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        data: Some(read(data)?),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        // Somebody was faster: theirs count.
        Err(Error::Api(status)) if status.code == 409 => {
            write(data, &secrets.get(NAME).await.map_err(failed)?)
        }
        made => made.map(drop).map_err(failed),
    }
}

/// Tells agents what to check the control plane's certificate against.
pub(super) async fn publish_ca(
    client: &Client,
    namespace: &str,
    name: &str,
    ca: &Path,
) -> Result<(), RunError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let operation = format!("publishing the ConfigMap {name}");
    let text = fs::read_to_string(ca).map_err(|source| SecretFileError::Io {
        operation: "reading",
        path: ca.to_owned(),
        source,
    })?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.pem": text}});
    let done = maps.patch(name, &PatchParams::apply("podling").force(), &Patch::Apply(map)).await;
    done.map(drop).map_err(|source| RunError::Cluster { operation, source: Box::new(source) })
}

/// How the Secret calls a file.
fn key(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn read(data: &Path) -> Result<BTreeMap<String, ByteString>, RunError> {
    let read = |name: &&str| {
        let content = secret_file::read(&data.join(name)).transpose()?;
        Some(content.map(|content| (key(name).to_owned(), ByteString(content))))
    };
    Ok(FILES.iter().filter_map(read).collect::<Result<_, SecretFileError>>()?)
}

fn write(data: &Path, secret: &Secret) -> Result<(), RunError> {
    secret_file::create_private_dir(data)?;
    secret_file::create_private_dir(&data.join("control"))?;
    for name in FILES {
        if let Some(content) = secret.data.as_ref().and_then(|files| files.get(key(name))) {
            secret_file::write(&data.join(name), &content.0)?;
        }
    }
    Ok(())
}

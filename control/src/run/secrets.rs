//! Shares secrets between the replicas of the control plane in a Secret, which the first replica
//! creates. Publishes the CA certificate in a ConfigMap.

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

use super::ControlPlaneError;
use crate::identity::{ControlIdentity, SecretFileError, secret_file};

/// Name of the Secret.
const NAME: &str = "podling-control";
/// Shared files of the data directory. The Secret's keys are their file names.
const FILES: [&str; 6] = [
    "root-token",
    "control/token-keys.json",
    "control/ca.pem",
    "control/ca.key",
    "control/tls.pem",
    "control/tls.key",
];

/// Writes the files of the Secret into the data directory. If the Secret does not exist, creates it
/// from the files of the data directory, and missing files first.
pub(super) async fn sync(client: &Client, namespace: &str, data: &Path) -> Result<(), ControlPlaneError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |source| ControlPlaneError::Cluster {
        operation: format!("read or create the Secret {NAME} in namespace {namespace}"),
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
        // Another replica has created the Secret first. All replicas use that one.
        Err(Error::Api(status)) if status.code == 409 => {
            write(data, &secrets.get(NAME).await.map_err(failed)?)
        }
        made => made.map(drop).map_err(failed),
    }
}

/// Writes the CA certificate, with which agents verify the control plane, to the ConfigMap `name`.
pub(super) async fn publish_ca(
    client: &Client,
    namespace: &str,
    name: &str,
    ca: &Path,
) -> Result<(), ControlPlaneError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let operation = format!("write the ConfigMap {name} in namespace {namespace}");
    let text = fs::read_to_string(ca).map_err(|source| SecretFileError::Io {
        operation: "read",
        path: ca.to_owned(),
        source,
    })?;
    let (metadata, data) = (json!({"name": name}), json!({"ca.pem": text}));
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
    let done = maps.patch(name, &PatchParams::apply("podling").force(), &Patch::Apply(map)).await;
    done.map(drop).map_err(|source| ControlPlaneError::Cluster { operation, source: Box::new(source) })
}

/// Returns the Secret's key for a file, which is the file's name without directories.
fn key(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn read(data: &Path) -> Result<BTreeMap<String, ByteString>, ControlPlaneError> {
    let read = |name: &&str| {
        let content = secret_file::read(&data.join(name)).transpose()?;
        Some(content.map(|content| (key(name).to_owned(), ByteString(content))))
    };
    Ok(FILES.iter().filter_map(read).collect::<Result<_, SecretFileError>>()?)
}

fn write(data: &Path, secret: &Secret) -> Result<(), ControlPlaneError> {
    secret_file::create_private_dir(data)?;
    secret_file::create_private_dir(&data.join("control"))?;
    for name in FILES {
        if let Some(content) = secret.data.as_ref().and_then(|files| files.get(key(name))) {
            secret_file::write(&data.join(name), &content.0)?;
        }
    }
    Ok(())
}

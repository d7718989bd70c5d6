//! Opens buckets by URL. Credentials come from the environment variables that the tools of each
//! cloud use. The URL never contains credentials, because it is logged.

use std::sync::Arc;

use object_store::{
    ObjectStore, ObjectStoreScheme, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, path::Path,
};
use url::Url;

use super::error::OpenStoreError;

/// Returns the bucket's object store, and the prefix that the URL names.
pub(crate) fn open(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), OpenStoreError> {
    // The HTTP client needs an installed TLS provider. This call fails if one is installed already,
    // which is sufficient.
    let _chosen_before = rustls::crypto::ring::default_provider().install_default();
    let unusable = |source| OpenStoreError::Cloud { url: url.to_string(), source };
    let unknown = |problem: String| OpenStoreError::Url { url: url.to_string(), problem };
    let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|error| unknown(error.to_string()))?;
    let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            AmazonS3Builder::from_env().with_url(url.as_str()).build().map(|store| Arc::new(store) as _)
        }
        ObjectStoreScheme::GoogleCloudStorage => GoogleCloudStorageBuilder::from_env()
            .with_url(url.as_str())
            .build()
            .map(|store| Arc::new(store) as _),
        ObjectStoreScheme::MicrosoftAzure => {
            MicrosoftAzureBuilder::from_env().with_url(url.as_str()).build().map(|store| Arc::new(store) as _)
        }
        _ => return Err(unknown("its scheme is not supported".to_owned())),
    };
    Ok((store.map_err(|error| unusable(Box::new(error)))?, prefix))
}

//! The lease: of several control planes in one cluster one decides, and the others stand by.
//!
//! Whoever holds it renews it, and stops acting by its own clock before anybody else may try_acquire it; it goes on where it is still its own afterwards. One that stood still meanwhile finds out by the
//! same clock, and by the versions of what it wants to write. Others go by how long they have seen the lease unchanged (or gone), so that
//! nobody's clock has to be right. Where it went with its namespace no other can be made, and its permanent holder goes on.
//!
//! Must not know what is decided.

mod leadership;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease as Resource, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{ObjectMeta, PostParams},
    core::Status,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::leadership::LEADERSHIP_VALID;
pub use self::leadership::Leadership;

/// The resource.
const NAME: &str = "podling-control";
/// Unchanged for so long, it is anybody's.
const LEASE_DURATION: Duration = Duration::from_secs(8);
/// Its holder renews it so often, and looks at it no more often while it is another's.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// For the API server to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Its holder stands for so long without a renewal, and does nothing meanwhile: then it ends, so that where only its own way to the API server is
/// broken, agents come to who can decide before they count as silent.
const RENEWAL_FAILURE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Where its holder is reached by the others; how long control planes have watched, milliseconds.
const ADDRESS: &str = "podling.dev/address";
const OBSERVED_TIME: &str = "podling.dev/witnessed-ms";

/// One who wants it.
pub struct LeaseCandidate {
    leases: Api<Resource>,
    identity: String,
    address: Option<String>,
    holder: watch::Sender<Option<String>>,
}

/// It is ours.
pub struct Leader {
    candidate: LeaseCandidate,
    resource: Mutex<Resource>,
    leadership: Arc<Leadership>,
}

/// It is not ours any more, or may not be.
#[derive(Debug, thiserror::Error)]
#[error("another control plane may have taken over: {0}")]
pub struct LeadershipLost(String);

impl LeaseCandidate {
    /// In this namespace. The identity is one run's, so that nobody takes another's lease for their own. `address`: where the others reach us.
    pub fn new(client: Client, namespace: &str, identity: String, address: Option<String>) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity,
            address,
            holder: watch::Sender::new(None),
        }
    }

    /// Where its holder is, as far as anybody has said.
    pub fn holder(&self) -> watch::Receiver<Option<String>> {
        self.holder.subscribe()
    }

    /// Waits until it is ours.
    pub async fn acquire(self) -> Leader {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let begun = Instant::now();
            match self.leases.get_opt(NAME).await {
                Ok(lease) => {
                    let version = lease.as_ref().and_then(ResourceExt::resource_version);
                    let since =
                        seen.as_ref().filter(|(of, _)| *of == version).map_or(begun, |(_, since)| *since);
                    // One that was deleted is still its holder's, who may not know yet. (Who has never seen one takes it: a first start waits for nobody.)
                    let is_nobodys = lease.as_ref().map_or(seen.is_none(), |lease| holder(lease).is_empty());
                    if let Some(lease) = &lease {
                        self.publish_holder(lease);
                    }
                    if lease.is_some() || seen.is_some() {
                        seen = Some((version, since));
                    }
                    let is_free = is_nobodys || begun.duration_since(since) >= LEASE_DURATION;
                    if is_free && let Some(acquired) = self.try_acquire(begun, lease).await {
                        return self.into_leader(acquired, begun);
                    }
                }
                Err(error) => tracing::warn!(%error, "the lease cannot be read"),
            }
            sleep(POLL_INTERVAL.mul_f64(0.75 + fastrand::f64() / 4.0)).await;
        }
    }

    /// Tells where its holder is.
    fn publish_holder(&self, lease: &Resource) {
        let address = lease.annotations().get(ADDRESS).cloned().filter(|_| !holder(lease).is_empty());
        self.holder.send_if_modified(|known| {
            let news = *known != address;
            *known = address;
            news
        });
    }

    /// Takes it, unless somebody else is faster.
    async fn try_acquire(&self, now: Instant, old: Option<Resource>) -> Option<Resource> {
        let transitions = old.as_ref().and_then(|old| old.spec.as_ref()?.lease_transitions).unwrap_or(0) + 1;
        let observed_time = old.as_ref().map(observed_time).unwrap_or_default();
        let exists = old.is_some();
        let metadata = old.map_or_else(lease_metadata, |old| old.metadata);
        let spec = LeaseSpec {
            acquire_time: Some(time()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let lease = self.renewed(Resource { metadata, spec: Some(spec) }, observed_time);
        let taken = match exists {
            true => self.leases.replace(NAME, &PostParams::default(), &lease).await,
            false => self.leases.create(&PostParams::default(), &lease).await,
        };
        match taken {
            Ok(lease) if now.elapsed() < LEADERSHIP_VALID => Some(lease),
            Ok(_) => None,
            Err(Error::Api(status)) if status.code == 409 => None,
            Err(error) => {
                tracing::warn!(%error, "the lease cannot be taken");
                None
            }
        }
    }

    fn renewed(&self, mut lease: Resource, observed_time: Duration) -> Resource {
        let mut annotations =
            BTreeMap::from([(OBSERVED_TIME.to_owned(), observed_time.as_millis().to_string())]);
        annotations.extend(self.address.clone().map(|address| (ADDRESS.to_owned(), address)));
        lease.metadata.annotations = Some(annotations);
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(LEASE_DURATION.as_secs() as i32);
        spec.renew_time = Some(time());
        lease
    }

    fn into_leader(self, resource: Resource, begun: Instant) -> Leader {
        tracing::info!(identity = self.identity, "this control plane decides");
        let leadership = Leadership::begun(begun, observed_time(&resource));
        Leader { candidate: self, resource: Mutex::new(resource), leadership: Arc::new(leadership) }
    }
}

impl Leader {
    /// Whether it is still ours, for whoever acts.
    pub fn leadership(&self) -> Arc<Leadership> {
        self.leadership.clone()
    }

    /// Renews it for as long as it is nobody else's. Where the API server does not answer nobody can try_acquire it: nothing is done then that wants it, and
    /// what is served goes on being served.
    pub async fn renew_until_lost(&self) -> LeadershipLost {
        loop {
            let begun = Instant::now();
            match self.renew(begun).await {
                Ok(true) => {}
                Ok(false) => return LeadershipLost("the lease is another's".into()),
                Err(problem) if self.leadership.since_renewal() >= RENEWAL_FAILURE_LIMIT => {
                    return LeadershipLost(problem);
                }
                Err(problem) => tracing::warn!(problem, "the lease cannot be renewed"),
            }
            sleep(RENEW_INTERVAL).await;
        }
    }

    /// Whether it is ours; if so, from this moment on.
    async fn renew(&self, begun: Instant) -> Result<bool, String> {
        let renewed = self.candidate.renewed(self.resource(), self.leadership.observed_time());
        match timeout(REQUEST_TIMEOUT, self.write(renewed)).await {
            Ok(Ok(())) => {
                self.leadership.renew(begun);
                Ok(true)
            }
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => {
                timeout(REQUEST_TIMEOUT, self.recheck_holder(begun))
                    .await
                    .unwrap_or_else(|_| Err(timeout_error()))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(timeout_error()),
        }
    }

    /// Whether it is ours, though it is not as we wrote it permanent.
    async fn recheck_holder(&self, begun: Instant) -> Result<bool, String> {
        let leases = &self.candidate.leases;
        match leases.get_opt(NAME).await {
            Ok(Some(now)) if holder(&now) == self.candidate.identity => {
                self.set_resource(now);
                Err("it was written, and the answer was lost".to_owned())
            }
            Ok(Some(_)) => Ok(false),
            // It may have been another's meanwhile.
            Ok(None) if !self.leadership.is_leader() => Ok(false),
            Ok(None) => {
                let anew = Resource { metadata: lease_metadata(), spec: None };
                let anew = self.candidate.renewed(anew, self.leadership.observed_time());
                match leases.create(&PostParams::default(), &anew).await {
                    Ok(made) => {
                        self.set_resource(made);
                        Err("somebody had deleted it".to_owned())
                    }
                    Err(Error::Api(status)) if is_namespace_terminating(&status) => {
                        self.leadership.set_permanent(begun);
                        Ok(true)
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Gives it up, so that nobody has to wait for its end.
    pub async fn release(&self) {
        let mut lease = self.candidate.renewed(self.resource(), self.leadership.observed_time());
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        if let Err(error) = self.write(lease).await {
            tracing::warn!(%error, "the lease could not be given up; another control plane takes over when it ends");
        }
    }

    fn resource(&self) -> Resource {
        self.resource.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn write(&self, lease: Resource) -> Result<(), Error> {
        let written = self.candidate.leases.replace(NAME, &PostParams::default(), &lease).await?;
        self.set_resource(written);
        Ok(())
    }

    fn set_resource(&self, lease: Resource) {
        *self.resource.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("identity", &self.candidate.identity).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LeaseCandidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseCandidate").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn lease_metadata() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }
}

/// The namespace takes nothing new.
fn is_namespace_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn timeout_error() -> String {
    format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())
}

fn holder(lease: &Resource) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn observed_time(lease: &Resource) -> Duration {
    let millis = lease.annotations().get(OBSERVED_TIME).and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or(0))
}

fn time() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}

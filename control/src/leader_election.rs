//! Leader election by a Kubernetes Lease. One replica of the control plane acts, the others stand
//! by.
//!
//! The leader renews the Lease. If renewals fail, the leader stops acting before another replica
//! may take the Lease. It acts again if it then still holds the Lease. It measures this with its
//! monotonic clock, so that a leader that was suspended notices too. Candidates measure how long
//! they have seen the Lease unchanged or missing. Therefore no wall clock needs to be correct.
//! While the namespace is being deleted, no new Lease can be created, and the last leader
//! continues.
//!
//! Written by hand, because the libraries for Leases (kubert, kube-leader-election) measure the age
//! of a Lease by the wall clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

use crate::kubernetes::objects::control_plane_labels;

/// Name of the Lease resource.
const NAME: &str = "podling-control";
/// Time without a change of the Lease after which a candidate takes it.
const LEASE_DURATION: Duration = Duration::from_secs(8);
/// Interval between the leader's renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Deadline for one call to the API server while the Lease is renewed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Time without a successful renewal after which the process ends. During this time it does not
/// act. If only its own connection to the API server is broken, its agents then reconnect to the
/// new leader, which restarts silent agents after 10 minutes.
const RENEWAL_FAILURE_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Annotation of the Lease with the address at which other replicas reach the leader.
const ADDRESS: &str = "podling.dev/address";
/// Annotation of the Lease with the observed time, in milliseconds.
const OBSERVED_TIME: &str = "podling.dev/observed-time-ms";
/// Annotation that earlier versions wrote in place of [`OBSERVED_TIME`]. Only read.
const FORMER_OBSERVED_TIME: &str = "podling.dev/witnessed-ms";
/// Time after a renewal in which the leader may act. The Lease lasts 2 s longer, so that a call in
/// progress can end before another replica acts.
const LEADERSHIP_VALIDITY: Duration = Duration::from_secs(6);
/// Interval at which [`Leadership::wait`] checks the leadership, which returns if the API server
/// was unreachable for a while.
const LEADERSHIP_POLL: Duration = Duration::from_millis(250);

/// A control plane that tries to acquire the Lease.
#[derive(Debug)]
pub struct LeaseCandidate {
    leases: Api<Resource>,
    identity: String,
    address: Option<String>,
    holder_address: watch::Sender<Option<String>>,
}

/// A control plane that has acquired the Lease.
#[derive(Debug)]
pub struct Leader {
    candidate: LeaseCandidate,
    resource: Mutex<Resource>,
    leadership: Arc<Leadership>,
}

/// The process must end, because another replica has the Lease or may take it.
#[derive(Debug, thiserror::Error)]
#[error("lost the leadership: {0}")]
pub struct LeadershipLost(String);

impl LeaseCandidate {
    /// Creates a candidate. `identity` is unique for each run, so that a restarted process does not
    /// mistake the Lease of an earlier run for its own. Other replicas reach this process at
    /// `address`.
    pub fn new(client: Client, namespace: &str, identity: String, address: Option<String>) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity,
            address,
            holder_address: watch::Sender::new(None),
        }
    }

    /// Returns a receiver of the current leader's address, which is `None` while it is not known.
    pub fn holder_address(&self) -> watch::Receiver<Option<String>> {
        self.holder_address.subscribe()
    }

    /// Waits until this process holds the Lease. Retries errors of the API server.
    pub async fn acquire(self) -> Leader {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let sent_at = Instant::now();
            match self.leases.get_opt(NAME).await {
                Ok(lease) => {
                    let version = lease.as_ref().and_then(ResourceExt::resource_version);
                    let since =
                        seen.as_ref().filter(|(of, _)| *of == version).map_or(sent_at, |(_, since)| *since);
                    // If the Lease was deleted, its holder may still act. Only a candidate that has
                    // never seen a Lease creates a missing one at once.
                    let is_unheld =
                        lease.as_ref().map_or(seen.is_none(), |lease| holder_identity(lease).is_empty());
                    if let Some(lease) = &lease {
                        self.publish_holder(lease);
                    }
                    if lease.is_some() || seen.is_some() {
                        seen = Some((version, since));
                    }
                    let is_free = is_unheld || sent_at.duration_since(since) >= LEASE_DURATION;
                    if is_free && let Some(acquired) = self.try_acquire(sent_at, lease).await {
                        return self.into_leader(acquired, sent_at);
                    }
                }
                Err(error) => tracing::warn!(%error, "failed to read the lease"),
            }
            sleep(POLL_INTERVAL.mul_f64(0.75 + fastrand::f64() / 4.0)).await;
        }
    }

    /// Publishes the address of the Lease's holder to subscribers of [`Self::holder_address`].
    fn publish_holder(&self, lease: &Resource) {
        let held = lease.annotations().get(ADDRESS).filter(|_| !holder_identity(lease).is_empty());
        // A holder at this process's own address is an earlier process of this container. It has
        // ended, and forwarding to it would connect this process to itself.
        let address = held.filter(|address| Some(*address) != self.address.as_ref()).cloned();
        self.holder_address.send_if_modified(|known| {
            let changed = *known != address;
            *known = address;
            changed
        });
    }

    /// Takes the Lease. Returns `None` if another candidate was faster, or if the call failed or
    /// took too long.
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
        let lease = self.renewed_lease(Resource { metadata, spec: Some(spec) }, observed_time);
        let taken = match exists {
            true => self.leases.replace(NAME, &PostParams::default(), &lease).await,
            false => self.leases.create(&PostParams::default(), &lease).await,
        };
        match taken {
            Ok(lease) if now.elapsed() < LEADERSHIP_VALIDITY => Some(lease),
            Ok(_) => None,
            Err(Error::Api(status)) if status.code == 409 => None,
            Err(error) => {
                tracing::warn!(%error, "failed to acquire the lease");
                None
            }
        }
    }

    fn renewed_lease(&self, mut lease: Resource, observed_time: Duration) -> Resource {
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

    fn into_leader(self, resource: Resource, sent_at: Instant) -> Leader {
        tracing::info!(identity = self.identity, "became the leader");
        let leadership = Leadership::new(sent_at, observed_time(&resource));
        Leader { candidate: self, resource: Mutex::new(resource), leadership: Arc::new(leadership) }
    }
}

impl Leader {
    /// Returns the handle with which other components check for leadership before they act.
    pub fn leadership(&self) -> Arc<Leadership> {
        self.leadership.clone()
    }

    /// Renews the Lease until another replica holds it, or until `RENEWAL_FAILURE_LIMIT` has passed
    /// without a renewal. While the API server is unreachable, no replica can take the Lease. This
    /// process then makes no writes, but it still serves connections.
    pub async fn renew_until_lost(&self) -> LeadershipLost {
        loop {
            let sent_at = Instant::now();
            match self.renew(sent_at).await {
                Ok(true) => {}
                Ok(false) => return LeadershipLost("another control plane holds the lease".into()),
                Err(problem) if self.leadership.since_renewal() >= RENEWAL_FAILURE_LIMIT => {
                    return LeadershipLost(problem);
                }
                Err(problem) => tracing::warn!(problem, "failed to renew the lease"),
            }
            sleep(RENEW_INTERVAL).await;
        }
    }

    /// Renews the Lease. Returns whether this process still holds it. A successful renewal is valid
    /// from `sent_at`. An error means that the holder is not known.
    async fn renew(&self, sent_at: Instant) -> Result<bool, String> {
        let renewed = self.candidate.renewed_lease(self.resource(), self.leadership.observed_time());
        match timeout(REQUEST_TIMEOUT, self.write(renewed)).await {
            Ok(Ok(())) => {
                self.leadership.renew(sent_at);
                Ok(true)
            }
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => {
                timeout(REQUEST_TIMEOUT, self.recheck_holder(sent_at))
                    .await
                    .unwrap_or_else(|_| Err(timeout_error()))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(timeout_error()),
        }
    }

    /// Reads the Lease after a conflicting write, because this process may still hold it. Creates
    /// the Lease again if it was deleted.
    async fn recheck_holder(&self, sent_at: Instant) -> Result<bool, String> {
        let leases = &self.candidate.leases;
        match leases.get_opt(NAME).await {
            Ok(Some(now)) if holder_identity(&now) == self.candidate.identity => {
                self.set_resource(now);
                Err("the lease was renewed, but the response was lost".to_owned())
            }
            Ok(Some(_)) => Ok(false),
            // Another replica may have held the Lease in the meantime.
            Ok(None) if !self.leadership.is_leader() => Ok(false),
            Ok(None) => {
                let recreated = Resource { metadata: lease_metadata(), spec: None };
                let recreated = self.candidate.renewed_lease(recreated, self.leadership.observed_time());
                match leases.create(&PostParams::default(), &recreated).await {
                    Ok(created) => {
                        self.set_resource(created);
                        Err("the Lease was deleted and has been created again".to_owned())
                    }
                    Err(Error::Api(status)) if is_namespace_terminating(&status) => {
                        self.leadership.set_permanent(sent_at);
                        Ok(true)
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Releases the Lease, so that the next leader need not wait until it expires.
    pub async fn release(&self) {
        let mut lease = self.candidate.renewed_lease(self.resource(), self.leadership.observed_time());
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        if let Err(error) = self.write(lease).await {
            tracing::warn!(%error, "failed to release the lease; another replica takes over when it expires");
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

fn lease_metadata() -> ObjectMeta {
    let labels = Some(control_plane_labels());
    ObjectMeta { name: Some(NAME.to_owned()), labels, ..ObjectMeta::default() }
}

/// Returns whether a creation failed because the namespace is being deleted.
fn is_namespace_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn timeout_error() -> String {
    format!("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())
}

fn holder_identity(lease: &Resource) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn observed_time(lease: &Resource) -> Duration {
    let annotation = |name| lease.annotations().get(name);
    let millis = annotation(OBSERVED_TIME).or_else(|| annotation(FORMER_OBSERVED_TIME));
    let millis = millis.and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or(0))
}

fn time() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}

/// The leadership of this process, which expires unless it is renewed. All components that act
/// share it.
#[derive(Debug)]
pub struct Leadership(Mutex<LeadershipState>);

#[derive(Debug, Clone, Copy)]
struct LeadershipState {
    renewed_at: Instant,
    /// Whether the leadership never expires, because no other replica can become the leader.
    permanent: bool,
    /// Observed time, added up over all runs of the control plane.
    observed_time: Duration,
}

impl Leadership {
    /// Creates a leadership that was acquired at `acquired_at`. `observed_time` comes from the
    /// Lease.
    pub(crate) fn new(acquired_at: Instant, observed_time: Duration) -> Self {
        let state = LeadershipState { renewed_at: acquired_at, permanent: false, observed_time };
        Self(Mutex::new(state))
    }

    /// Returns the leadership of a control plane without other replicas, which never expires.
    pub fn permanent() -> Arc<Self> {
        let leadership = Self::new(Instant::now(), Duration::ZERO);
        leadership.lock().permanent = true;
        Arc::new(leadership)
    }

    /// Returns whether this process is the leader: no other replica can have taken over yet.
    pub fn is_leader(&self) -> bool {
        let state = self.lock();
        state.permanent || state.renewed_at.elapsed() < LEADERSHIP_VALIDITY
    }

    /// Waits until this process is the leader. Returns at once if it is. Cancel-safe.
    pub async fn wait(&self) {
        while !self.is_leader() {
            sleep(LEADERSHIP_POLL).await;
        }
    }

    fn since_renewal(&self) -> Duration {
        self.lock().renewed_at.elapsed()
    }

    pub(crate) fn renew(&self, at: Instant) {
        let mut state = self.lock();
        (state.renewed_at, state.permanent) = (at, false);
    }

    /// Makes the leadership permanent. Called when the Lease was deleted with its namespace while
    /// this process was the leader. No replica can create another Lease there, so this process
    /// remains the leader and can release the namespace's objects.
    fn set_permanent(&self, at: Instant) {
        let mut state = self.lock();
        if !state.permanent {
            tracing::warn!("the namespace is being deleted with the lease; this process stays the leader");
        }
        (state.renewed_at, state.permanent) = (at, true);
    }

    /// Returns the observed time, added up over all runs of the control plane.
    pub fn observed_time(&self) -> Duration {
        self.lock().observed_time
    }

    /// Sets the observed time. The next renewal writes it to the Lease.
    pub fn set_observed_time(&self, observed_time: Duration) {
        self.lock().observed_time = observed_time;
    }

    fn lock(&self) -> MutexGuard<'_, LeadershipState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

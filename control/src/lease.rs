//! The lease: of several control planes in one cluster one decides, and the others stand by.
//!
//! Whoever holds it renews it, and stops acting by its own clock before anybody else may take it; it goes on where it is still its own afterwards. One that stood still meanwhile finds out by the
//! same clock, and by the versions of what it wants to write. Others go by how long they have seen the lease unchanged (or gone), so that
//! nobody's clock has to be right. Where it went with its namespace no other can be made, and its last holder goes on.
//!
//! Must not know what is decided.

mod term;

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

use self::term::ACTS_FOR;
pub use self::term::Term;

/// The resource.
const NAME: &str = "podling-control";
/// Unchanged for so long, it is anybody's.
const LASTS: Duration = Duration::from_secs(8);
/// Its holder renews it so often, and looks at it no more often while it is another's.
const RENEWED_EVERY: Duration = Duration::from_secs(2);
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);
/// For the API server to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// Its holder stands for so long without a renewal, and does nothing meanwhile: then it ends, so that where only its own way to the API server is
/// broken, agents come to who can decide before they count as silent.
const STANDS_FOR: Duration = Duration::from_secs(5 * 60);

/// Where its holder is reached by the others; how long control planes have watched, milliseconds.
const ADDRESS: &str = "podling.dev/address";
const WITNESSED: &str = "podling.dev/witnessed-ms";

/// One who wants it.
pub struct Candidate {
    leases: Api<Resource>,
    identity: String,
    address: Option<String>,
    holder: watch::Sender<Option<String>>,
}

/// It is ours.
pub struct Held {
    candidate: Candidate,
    resource: Mutex<Resource>,
    term: Arc<Term>,
}

/// It is not ours any more, or may not be.
#[derive(Debug, thiserror::Error)]
#[error("another control plane may have taken over: {0}")]
pub struct Lost(String);

impl Candidate {
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
    pub async fn acquire(self) -> Held {
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
                        self.is_held(lease);
                    }
                    if lease.is_some() || seen.is_some() {
                        seen = Some((version, since));
                    }
                    let is_free = is_nobodys || begun.duration_since(since) >= LASTS;
                    if is_free && let Some(held) = self.take(begun, lease).await {
                        return self.held(held, begun);
                    }
                }
                Err(error) => tracing::warn!(%error, "the lease cannot be read"),
            }
            sleep(LOOKED_AT_EVERY.mul_f64(0.75 + fastrand::f64() / 4.0)).await;
        }
    }

    /// Tells where its holder is.
    fn is_held(&self, lease: &Resource) {
        let address = lease.annotations().get(ADDRESS).cloned().filter(|_| !holder(lease).is_empty());
        self.holder.send_if_modified(|known| {
            let news = *known != address;
            *known = address;
            news
        });
    }

    /// Takes it, unless somebody else is faster.
    async fn take(&self, now: Instant, old: Option<Resource>) -> Option<Resource> {
        let transitions = old.as_ref().and_then(|old| old.spec.as_ref()?.lease_transitions).unwrap_or(0) + 1;
        let witnessed = old.as_ref().map(witnessed).unwrap_or_default();
        let exists = old.is_some();
        let metadata = old.map_or_else(named, |old| old.metadata);
        let spec = LeaseSpec {
            acquire_time: Some(time()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let lease = self.renewed(Resource { metadata, spec: Some(spec) }, witnessed);
        let taken = match exists {
            true => self.leases.replace(NAME, &PostParams::default(), &lease).await,
            false => self.leases.create(&PostParams::default(), &lease).await,
        };
        match taken {
            Ok(lease) if now.elapsed() < ACTS_FOR => Some(lease),
            Ok(_) => None,
            Err(Error::Api(status)) if status.code == 409 => None,
            Err(error) => {
                tracing::warn!(%error, "the lease cannot be taken");
                None
            }
        }
    }

    fn renewed(&self, mut lease: Resource, witnessed: Duration) -> Resource {
        let mut annotations = BTreeMap::from([(WITNESSED.to_owned(), witnessed.as_millis().to_string())]);
        annotations.extend(self.address.clone().map(|address| (ADDRESS.to_owned(), address)));
        lease.metadata.annotations = Some(annotations);
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(LASTS.as_secs() as i32);
        spec.renew_time = Some(time());
        lease
    }

    fn held(self, resource: Resource, begun: Instant) -> Held {
        tracing::info!(identity = self.identity, "this control plane decides");
        let term = Term::begun(begun, witnessed(&resource));
        Held { candidate: self, resource: Mutex::new(resource), term: Arc::new(term) }
    }
}

impl Held {
    /// Whether it is still ours, for whoever acts.
    pub fn term(&self) -> Arc<Term> {
        self.term.clone()
    }

    /// Renews it for as long as it is nobody else's. Where the API server does not answer nobody can take it: nothing is done then that wants it, and
    /// what is served goes on being served.
    pub async fn keep(&self) -> Lost {
        loop {
            let begun = Instant::now();
            match self.renew(begun).await {
                Ok(true) => {}
                Ok(false) => return Lost("the lease is another's".into()),
                Err(problem) if self.term.unrenewed() >= STANDS_FOR => return Lost(problem),
                Err(problem) => tracing::warn!(problem, "the lease cannot be renewed"),
            }
            sleep(RENEWED_EVERY).await;
        }
    }

    /// Whether it is ours; if so, from this moment on.
    async fn renew(&self, begun: Instant) -> Result<bool, String> {
        let renewed = self.candidate.renewed(self.resource(), self.term.witnessed());
        match timeout(ANSWERED_WITHIN, self.write(renewed)).await {
            Ok(Ok(())) => {
                self.term.renew(begun);
                Ok(true)
            }
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => {
                timeout(ANSWERED_WITHIN, self.look_again(begun)).await.unwrap_or_else(|_| Err(unanswered()))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(unanswered()),
        }
    }

    /// Whether it is ours, though it is not as we wrote it last.
    async fn look_again(&self, begun: Instant) -> Result<bool, String> {
        let leases = &self.candidate.leases;
        match leases.get_opt(NAME).await {
            Ok(Some(now)) if holder(&now) == self.candidate.identity => {
                self.is_now(now);
                Err("it was written, and the answer was lost".to_owned())
            }
            Ok(Some(_)) => Ok(false),
            // It may have been another's meanwhile.
            Ok(None) if !self.term.is_ours() => Ok(false),
            Ok(None) => {
                let anew = Resource { metadata: named(), spec: None };
                let anew = self.candidate.renewed(anew, self.term.witnessed());
                match leases.create(&PostParams::default(), &anew).await {
                    Ok(made) => {
                        self.is_now(made);
                        Err("somebody had deleted it".to_owned())
                    }
                    Err(Error::Api(status)) if is_ending(&status) => {
                        self.term.is_the_last(begun);
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
        let mut lease = self.candidate.renewed(self.resource(), self.term.witnessed());
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
        self.is_now(written);
        Ok(())
    }

    fn is_now(&self, lease: Resource) {
        *self.resource.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("identity", &self.candidate.identity).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn named() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }
}

/// The namespace takes nothing new.
fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn unanswered() -> String {
    format!("no answer within {} s", ANSWERED_WITHIN.as_secs())
}

fn holder(lease: &Resource) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn witnessed(lease: &Resource) -> Duration {
    let millis = lease.annotations().get(WITNESSED).and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or(0))
}

fn time() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}

//! Watches of the API server, and the pauses between attempts to reach it.

use std::{fmt::Debug, time::Duration};

use backon::ExponentialBuilder;
use futures_util::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Error, Event, ExponentialBackoff, watch_object, watcher},
    },
};
use serde::de::DeserializeOwned;

/// Bounds of a watch's pause, without the random part.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Until a watch has reconnected, the control plane notices no change of the cluster. kube's own
/// backoff grows to 60 s, so a short outage of the API server would last a minute longer here.
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// Follows the objects that `config` selects. Reconnects after errors and never ends.
pub(crate) fn watch_all<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<Event<K>, Error>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).backoff(backoff()).boxed()
}

/// Follows the object of this name; `None` while it does not exist. Reconnects after errors and
/// never ends.
pub(crate) fn watch_one<K>(api: &Api<K>, name: &str) -> BoxStream<'static, Result<Option<K>, Error>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_object(api.clone(), name).backoff(backoff()).boxed()
}

/// Returns an iterator over the pauses of a watch. It never ends.
pub(crate) fn backoff() -> ExponentialBackoff {
    backoff_within(MIN_PAUSE, MAX_PAUSE)
}

/// Returns an iterator over pauses that double from `min` to `max`. It never ends. Up to the whole
/// pause is added at random, so that clients do not all retry at the same time.
pub(crate) fn backoff_within(min: Duration, max: Duration) -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(min).with_max_delay(max);
    builder.with_jitter().without_max_times().into()
}

#[cfg(test)]
mod tests {
    use kube::runtime::utils::Backoff;

    use super::*;

    #[test]
    fn watch_reconnects_within_seconds_even_after_a_long_outage() {
        let mut backoff = backoff();
        let pauses: Vec<_> = backoff.by_ref().take(100).collect();
        assert_eq!(pauses.len(), 100, "it never ends");
        assert!(pauses[0] <= MIN_PAUSE * 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(6)), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next().expect("it never ends") <= MIN_PAUSE * 2);
    }
}

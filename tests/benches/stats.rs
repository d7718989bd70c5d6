//! Samples of one row, from interleaved rounds, and their summary.

use std::fmt;

/// Samples of one quantity, in the order of the rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

/// Median, minimum and maximum of samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Samples {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the sample at this quantile (0 to 1). NaN if there is no sample.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((quantile * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary { median: self.quantile(0.5), low: self.quantile(0.0), high: self.quantile(1.0) }
    }

    /// Returns the summary of the ratios to the peer, round by round, so that a drift of the
    /// machine's speed does not distort them.
    pub(crate) fn ratio(&self, peer: &Self) -> Summary {
        Self(self.0.iter().zip(&peer.0).map(|(ours, theirs)| ours / theirs).collect()).summary()
    }

    /// Returns the differences to the peer, round by round.
    pub(crate) fn less(&self, peer: &Self) -> Self {
        self.0.iter().zip(&peer.0).map(|(ours, theirs)| ours - theirs).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median >= 100.0 {
            0
        } else if self.median >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.low, self.high)
    }
}

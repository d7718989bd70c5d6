//! Samples of one row, gathered over interleaved rounds, and what is quoted of them. Knows nothing of what was measured.

use std::fmt;

/// One figure, measured again and again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

/// A median with the spread it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quoted {
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

    /// The value below which this share of the samples lies.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn quoted(&self) -> Quoted {
        Quoted { median: self.quantile(0.5), low: self.quantile(0.0), high: self.quantile(1.0) }
    }

    /// Round by round, so that a machine whose speed drifts does not distort the ratio.
    pub(crate) fn ratio(&self, peer: &Self) -> Quoted {
        Self(self.0.iter().zip(&peer.0).map(|(ours, theirs)| ours / theirs).collect()).quoted()
    }

    /// What it is more than the peer, round by round.
    pub(crate) fn less(&self, peer: &Self) -> Self {
        self.0.iter().zip(&peer.0).map(|(ours, theirs)| ours - theirs).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl fmt::Display for Quoted {
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

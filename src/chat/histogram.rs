//! Durations, counted by how long they are.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How many durations were at most so long, for each of some bounds. Written and read by anyone at once.
#[derive(Debug)]
pub struct Histogram {
    /// In seconds, ascending.
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramCounts {
    /// In seconds, the last one infinite, with how many lie between it and the one before it.
    pub buckets: Vec<(f64, u64)>,
    /// Of all durations, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// With nothing in it.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, nanos: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, duration: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < duration.as_secs_f64());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What is in it.
    pub fn read(&self) -> HistogramCounts {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.counts).map(|(bound, count)| (bound, count.load(Ordering::Relaxed))).collect();
        HistogramCounts { buckets, sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64() }
    }
}

impl HistogramCounts {
    /// Of all durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::new(&[0.5, 2.0]);
        for millis in [0, 500, 501, 2000, 2001, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let counts = histogram.read();
        assert_eq!(counts.buckets, [(0.5, 2), (2.0, 2), (f64::INFINITY, 2)]);
        assert_eq!((counts.count(), counts.sum), (6, 65.002));
    }
}

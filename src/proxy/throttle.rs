//! How much of their usual pace clients that can wait should keep, told with every answer.
//!
//! One relaxed load a request, and nothing else while there is enough of everything.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use arc_swap::ArcSwap;

use crate::spec::pressure::Strain;

/// The name of the header; it is there only while the pace is less than whole.
pub(super) const NAME: &str = "x-slotd-throttle";

/// What is told. The runtime sets it, requests read it.
#[derive(Debug)]
pub struct Throttle {
    percent: AtomicU8,
    strain: ArcSwap<Strain>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { percent: AtomicU8::new(100), strain: ArcSwap::default() }
    }
}

impl Throttle {
    /// Tells from here on what this strain allows.
    pub fn set(&self, strain: &Strain) {
        self.percent.store(strain.throttle_percent(), Ordering::Relaxed);
        self.strain.store(Arc::new(strain.clone()));
    }

    /// Returns the header's value: a number from 0 to 1 without 1.
    pub(super) fn header(&self) -> Option<&'static str> {
        match self.percent.load(Ordering::Relaxed) {
            100.. => None,
            75..100 => Some("0.75"),
            50..75 => Some("0.5"),
            25..50 => Some("0.25"),
            0..25 => Some("0"),
        }
    }

    /// Returns how short the machine is, for metrics.
    pub(super) fn strain(&self) -> Arc<Strain> {
        self.strain.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::pressure::Pressure;

    #[test]
    fn a_whole_pace_is_not_told() {
        let throttle = Throttle::default();
        assert_eq!(throttle.header(), None);
        throttle.set(&Strain { cpu: Pressure::Elevated, ..Strain::default() });
        assert_eq!(throttle.header(), Some("0.5"));
        throttle.set(&Strain { memory: Pressure::Critical, ..Strain::default() });
        assert_eq!(throttle.header(), Some("0"));
        throttle.set(&Strain::default());
        assert_eq!(throttle.header(), None);
    }
}

//! Looks at disks that may not answer: one at a time of each thing, each with a deadline.
//!
//! A thread that hangs on a dead mount cannot be ended. That is why there is never a second one for the same
//! thing: who comes later waits for the first, and hears that nothing is known when that takes too long.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as Lock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// Looks at one thing.
#[derive(Debug)]
pub(super) struct Look<T>(Mutex<Option<JoinHandle<T>>>);

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Send + 'static> Look<T> {
    /// Looks once those before have looked; `None` is not known, or not in time.
    pub(super) async fn at(
        &self,
        patience: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let looking = async {
            let mut running = self.0.lock().await;
            // One that whoever asked for it has given up: what it saw is old.
            if let Some(earlier) = running.as_mut() {
                drop(earlier.await);
            }
            let seen = running.insert(spawn_blocking(look)).await;
            *running = None;
            // A look that panicked is a bug; whoever asked hears that nothing is known.
            seen.ok()
        };
        timeout(patience, looking).await.ok().flatten()
    }
}

/// Looks at many things, by their names.
#[derive(Debug)]
pub(super) struct Looks<T>(Lock<BTreeMap<String, Arc<Look<T>>>>);

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self(Lock::default())
    }
}

impl<T> Looks<T> {
    /// Returns the look at the thing of this name.
    pub(super) fn of(&self, name: &str) -> Arc<Look<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody looks at those any more.
        all.retain(|other, look| {
            other == name
                || Arc::strong_count(look) > 1
                || look.0.try_lock().is_ok_and(|running| running.is_some())
        });
        Arc::clone(all.entry(name.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_disk_that_hangs_costs_one_thread_however_often_it_is_asked() {
        let looks = Looks::default();
        let (go, wait) = mpsc::channel::<()>();
        let hang = move || wait.recv().map_or(0, |()| 1);
        assert_eq!(looks.of("chat").at(SOON, hang).await, None);
        let began = Arc::new(Lock::new(0));
        for _ in 0..20 {
            let count = Arc::clone(&began);
            let look = move || {
                *count.lock().unwrap() += 1;
                2
            };
            assert_eq!(looks.of("chat").at(SOON, look).await, None);
        }
        assert_eq!(*began.lock().unwrap(), 0, "no other look begins meanwhile");
        assert_eq!(looks.of("coder").at(LONG, || 3).await, Some(3), "others are not kept waiting");
        go.send(()).unwrap();
        assert_eq!(looks.of("chat").at(LONG, || 4).await, Some(4), "and it is looked at anew");
        assert_eq!(looks.0.lock().unwrap().len(), 1, "names are not kept for ever");
    }
}

//! The threads that share a step of work.

use std::{
    fmt,
    ops::Range,
    sync::{Mutex, PoisonError},
};

type Task<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// Threads that take units of work from a common heap until none is left.
#[derive(Clone, Copy)]
pub struct Pool {
    /// Calls the task with ranges that together are `0..count`, and returns when all are done.
    run: fn(usize, Task<'_>),
    threads: usize,
}

impl Pool {
    /// Makes a pool of `threads` threads that work when `run` is called.
    pub fn new(threads: usize, run: fn(usize, Task<'_>)) -> Self {
        Self { run, threads: threads.max(1) }
    }

    /// A pool that works on the calling thread.
    pub fn inline() -> Self {
        Self { run: |count, task| task(0..count), threads: 1 }
    }

    /// Gives the number of threads.
    pub fn threads(self) -> usize {
        self.threads
    }

    /// Runs `work` on each of `units`.
    pub(crate) fn each<T: Send>(self, units: Vec<T>, work: impl Fn(usize, &mut T) + Sync) {
        let units: Vec<Mutex<T>> = units.into_iter().map(Mutex::new).collect();
        let task = |range: Range<usize>| {
            for at in range {
                let Some(unit) = units.get(at) else { return };
                // Each unit is taken once: nobody waits here, and nobody sees it after a panic.
                work(at, &mut unit.lock().unwrap_or_else(PoisonError::into_inner));
            }
        };
        if self.threads == 1 || units.len() == 1 {
            task(0..units.len());
        } else {
            (self.run)(units.len(), &task);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

//! Threads that serve connections: one a core, each with a runtime of its own, so that a request never
//! changes threads.

use std::{
    cell::Cell,
    fmt, io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, available_parallelism},
};

use tokio::{
    runtime::{Builder, Handle},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// More than these are never needed: engines are what takes the time.
const MOST: usize = 8;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(0) };
}

/// Returns which of the threads this is; 0 for any other.
pub(super) fn lane() -> usize {
    LANE.get()
}

/// The threads. Dropped, it waits for their end; what is unfinished on them is dropped.
#[derive(Debug)]
pub struct Cores {
    lanes: Lanes,
    end: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

/// Where connections are served. Without any, on the runtime of who asks.
#[derive(Clone, Default)]
pub struct Lanes {
    handles: Arc<[Handle]>,
    next: Arc<AtomicUsize>,
}

impl Cores {
    /// Starts one thread for each core that this process may use.
    ///
    /// # Errors
    /// When the system gives no thread or no poll.
    pub fn start() -> io::Result<Self> {
        let count = available_parallelism().map_or(1, NonZeroUsize::get).min(MOST);
        let end = CancellationToken::new();
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for lane in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let end = end.clone();
            let run = move || {
                LANE.set(lane);
                runtime.block_on(end.cancelled());
                // A read of a dead mount may never return; nothing waits for it.
                runtime.shutdown_background();
            };
            threads.push(thread::Builder::new().name(format!("lane-{lane}")).spawn(run)?);
        }
        let lanes = Lanes { handles: handles.into(), next: Arc::default() };
        Ok(Self { lanes, end, threads })
    }

    /// Returns where connections are served.
    pub fn lanes(&self) -> Lanes {
        self.lanes.clone()
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.end.cancel();
        for thread in self.threads.drain(..) {
            // One that panicked has ended too.
            drop(thread.join());
        }
    }
}

impl Lanes {
    /// Starts a task on the next of the threads.
    pub(super) fn spawn(
        &self,
        tasks: &mut JoinSet<()>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = turn.checked_rem(self.handles.len()).and_then(|lane| self.handles.get(lane));
        match lane {
            Some(handle) => tasks.spawn_on(task, handle),
            None => tasks.spawn(task),
        };
    }

    /// Tells whether tasks run elsewhere than who starts them.
    pub(super) fn are_elsewhere(&self) -> bool {
        !self.handles.is_empty()
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lanes").field(&self.handles.len()).finish()
    }
}

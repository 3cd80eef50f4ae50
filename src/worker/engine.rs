//! The loaded model with its sequences: who works on a request, and who waits.
//!
//! Each sequence is a thread of its own with its own cache. Computation never runs on the threads
//! that answer HTTP. A request takes the idle sequence that knows most of its prompt; with none
//! idle, requests wait in the order they came.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver as WorkReceiver, SyncSender, sync_channel},
    },
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    exit::{Ending, first_line},
    job::{Event, Job},
    model::Model,
    sequence::Sequence,
    text::{Template, Vocabulary},
};

/// A loaded model that answers requests.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) template: Template,
    /// Tokens one request may use.
    pub(super) context: usize,
    pub(super) trained_context: usize,
    pub(super) width: usize,
    pub(super) model_bytes: u64,
    pool: Pool,
}

/// Says why a job is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoPlace {
    /// As many wait as may.
    QueueFull,
    /// The worker is about to end.
    Stopping,
}

/// What an engine is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) model: Model,
    pub(super) vocabulary: Vocabulary,
    pub(super) template: Template,
    pub(super) context: usize,
    pub(super) parallel: usize,
    pub(super) model_bytes: u64,
    /// Told what ends the worker.
    pub(super) fatal: mpsc::Sender<Ending>,
}

#[derive(Debug)]
struct Pool {
    /// One permit an idle sequence; hands them out in the order they were asked for.
    idle_permits: Arc<Semaphore>,
    /// One permit a request, waiting or worked on.
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Idle>>>,
    closing: Arc<AtomicBool>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// A sequence at rest: the way to it, and the tokens its cache holds.
#[derive(Debug)]
struct Idle {
    work: SyncSender<Work>,
    tokens: Vec<u32>,
}

struct Work {
    job: Job,
    events: mpsc::Sender<Event>,
    /// The way back into the list of the idle.
    home: SyncSender<Work>,
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Requests that may wait.
const MOST_WAITING: usize = 1024;
/// Events between a sequence and a client that reads slowly.
const EVENTS: usize = 256;

impl Engine {
    /// Makes the sequences and starts their threads.
    pub(super) fn start(parts: Parts) -> Result<Self, Ending> {
        let Parts { model, vocabulary, template, context, parallel, model_bytes, fatal } = parts;
        let (model, vocabulary) = (Arc::new(model), Arc::new(vocabulary));
        let pool = Pool {
            idle_permits: Arc::new(Semaphore::new(parallel)),
            places: Arc::new(Semaphore::new(parallel.saturating_add(MOST_WAITING))),
            idle: Arc::default(),
            closing: Arc::default(),
            threads: Mutex::default(),
        };
        for index in 0..parallel {
            let cache = model
                .cache(context)
                .map_err(|error| Ending::from_candle("making room for the context", &error))?;
            let sequence = Sequence::new(
                Arc::clone(&model),
                Arc::clone(&vocabulary),
                cache,
                Arc::clone(&pool.closing),
            );
            pool.add(index, sequence, fatal.clone())?;
        }
        Ok(Self {
            trained_context: model.shape.trained_context,
            width: model.shape.width,
            vocabulary,
            template,
            context,
            model_bytes,
            pool,
        })
    }

    /// Gives `job` to a sequence and returns what it tells; dropping the receiver cancels the job.
    pub(super) async fn submit(&self, job: Job) -> Result<mpsc::Receiver<Event>, NoPlace> {
        let place = Arc::clone(&self.pool.places).try_acquire_owned();
        let place = place.map_err(|_| NoPlace::QueueFull)?;
        let idle_permit = Arc::clone(&self.pool.idle_permits).acquire_owned().await;
        let idle_permit = idle_permit.map_err(|_| NoPlace::Stopping)?;
        let (events, told) = mpsc::channel(EVENTS);
        if let Some(idle) = self.pool.take_idle(job.tokens()) {
            let home = idle.work.clone();
            let work = Work { job, events, home, permits: (place, idle_permit) };
            // A thread that is gone drops the work, and the client sees the stream end.
            drop(idle.work.send(work));
        }
        Ok(told)
    }

    /// Lets the sequences end: before the next token, or part of a prompt.
    pub(super) fn close(&self) {
        self.pool.closing.store(true, Ordering::Relaxed);
        self.pool.idle_permits.close();
        lock(&self.pool.idle).clear();
    }

    /// Waits for the threads that have ended by now or are about to.
    pub(super) fn join_ended(&self) {
        for thread in lock(&self.pool.threads).drain(..).filter(thread::JoinHandle::is_finished) {
            // A panic was told on stderr when it happened.
            drop(thread.join());
        }
    }
}

impl Pool {
    fn add(
        &self,
        index: usize,
        sequence: Sequence,
        fatal: mpsc::Sender<Ending>,
    ) -> Result<(), Ending> {
        let (work, works) = sync_channel(1);
        let idle = Arc::clone(&self.idle);
        let thread = thread::Builder::new()
            .name(format!("sequence-{index}"))
            .spawn(move || serve(sequence, &works, &idle, &fatal))
            .map_err(|error| Ending::internal(format!("cannot start a thread: {error}")))?;
        lock(&self.threads).push(thread);
        lock(&self.idle).push(Idle { work, tokens: Vec::new() });
        Ok(())
    }

    /// Takes the sequence that knows the longest begin of `tokens`.
    fn take_idle(&self, tokens: &[u32]) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        let best = idle
            .iter()
            .enumerate()
            .max_by_key(|(_, idle)| (shared(&idle.tokens, tokens), usize::MAX - idle.tokens.len()))
            .map(|(at, _)| at)?;
        Some(idle.swap_remove(best))
    }
}

/// The life of a sequence's thread: one job after the other until the way to it is gone.
fn serve(
    mut sequence: Sequence,
    works: &WorkReceiver<Work>,
    idle: &Mutex<Vec<Idle>>,
    fatal: &mpsc::Sender<Ending>,
) {
    while let Ok(work) = works.recv() {
        let Work { job, events, home, permits } = work;
        if let Err(fault) = sequence.run(job, &events) {
            if fault.is_out_of_memory() {
                let ending = Ending::out_of_memory(format!(
                    "out of memory while computing: {}",
                    first_line(&fault)
                ));
                // One ending is enough: with the place taken another one is on its way.
                drop(fatal.try_send(ending));
            }
            // The client may be gone already.
            drop(events.blocking_send(Event::Failed(fault)));
        }
        drop(events);
        if !sequence.is_closing() {
            lock(idle).push(Idle { work: home, tokens: sequence.tokens().to_vec() });
        }
        // Only now may the next in the queue look for an idle sequence.
        drop(permits);
    }
}

/// Gives the length of the common begin.
pub(super) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The lists are whole between any two operations, so a panic elsewhere cannot have torn them.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

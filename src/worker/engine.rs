//! The loaded model as those see it who answer HTTP: they hand jobs in and read what is told.
//!
//! Computation never runs on their threads: one thread steps all sequences (see [`super::schedule`]).
//! Requests wait for a seat in the order they came.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    exit::Ending,
    grammar::Grammars,
    job::{Event, Job},
    model::{Network, Purpose},
    report::Report,
    schedule::{Schedule, Work},
    text::{Template, Vocabulary},
};

/// A loaded model that answers requests.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) template: Template,
    pub(super) grammars: Grammars,
    /// Tokens one request may use.
    pub(super) context: usize,
    pub(super) trained_context: usize,
    pub(super) purpose: Purpose,
    pub(super) width: usize,
    pub(super) model_bytes: u64,
    /// The name of the format of most weights.
    pub(super) file_type: &'static str,
    /// Requests worked on at once.
    pub(super) parallel: usize,
    /// One permit a request, waiting or worked on; bounds what `inbox` holds.
    places: Arc<Semaphore>,
    inbox: Sender<Work>,
    closing: Arc<AtomicBool>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
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
    pub(super) model: Network,
    pub(super) vocabulary: Vocabulary,
    pub(super) template: Template,
    pub(super) context: usize,
    pub(super) parallel: usize,
    pub(super) model_bytes: u64,
    pub(super) file_type: &'static str,
    /// Told what ends the worker.
    pub(super) fatal: mpsc::Sender<Ending>,
}

/// What is told about a job. Dropping it cancels the job.
#[derive(Debug)]
pub(super) struct Answer {
    events: mpsc::Receiver<Event>,
    /// A slow reader keeps its place until it has read to the end.
    _place: OwnedSemaphorePermit,
}

/// Requests that may wait.
const MOST_WAITING: usize = 1024;
/// Events of a job that are no token's text.
const OTHER_EVENTS: usize = 8;

impl Engine {
    /// Makes the seats and starts the thread that computes.
    pub(super) fn start(parts: Parts) -> Result<Self, Ending> {
        let Parts { model, vocabulary, template, context, parallel, model_bytes, file_type, fatal } =
            parts;
        let vocabulary = Arc::new(vocabulary);
        let (trained_context, width) = (model.trained_context(), model.width());
        let purpose = model.purpose();
        let closing = Arc::<AtomicBool>::default();
        let (inbox, works) = channel();
        let schedule = Schedule::new(model, Arc::clone(&vocabulary), (parallel, context), fatal)
            .map_err(|error| Ending::from_candle("making room for the context", &error))?;
        let is_closing = Arc::clone(&closing);
        let thread = thread::Builder::new()
            .name("compute".to_owned())
            .spawn(move || schedule.run(&works, &is_closing))
            .map_err(|error| Ending::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            trained_context,
            purpose,
            width,
            vocabulary,
            template,
            grammars: Grammars::default(),
            context,
            model_bytes,
            file_type,
            parallel,
            places: Arc::new(Semaphore::new(parallel.saturating_add(MOST_WAITING))),
            inbox,
            closing,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands `job` in and waits until it has a seat.
    pub(super) async fn submit(&self, job: Job) -> Result<Answer, NoPlace> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| NoPlace::QueueFull)?;
        // All that can ever be told fits, so that no reader is waited for; memory is only taken
        // for what has not been read.
        let (events, told) = mpsc::channel(job.most_tokens().saturating_add(OTHER_EVENTS));
        let mut answer = Answer { events: told, _place: place };
        if self.closing.load(Ordering::Relaxed) || self.inbox.send(Work::Job(job, events)).is_err()
        {
            return Err(NoPlace::Stopping);
        }
        let has_begun = matches!(answer.recv().await, Some(Event::Begun));
        if has_begun { Ok(answer) } else { Err(NoPlace::Stopping) }
    }

    /// Gives how things stand after the step that is being computed.
    pub(super) async fn report(&self) -> Result<Report, NoPlace> {
        let (asker, told) = oneshot::channel();
        self.inbox.send(Work::Tell(asker)).map_err(|_| NoPlace::Stopping)?;
        told.await.map_err(|_| NoPlace::Stopping)
    }

    /// Ends all jobs before the next step.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // A thread that is gone has nothing left to end.
        drop(self.inbox.send(Work::Close));
    }

    /// Waits for the thread if it has ended by now or is about to.
    pub(super) fn join_ended(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take_if(|thread| thread.is_finished()) {
            // A panic was told on stderr when it happened.
            drop(thread.join());
        }
    }
}

impl Answer {
    /// Gives the next event; `None` if the job was dropped.
    pub(super) async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

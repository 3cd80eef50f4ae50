//! An answer that is on its way, and what becomes of it when its client leaves.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    answer::Answer,
    flight::{Flight, Stage},
    reply::Fault,
};

type Reached = Result<Answer, Fault>;

/// An answer that is on its way. Dropped, it hangs up, unless its slot wants the engine to end what it
/// has begun: then it goes on, and nobody gets what comes.
pub(super) struct Pending {
    /// `None` once it has come.
    reached: Option<Pin<Box<dyn Future<Output = Reached> + Send>>>,
    flight: Arc<Flight>,
}

impl Pending {
    pub(super) fn new(
        flight: Arc<Flight>,
        reached: impl Future<Output = Reached> + Send + 'static,
    ) -> Self {
        Self { reached: Some(Box::pin(reached)), flight }
    }

    /// Returns the request that it answers.
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }
}

impl Future for Pending {
    type Output = Reached;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reached> {
        let Some(reached) = &mut self.reached else { return Poll::Pending };
        let polled = reached.as_mut().poll(context);
        if polled.is_ready() {
            self.reached = None;
        }
        polled
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(reached) = self.reached.take() else { return };
        // One that has not come to the engine yet leaves the queue.
        if self.flight.drains() && self.flight.stage() == Stage::Waiting {
            self.flight.abandon(async move {
                if let Ok(answer) = reached.await {
                    answer.drain().await;
                }
            });
        }
    }
}

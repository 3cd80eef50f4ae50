//! Seats at one engine, and the two lanes in which requests wait for them.
//!
//! A seat that is given back goes to the interactive lane first, in the order of asking; after
//! [`IN_A_ROW`] of those one of the batch lane has its turn, so that neither ever starves.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::spec::requests::Lane;

/// How many seats in a row the interactive lane gets while somebody waits in the batch lane.
const IN_A_ROW: u32 = 4;
/// A lane this long is cleared of those who have left.
const SWEEP: usize = 64;

/// The seats at one engine.
#[derive(Debug)]
pub(super) struct Seats {
    all: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Nobody waits while one is free.
    free: usize,
    interactive: Queue,
    batch: Queue,
    /// Seats that the interactive lane got since the batch lane last had one, while it waited.
    in_a_row: u32,
    is_closed: bool,
}

type Waiting = oneshot::Sender<Seat>;

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    sweep_at: usize,
}

/// One seat. Dropped, it goes to the next in line.
#[derive(Debug)]
pub(super) struct Seat(Option<Arc<Seats>>);

/// No seats are given any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Closed;

impl Seats {
    /// Makes so many free seats.
    pub(super) fn new(all: usize) -> Arc<Self> {
        let inner = Inner { free: all, ..Inner::default() };
        Arc::new(Self { all, inner: Mutex::new(inner) })
    }

    /// Takes a seat if one is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Result<Option<Seat>, Closed> {
        let mut inner = self.inner();
        if inner.is_closed {
            return Err(Closed);
        }
        let Some(left) = inner.free.checked_sub(1) else { return Ok(None) };
        inner.free = left;
        Ok(Some(Seat(Some(Arc::clone(self)))))
    }

    /// Waits in a lane for a seat. Cancel-safe: a dropped call leaves its place, and a seat that was
    /// on its way goes to the next.
    pub(super) async fn take(self: &Arc<Self>, lane: Lane) -> Result<Seat, Closed> {
        let waiting = {
            let mut inner = self.inner();
            if inner.is_closed {
                return Err(Closed);
            }
            if let Some(left) = inner.free.checked_sub(1) {
                inner.free = left;
                return Ok(Seat(Some(Arc::clone(self))));
            }
            let (tx, rx) = oneshot::channel();
            inner.lane(lane).push(tx);
            rx
        };
        waiting.await.map_err(|_| Closed)
    }

    /// Gives no more seats; those who wait are told.
    pub(super) fn close(&self) {
        let mut inner = self.inner();
        inner.is_closed = true;
        let gone = (
            std::mem::take(&mut inner.interactive.waiting),
            std::mem::take(&mut inner.batch.waiting),
        );
        drop(inner);
        drop(gone);
    }

    /// Tells whether no more seats are given.
    pub(super) fn is_closed(&self) -> bool {
        self.inner().is_closed
    }

    /// Returns how many seats are taken.
    pub(super) fn taken(&self) -> usize {
        self.all.saturating_sub(self.inner().free)
    }

    fn give_back(self: &Arc<Self>) {
        loop {
            let next = {
                let mut inner = self.inner();
                let next = inner.next();
                if next.is_none() {
                    inner.free = inner.free.saturating_add(1);
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(Seat(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // Who asked has left: this seat is still to be given.
                Err(mut seat) => seat.0 = None,
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave it half changed: nothing here can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lane(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Batch => &mut self.batch,
        }
    }

    /// Takes the next in line.
    fn next(&mut self) -> Option<Waiting> {
        let batch_waits = !self.batch.waiting.is_empty();
        if !batch_waits {
            self.in_a_row = 0;
        }
        if !(batch_waits && self.in_a_row >= IN_A_ROW)
            && let Some(next) = self.interactive.waiting.pop_front()
        {
            self.in_a_row = self.in_a_row.saturating_add(1);
            return Some(next);
        }
        self.in_a_row = 0;
        self.batch.waiting.pop_front()
    }
}

impl Queue {
    fn push(&mut self, waiting: Waiting) {
        if self.waiting.len() >= self.sweep_at.max(SWEEP) {
            self.waiting.retain(|waiting| !waiting.is_closed());
            self.sweep_at = self.waiting.len().saturating_mul(2);
        }
        self.waiting.push_back(waiting);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seats) = self.0.take() {
            seats.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, task::Poll};

    use futures_util::future::join_all;

    use super::*;

    async fn is_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
        poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    /// Lets all ask in this order while the only seat is taken; returns in which order they got it.
    async fn order(lanes: &[Lane]) -> Vec<(Lane, usize)> {
        let seats = Seats::new(1);
        let taken = seats.try_take().unwrap().unwrap();
        let order = Mutex::new(Vec::new());
        let ask = async |(index, lane): (usize, Lane)| {
            let seat = seats.take(lane).await.unwrap();
            order.lock().unwrap().push((lane, index));
            drop(seat);
        };
        let all = join_all(lanes.iter().copied().enumerate().map(ask));
        tokio::join!(all, async { drop(taken) });
        assert_eq!(seats.taken(), 0);
        order.into_inner().unwrap()
    }

    #[tokio::test]
    async fn interactive_requests_go_first_and_each_lane_keeps_its_order() {
        use Lane::{Batch, Interactive};
        let got = order(&[Batch, Interactive, Batch, Interactive]).await;
        assert_eq!(got, [(Interactive, 1), (Interactive, 3), (Batch, 0), (Batch, 2)]);
    }

    #[tokio::test]
    async fn a_crowd_in_the_interactive_lane_does_not_starve_the_batch_lane() {
        let mut lanes = vec![Lane::Interactive; 12];
        lanes.extend([Lane::Batch; 2]);
        let got = order(&lanes).await;
        let places: Vec<_> = (0..got.len()).filter(|place| got[*place].0 == Lane::Batch).collect();
        assert_eq!(places, [4, 9]);
    }

    #[tokio::test]
    async fn a_seat_passes_over_those_who_have_left() {
        let seats = Seats::new(1);
        let taken = seats.try_take().unwrap();
        for _ in 0..500 {
            let mut left = std::pin::pin!(seats.take(Lane::Batch));
            assert!(is_pending(left.as_mut()).await);
        }
        assert!(seats.inner().batch.waiting.len() <= SWEEP, "who has left takes no room");
        let mut stays = std::pin::pin!(seats.take(Lane::Batch));
        assert!(is_pending(stays.as_mut()).await);
        drop(taken);
        assert!(stays.await.is_ok());
        assert_eq!(seats.taken(), 0, "the seat came back");
    }

    #[tokio::test]
    async fn closed_seats_send_away_those_who_wait_and_those_who_come() {
        let seats = Seats::new(1);
        let taken = seats.try_take().unwrap();
        let (waited, ()) = tokio::join!(seats.take(Lane::Interactive), async { seats.close() });
        assert_eq!(waited.unwrap_err(), Closed);
        assert_eq!(seats.try_take().unwrap_err(), Closed);
        assert_eq!(seats.taken(), 1);
        drop(taken);
        assert_eq!(seats.taken(), 0);
    }
}

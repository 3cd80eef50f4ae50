//! The bounded way into the core, and the slips on which requests wait for its answer.
//!
//! Owns the queue of events and the table of waiting requests. It decides nothing: the core grants
//! or refuses, [`Inbox`] hands the answer to the one who waits.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    spec::{SlotName, WaiterId, memory::Need},
    supervisor::{Event, Purpose, Refusal, RoomAnswer, RoomRequest, SlotEvent},
};

/// How many events may wait. A sender that finds the queue full waits: nothing is dropped.
const CAPACITY: usize = 1024;

/// The sending side: cheap to clone, one for each part that has news for the core.
#[derive(Clone, Debug)]
pub struct Mailbox {
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
}

/// The receiving side; the driver owns the only one.
#[derive(Debug)]
pub struct Inbox {
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    table: Mutex<Table>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Table {
    waiting: BTreeMap<WaiterId, oneshot::Sender<Result<(), Refusal>>>,
    /// People who have asked for room.
    rooms: BTreeMap<WaiterId, oneshot::Sender<RoomAnswer>>,
    /// Requests that gave up and whose leaving the core has yet to be told. Bounded by the number
    /// of requests, because each leaves once.
    left: Vec<(SlotName, WaiterId)>,
    /// The driver has ended: nobody answers any more.
    is_closed: bool,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere cannot leave the maps half changed: each use is one call.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the two sides.
pub fn channel() -> (Mailbox, Inbox) {
    let (tx, rx) = mpsc::channel(CAPACITY);
    let shared = Arc::new(Shared::default());
    (Mailbox { events: tx, shared: Arc::clone(&shared) }, Inbox { events: rx, shared })
}

impl Mailbox {
    /// Tells the core something; waits while the queue is full. Nothing happens once the driver has
    /// ended.
    pub async fn tell(&self, event: Event) {
        // The driver ends last but for parts that are being dropped: nobody is left to tell.
        drop(self.events.send(event).await);
    }

    /// Tells the core something about one slot.
    pub async fn tell_slot(&self, slot: &SlotName, event: SlotEvent) {
        self.tell(Event::Slot { slot: slot.clone(), event }).await;
    }

    /// Asks for `slot` on behalf of a request. The slip resolves once the core has answered;
    /// dropping it tells the core that the request has left.
    pub async fn ask(&self, slot: &SlotName) -> Slip {
        let waiter = WaiterId(self.shared.next.fetch_add(1, Ordering::Relaxed));
        let (tx, rx) = oneshot::channel();
        {
            let mut table = self.shared.table();
            // Under the lock: after the driver's end a sender is dropped at once, and the slip knows.
            if !table.is_closed {
                table.waiting.insert(waiter, tx);
            }
        }
        let slip =
            Slip { slot: slot.clone(), waiter, answer: rx, shared: Arc::clone(&self.shared) };
        self.tell_slot(slot, SlotEvent::Demanded { waiter }).await;
        slip
    }
}

/// Room that somebody asks for; see [`RoomRequest`].
#[derive(Clone, Debug)]
pub struct RoomAsked {
    /// How much, and of what.
    pub need: Need,
    /// On which GPU alone.
    pub gpu: Option<u32>,
    /// The slot that it is for.
    pub slot: Option<SlotName>,
    /// What is to come of it.
    pub purpose: Purpose,
}

impl Mailbox {
    /// Asks for room, and waits for what comes of it; `None` once the driver has ended.
    pub async fn ask_for_room(&self, room: RoomAsked) -> Option<RoomAnswer> {
        let asker = WaiterId(self.shared.next.fetch_add(1, Ordering::Relaxed));
        let (tx, rx) = oneshot::channel();
        {
            let mut table = self.shared.table();
            if !table.is_closed {
                table.rooms.insert(asker, tx);
            }
        }
        let RoomAsked { need, gpu, slot, purpose } = room;
        self.tell(Event::RoomRequested(RoomRequest { asker, need, gpu, slot, purpose })).await;
        rx.await.ok()
    }
}

impl Inbox {
    /// Hands the core's answer to who asked for room.
    pub fn answer_room(&self, asker: WaiterId, answer: RoomAnswer) {
        let sender = self.shared.table().rooms.remove(&asker);
        if let Some(sender) = sender {
            // Who asked may have left a moment ago.
            drop(sender.send(answer));
        }
    }

    /// Returns the next event; `None` once every [`Mailbox`] is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // A request is announced before it can leave: the queue goes first, so that the core
            // never hears of a leaving before the demand.
            if let Ok(event) = self.events.try_recv() {
                return Some(event);
            }
            if let Some((slot, waiter)) = self.shared.table().left.pop() {
                return Some(Event::Slot { slot, event: SlotEvent::WaiterLeft { waiter } });
            }
            tokio::select! {
                event = self.events.recv() => return event,
                () = self.shared.left.notified() => {}
            }
        }
    }

    /// Hands the core's answer to a waiting request; nothing if it has left.
    pub fn answer(&self, waiter: WaiterId, answer: Result<(), Refusal>) {
        let sender = self.shared.table().waiting.remove(&waiter);
        if let Some(sender) = sender {
            // The request may have left a moment ago.
            drop(sender.send(answer));
        }
    }
}

impl Drop for Inbox {
    /// Answers all who wait, and those who still come: with the driver's end, whatever ended it.
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.is_closed = true;
        let waiting = (std::mem::take(&mut table.waiting), std::mem::take(&mut table.rooms));
        drop(table);
        drop(waiting);
    }
}

/// One request's place in the queue: a future of the core's answer.
#[derive(Debug)]
pub struct Slip {
    slot: SlotName,
    waiter: WaiterId,
    answer: oneshot::Receiver<Result<(), Refusal>>,
    shared: Arc<Shared>,
}

impl Future for Slip {
    type Output = Result<(), Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer)
            .poll(context)
            // The sender is dropped unanswered only when the driver has ended.
            .map(|answer| answer.unwrap_or(Err(Refusal::ShuttingDown)))
    }
}

impl Drop for Slip {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        if table.waiting.remove(&self.waiter).is_some() {
            table.left.push((self.slot.clone(), self.waiter));
            drop(table);
            self.shared.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> SlotName {
        "chat".parse().unwrap()
    }

    #[tokio::test]
    async fn a_slip_resolves_with_the_cores_answer() {
        let (mailbox, mut inbox) = channel();
        let slip = mailbox.ask(&slot()).await;
        let Some(Event::Slot { event: SlotEvent::Demanded { waiter }, .. }) = inbox.next().await
        else {
            panic!("the core was not told of the demand");
        };
        inbox.answer(waiter, Ok(()));
        assert_eq!(slip.await, Ok(()));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_driver_that_has_ended() {
        let (mailbox, inbox) = channel();
        let before = mailbox.ask(&slot()).await;
        drop(inbox);
        assert_eq!(before.await, Err(Refusal::ShuttingDown));
        assert_eq!(mailbox.ask(&slot()).await.await, Err(Refusal::ShuttingDown));
    }

    #[tokio::test]
    async fn a_dropped_slip_tells_the_core_once() {
        let (mailbox, mut inbox) = channel();
        drop(mailbox.ask(&slot()).await);
        let told = [inbox.next().await, inbox.next().await];
        assert!(
            matches!(
                &told,
                [
                    Some(Event::Slot { event: SlotEvent::Demanded { waiter: asked }, .. }),
                    Some(Event::Slot { event: SlotEvent::WaiterLeft { waiter: left }, .. }),
                ] if asked == left
            ),
            "{told:?}"
        );
    }
}

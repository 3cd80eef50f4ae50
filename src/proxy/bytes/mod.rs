//! The byte relay: requests of the hot paths, passed on and answered as bytes.
//!
//! Takes what it is sure of: a `POST` in origin form with a plain length and headers that each are there
//! once, for one slot that is ready and has a free seat, with nothing to change in it. Every other
//! connection goes to hyper, the bytes already read included, and stays there. Both ways do the same;
//! `tests/proxy/bytes.rs` holds them against each other.
//!
//! ```text
//! client ─▶ head ─▶ body ─▶ way (key, slot, seat) ─▶ passage ─▶ client
//!            └───────┴───────┴── not sure ─▶ hyper
//! ```
//!
//! Nothing that waits has a buffer: bytes are read into room that a thread's connections share.

mod body;
mod date;
mod door;
mod endings;
mod framing;
mod head;
mod held;
mod passage;
mod reply;
mod scratch;
mod way;
mod wire;

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ::bytes::Bytes;
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep},
};

pub(super) use self::wire::{Wire, take_idle};
use self::{
    door::{Door, Quiet},
    head::{Asking, Front, LONGEST_HEAD},
    passage::{Passage, Sending, Served},
};
use super::{Client, body::LONGEST_PAUSE, serve::HEAD_DEADLINE};

/// What a connection's owner tells it, and is told.
#[derive(Debug, Default)]
pub(super) struct Life {
    is_closing: AtomicBool,
    has_begun: AtomicBool,
    begun: Notify,
}

impl Life {
    /// Ends the connection with the request that it is at. Whoever calls this polls the connection
    /// afterwards.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Notes that a request has begun to come.
    fn begin(&self) {
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            self.begun.notify_one();
        }
    }

    /// Waits for the first request.
    pub(super) async fn begun(&self) {
        self.begun.notified().await;
    }
}

/// How a conversation ended.
pub(super) enum End {
    Over,
    /// It is to go on elsewhere, from these bytes on.
    Elsewhere(TcpStream, Bytes),
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Over => "Over",
            Self::Elsewhere(..) => "Elsewhere",
        })
    }
}

/// Speaks with a client for as long as it asks what is surely plain.
pub(super) async fn converse(stream: TcpStream, client: &Arc<Client>, life: &Life) -> End {
    let mut door = Door::new(stream);
    loop {
        let asking = match next(&mut door, client, life).await {
            Next::Asked(asking) => asking,
            Next::Odd => break,
            Next::Over => return End::Over,
        };
        match serve(&mut door, client, asking, life).await {
            Served::Kept => {}
            Served::Over => return End::Over,
            Served::Left => break,
        }
    }
    let (stream, read) = door.into_parts();
    End::Elsewhere(stream, read)
}

/// What a client did next.
enum Next {
    /// It asked; the whole request is in the buffer.
    Asked(Box<Asking>),
    Odd,
    Over,
}

/// Waits for a whole request.
async fn next(door: &mut Door, client: &Client, life: &Life) -> Next {
    let began = Instant::now();
    let asking = loop {
        if !door.buffer.is_empty() {
            life.begin();
            match head::read(&door.buffer, client) {
                Front::Sure(asking) => break asking,
                Front::Begun if door.buffer.len() < LONGEST_HEAD => {}
                Front::Begun | Front::Odd => return Next::Odd,
            }
        }
        match more(door, life, (began, HEAD_DEADLINE)).await {
            Ok(()) => {}
            // What was sent of a head gets its answer there.
            Err(Quiet::Left) if !door.buffer.is_empty() => return Next::Odd,
            Err(Quiet::Left | Quiet::TooLong) => return Next::Over,
        }
    };
    door.expect(asking.body.end);
    while door.buffer.len() < asking.body.end {
        if more(door, life, (Instant::now(), LONGEST_PAUSE)).await.is_err() {
            return Next::Odd;
        }
    }
    Next::Asked(asking)
}

/// Waits for more bytes.
async fn more(
    door: &mut Door,
    life: &Life,
    (since, patience): (Instant, Duration),
) -> Result<(), Quiet> {
    let deadline = since + patience;
    poll_fn(|context| {
        if life.is_closing() && door.buffer.is_empty() {
            return Poll::Ready(Err(Quiet::Left));
        }
        door.poll_more(context, deadline)
    })
    .await
}

/// Lets those go first that can go on by now. Requests that came together are read before the first of
/// them is sent on: then they are sent in a row, and an engine that sleeps is woken once.
async fn others_first() {
    let mut is_back = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_back, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn serve(door: &mut Door, client: &Arc<Client>, asking: Box<Asking>, life: &Life) -> Served {
    let mut asking = asking;
    let body = door.buffer.get(asking.body.clone()).unwrap_or_default();
    let Some(way) = way::find(client, &mut asking, body) else { return Served::Left };
    others_first().await;
    let mut request = std::mem::take(&mut door.buffer);
    door.buffer = request.split_off(asking.body.end.min(request.len()));
    let gate = Arc::clone(way.lease.gate());
    let ended = pin!(gate.ended().cancelled());
    // Where the client can be told that it still waits, it is.
    let quiet = client.shared.limits.quiet.min(asking.silence);
    let alarm = way.is_stream.then(|| Box::pin(sleep(quiet)));
    let passage = Passage {
        door,
        client,
        life,
        asking,
        way,
        gate: &gate,
        ended,
        request,
        sending: Sending::Going(0),
        alarm,
        is_committed: false,
    };
    passage.run().await
}

//! Requests that are none, or more than they say: bytes on a raw socket.
//!
//! The engine never sees more than one request for one, and never what was hidden in another; a
//! client beside them is answered all along.

pub(crate) mod cases;
mod crowds;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use self::cases::{Case, Expected, all};
use crate::{
    client::{Client, chat},
    engine::Engine,
    world::{World, soon},
};

/// The mark of a request that is hidden in another.
const HIDDEN: &str = "smuggled";

/// Answers every request that reaches the engine, and counts them.
struct Counter {
    requests: Arc<AtomicUsize>,
    hidden: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Counter {
    fn start(engine: Engine) -> Self {
        let (requests, hidden) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&requests), Arc::clone(&hidden));
        let mut task = JoinSet::new();
        task.spawn(engine.answer_all(move |request| {
            counts.0.fetch_add(1, Ordering::SeqCst);
            let body = String::from_utf8_lossy(&request.body);
            if request.head.contains(HIDDEN) || body.contains(HIDDEN) {
                counts.1.fetch_add(1, Ordering::SeqCst);
            }
        }));
        Self { requests, hidden, _task: task }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Sends a case and returns every status that came back. Ends once the connection has: where a
/// request is hidden, the endpoint has to end it, so that nothing keeps the hidden one from being
/// heard but the framing.
async fn play(world: &World, case: &Case) -> Vec<u16> {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let mut read = Vec::new();
    // The endpoint may have hung up in the middle, which is an answer too.
    let sent = stream.write_all(&case.bytes).await;
    let wanted = match case.expected {
        Expected::Passes(requests) => requests,
        Expected::Refused | Expected::Ours | Expected::AtMostOne => 1,
        Expected::Waits => 0,
    };
    if sent.is_ok() {
        while hides_one(case) || statuses(&read).len() < wanted {
            match soon(case.name, stream.read_buf(&mut read)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
    drop(stream.shutdown().await);
    while soon(case.name, stream.read_buf(&mut read)).await.is_ok_and(|count| count > 0) {}
    statuses(&read)
}

fn hides_one(case: &Case) -> bool {
    case.bytes.windows(HIDDEN.len()).any(|bytes| bytes == HIDDEN.as_bytes())
}

/// Finds the status lines in what came back: bodies here have none.
fn statuses(read: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(read);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

fn verdict(case: &Case, seen: usize, statuses: &[u16]) -> Result<(), String> {
    let final_ones: Vec<u16> = statuses.iter().copied().filter(|status| *status != 100).collect();
    let is_fine = match case.expected {
        Expected::Passes(requests) => {
            seen == requests && final_ones.iter().filter(|status| **status == 200).count() == seen
        }
        Expected::Refused => seen == 0 && final_ones.iter().all(|status| *status >= 400),
        Expected::Ours => seen == 0 && final_ones == [204],
        Expected::AtMostOne => seen <= 1 && final_ones.iter().all(|status| *status < 500),
        Expected::Waits => seen == 0 && final_ones.iter().all(|status| *status >= 400),
    };
    if is_fine {
        return Ok(());
    }
    Err(format!(
        "{}: {:?}, but the engine saw {seen} and the client {statuses:?}",
        case.name, case.expected
    ))
}

async fn beside(client: &mut Client) {
    assert_eq!(client.ask(chat("chat", false)).await.head.status, 200);
}

#[tokio::test]
async fn the_engine_sees_at_most_one_request_for_one() {
    let (world, engine, _gate) = World::ready().await;
    let counter = Counter::start(engine);
    let mut healthy = world.client().await;
    let (cases, mut faults, mut reached) = (all(), Vec::new(), BTreeMap::new());
    let mut healthy_requests = 0;
    for case in &cases {
        let before = counter.requests();
        let statuses = play(&world, case).await;
        let seen = counter.requests() - before;
        faults.extend(verdict(case, seen, &statuses).err());
        if counter.hidden.swap(0, Ordering::SeqCst) > 0 {
            faults.push(format!("{}: the hidden request reached the engine", case.name));
        }
        *reached.entry(statuses.first().copied().unwrap_or(0)).or_insert(0_usize) += 1;
        beside(&mut healthy).await;
        healthy_requests += 1;
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert_eq!(counter.hidden.load(Ordering::SeqCst), 0);
    assert_eq!(healthy_requests, cases.len());
    assert!(cases.len() >= 150, "{} cases", cases.len());
    // Each kind of answer was reached: nothing, a refusal by the framing, one by the endpoint.
    for status in [0, 200, 400, 403, 404, 405, 413, 431] {
        assert!(reached.contains_key(&status), "{status} never came: {reached:?}");
    }
    println!("{} cases, first answers {reached:?}", cases.len());
}

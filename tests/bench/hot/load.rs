//! Load: closed loops of requests, short streams one after the other, and many streams at once.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    origin::{content_length, find, number},
    sys::monotonic_ns,
};

/// Longer than anything takes that is not lost.
const LOST: Duration = Duration::from_secs(30);

/// One kept connection.
struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A request as it is sent. `model` comes after the prompt, as most clients have it.
pub(crate) fn request(key: &str, prompt: usize, more: &str) -> Vec<u8> {
    let words = "All work and no play, \\\"again\\\" and again.\\n";
    let text: String = words.repeat(prompt / words.len());
    let body = format!(
        "{{{more}\"messages\":[{{\"role\":\"system\",\"content\":\"You are brief.\"}},\
         {{\"role\":\"user\",\"content\":\"{text}\"}}],\"temperature\":0.7,\"max_tokens\":60,\
         \"model\":\"bench\"}}"
    );
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\nuser-agent: bench/1\r\naccept: */*\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl Line {
    async fn open(address: SocketAddr) -> Self {
        loop {
            if let Ok(stream) = TcpStream::connect(address).await {
                stream.set_nodelay(true).unwrap();
                return Self { stream, buffer: Vec::with_capacity(2 << 10) };
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a request and reads its answer whole; tells whether it was a good one.
    async fn ask(&mut self, request: &[u8]) -> bool {
        if self.stream.write_all(request).await.is_err() {
            return false;
        }
        self.buffer.clear();
        let end = loop {
            if !self.read().await {
                return false;
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = self.buffer[..end].to_ascii_lowercase();
        if find(&head, b"transfer-encoding").is_some() {
            while !self.buffer.ends_with(b"0\r\n\r\n") {
                if !self.read().await {
                    return false;
                }
            }
        } else {
            let length = end + content_length(&head);
            while self.buffer.len() < length {
                if !self.read().await {
                    return false;
                }
            }
        }
        self.buffer.starts_with(b"HTTP/1.1 200")
    }

    async fn read(&mut self) -> bool {
        self.buffer.reserve(2 << 10);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }
}

/// What a closed loop came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loop {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// How long a loop goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Duration),
    Count(u64),
}

/// Asks on so many connections, each with the next question as soon as it has its answer.
pub(crate) async fn closed_loop(
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    until: Until,
) -> Loop {
    let request: Rc<[u8]> = request.into();
    let (count, errors) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
    let times = Rc::new(RefCell::new(Vec::with_capacity(1 << 20)));
    let began = Instant::now();
    let local = LocalSet::new();
    for _ in 0..connections {
        let (request, count, errors, times) =
            (Rc::clone(&request), Rc::clone(&count), Rc::clone(&errors), Rc::clone(&times));
        local.spawn_local(async move {
            let mut line = Line::open(address).await;
            let goes_on = || match until {
                Until::Time(time) => began.elapsed() < time,
                Until::Count(most) => count.get() + errors.get() < most,
            };
            while goes_on() {
                let from = monotonic_ns();
                if timeout(LOST, line.ask(&request)).await.unwrap_or(false) {
                    count.set(count.get() + 1);
                    times.borrow_mut().push(monotonic_ns() - from);
                } else {
                    errors.set(errors.get() + 1);
                    line = Line::open(address).await;
                }
            }
        });
    }
    local.await;
    let took = began.elapsed().as_secs_f64();
    let mut times = times.take();
    let (p50_us, p99_us) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    let requests = count.get();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    let per_second = requests as f64 / took;
    Loop { requests, errors: errors.get(), per_second, p50_us, p99_us }
}

/// What many streams came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams {
    /// Streams that ended before their last event, or never began.
    pub(crate) lost: u64,
    /// Events that were not the next of their stream.
    pub(crate) out_of_order: u64,
    /// Streams that had all their events and their end.
    pub(crate) whole: u64,
    pub(crate) events: u64,
    pub(crate) hops_ns: Vec<u64>,
}

/// Reads streams at once, each of `events` events `pace` apart, begun evenly over `ramp`. `watch` is
/// told once all have begun, and waited for.
pub(crate) async fn streams<W: AsyncFnOnce()>(
    targets: &[(SocketAddr, String)],
    count: usize,
    (events, pace, ramp): (u64, Duration, Duration),
    watch: W,
) -> Streams {
    let all = Rc::new(RefCell::new(Streams::default()));
    let local = LocalSet::new();
    let began = Instant::now();
    for number in 0..count {
        let (all, (address, key)) = (Rc::clone(&all), &targets[number % targets.len()]);
        let address = *address;
        let share = u32::try_from(number).unwrap() * 997 % u32::try_from(count).unwrap();
        let phase = pace * share / u32::try_from(count).unwrap();
        let more = format!(
            "\"stream\":true,\"events\":{events},\"pace_ms\":{},\"phase_ms\":{},",
            pace.as_millis(),
            phase.as_millis()
        );
        let request = request(key, 300, &more);
        let at = began + ramp * u32::try_from(number).unwrap() / u32::try_from(count).unwrap();
        local.spawn_local(async move {
            sleep_until(at).await;
            let is_whole = stream(address, request, events, &all).await;
            let mut all = all.borrow_mut();
            if is_whole { all.whole += 1 } else { all.lost += 1 }
        });
    }
    local
        .run_until(async {
            sleep_until(began + ramp).await;
            watch().await;
        })
        .await;
    local.await;
    all.take()
}

async fn stream(
    address: SocketAddr,
    request: Vec<u8>,
    events: u64,
    all: &RefCell<Streams>,
) -> bool {
    let mut line = Line::open(address).await;
    if line.stream.write_all(&request).await.is_err() {
        return false;
    }
    drop(request);
    let (mut next, mut is_done) = (0, false);
    loop {
        // Whole events are taken out; what is left of one stays.
        while let Some(end) = find(&line.buffer, b"\n\n") {
            let event = &line.buffer[..end];
            if find(event, b"[DONE]").is_some() {
                is_done = true;
            } else if find(event, b"\"seq\":").is_some() {
                let mut all = all.borrow_mut();
                all.out_of_order += u64::from(number(event, b"\"seq\":") != next);
                all.hops_ns.push(monotonic_ns().saturating_sub(number(event, b"\"ns\":")));
                all.events += 1;
                next += 1;
            }
            line.buffer.drain(..end + 2);
        }
        if is_done && find(&line.buffer, b"0\r\n\r\n").is_some() {
            return next == events;
        }
        if line.buffer.capacity() > 4 << 10 {
            line.buffer = line.buffer.clone();
        }
        if !timeout(LOST, line.read()).await.unwrap_or(false) {
            return is_done && next == events;
        }
    }
}

/// Short streams, one after the other on one connection; how long each took from question to end.
pub(crate) async fn short_streams(address: SocketAddr, key: &str, count: usize) -> (f64, u64) {
    let request = request(key, 300, "\"stream\":true,\"events\":4,");
    let mut line = Line::open(address).await;
    let (mut times, mut errors) = (Vec::new(), 0);
    for _ in 0..count {
        let from = monotonic_ns();
        if line.ask(&request).await {
            times.push(monotonic_ns() - from);
        } else {
            errors += 1;
            line = Line::open(address).await;
        }
    }
    (percentile(&mut times, 0.5), errors)
}

/// A share of times, in microseconds.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list"
)]
pub(crate) fn percentile(times: &mut [u64], share: f64) -> f64 {
    if times.is_empty() {
        return f64::NAN;
    }
    times.sort_unstable();
    let place = ((times.len() - 1) as f64 * share) as usize;
    times[place] as f64 / 1e3
}

//! Connections to one engine.
//!
//! A connection has no task of its own: whoever uses it drives it, so that dropping an exchange
//! drops its connection at once, and an answer costs no wake-up of another task. Idle ones are kept
//! and reused last in, first out; one that the engine closed meanwhile is noticed at its reuse.

use std::{
    fmt, future, io,
    path::Path,
    pin::{Pin, pin},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body as _, Frame, Incoming},
    client::conn::http1::{Connection, SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::either::Either;

use super::{
    bytes::{Wire, take_idle},
    cores::lane,
    gate::{Ending, Gate},
    payload::Sending,
};
use crate::engine::Endpoint;

/// How long a connection is kept for its next use.
pub(super) const LONGEST_IDLE: Duration = Duration::from_mins(1);
/// How long the engine may take to accept. It is on this machine: only a full backlog takes time.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait for room in the backlog of a Unix socket, which says "full" at once.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// Either kind of stream to an engine.
pub(super) type Stream = Either<UnixStream, TcpStream>;
type Io = TokioIo<Stream>;

/// Why there is no answer, not even its head.
#[derive(Debug, Error)]
pub(super) enum SendFault {
    /// The engine cannot be reached, or hung up before it said anything.
    #[error("the engine hung up without an answer")]
    Gone,
    /// The exchange was ended because the slot goes down.
    #[error("the slot was stopped")]
    Cut,
    /// What came is no HTTP.
    #[error("the engine's answer is no HTTP")]
    Garbled(#[source] hyper::Error),
}

/// The engine's address and the idle connections to it.
pub(super) struct Upstream {
    endpoint: Endpoint,
    idle: [Mutex<Vec<Idle>>; LANES],
    /// Those that the byte relay keeps, the longest idle first.
    wires: [Mutex<Vec<(Wire, Instant)>>; LANES],
}

/// A connection is woken by the thread that opened it, so that each has its own idle ones.
const LANES: usize = 8;

fn of_lane<T>(lanes: &[T; LANES]) -> &T {
    let [first, ..] = lanes;
    lanes.get(lane()).unwrap_or(first)
}

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave a list half changed: each use is one call.
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Idle {
    line: Line,
    since: Instant,
}

impl Upstream {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, idle: Default::default(), wires: Default::default() }
    }

    /// Closes the connections that nobody uses.
    pub(super) fn drop_idle(&self) {
        self.idle.iter().for_each(|idle| lock(idle).clear());
        self.wires.iter().for_each(|wires| lock(wires).clear());
    }

    /// Returns the byte relay's idle connections of this thread.
    pub(super) fn idle_wires(&self) -> MutexGuard<'_, Vec<(Wire, Instant)>> {
        lock(of_lane(&self.wires))
    }

    pub(super) fn take_idle(&self) -> Option<Line> {
        loop {
            let Idle { mut line, since } = self.idle().pop()?;
            if since.elapsed() < LONGEST_IDLE && line.is_open() {
                return Some(line);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        lock(of_lane(&self.idle))
    }

    /// Opens a connection to the engine.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        Ok(match &self.endpoint {
            Endpoint::Unix(path) => Either::Left(connect_unix(path).await?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Without it each small write may wait 40 ms for an acknowledgement.
                stream.set_nodelay(true)?;
                Either::Right(stream)
            }
        })
    }

    async fn connect(&self) -> io::Result<Line> {
        Line::over(self.open().await?).await
    }
}

impl Line {
    async fn over(stream: Stream) -> io::Result<Self> {
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(driver) })
    }
}

/// Connects, waiting for room in the backlog.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BACKLOG_PAUSE).await,
            connected => return connected,
        }
    }
}

impl Gate {
    /// Sends a request and waits for the head of its answer. `request` is called once for each
    /// attempt: a kept connection that turns out closed is replaced by a fresh one.
    pub(super) async fn send(
        &self,
        request: impl Fn() -> Request<Sending>,
    ) -> Result<(Response<Incoming>, Line), SendFault> {
        tokio::select! {
            // An answer that has come counts, also from an engine that died right after.
            biased;
            answer = self.send_on_some_line(request) => answer,
            () = self.ended().cancelled() => Err(match self.ending() {
                Some(Ending::Cut) => SendFault::Cut,
                Some(Ending::Died) | None => SendFault::Gone,
            }),
        }
    }

    async fn send_on_some_line(
        &self,
        request: impl Fn() -> Request<Sending>,
    ) -> Result<(Response<Incoming>, Line), SendFault> {
        if let Some(line) = self.upstream().take_idle() {
            match line.exchange(request()).await {
                Err(SendFault::Gone) => {}
                answer => return answer,
            }
        } else if let Some(wire) = take_idle(self)
            && let Ok(line) = Line::over(wire.0).await
        {
            match line.exchange(request()).await {
                Err(SendFault::Gone) => {}
                answer => return answer,
            }
        }
        let connected = timeout(CONNECT_DEADLINE, self.upstream().connect()).await;
        let Ok(Ok(line)) = connected else { return Err(SendFault::Gone) };
        line.exchange(request()).await
    }

    /// Keeps a connection for its next use, if it can have one.
    pub(super) fn keep(&self, line: Line) {
        if !line.is_reusable() {
            return;
        }
        let since = Instant::now();
        let mut idle = self.upstream().idle();
        // Asked under the lock: `close` closes first and empties the list afterwards.
        if self.is_closed() {
            return;
        }
        idle.retain(|kept| since.duration_since(kept.since) < LONGEST_IDLE);
        idle.push(Idle { line, since });
    }
}

/// One connection to the engine.
pub(super) struct Line {
    sender: SendRequest<Sending>,
    /// `None` once it has ended.
    driver: Option<Connection<Io, Sending>>,
}

impl Line {
    async fn exchange(
        mut self,
        request: Request<Sending>,
    ) -> Result<(Response<Incoming>, Self), SendFault> {
        let mut answer = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        let answer = future::poll_fn(|context| {
            // Before: hands the request over. After: takes what the connection read.
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            drive(driver, context);
            answer.as_mut().poll(context)
        });
        match answer.await {
            Ok(answer) => Ok((answer, self)),
            Err(error) if error.is_parse() => Err(SendFault::Garbled(error)),
            Err(_) => Err(SendFault::Gone),
        }
    }

    /// Returns the next frame of an answer that came on this connection.
    pub(super) fn poll_body(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Before: says that a frame is wanted. After: takes what the connection read.
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        drive(&mut self.driver, context);
        Pin::new(body).poll_frame(context)
    }

    /// Lets the connection notice that its answer has ended.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) {
        drive(&mut self.driver, context);
    }

    /// Takes the connection out of hyper's hands; `None` if something lies in them.
    pub(super) fn into_wire(self) -> Option<Wire> {
        let parts = self.driver?.into_parts();
        parts.read_buf.is_empty().then(|| Wire(parts.io.into_inner()))
    }

    fn is_reusable(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Tells whether the engine has kept its side open, as far as this side has been told.
    fn is_open(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.is_reusable()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("is_open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

/// Lets a connection read and write. Its own result is not needed: a fault reaches the exchange.
fn drive(driver: &mut Option<Connection<Io, Sending>>, context: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(context).is_ready()
    {
        *driver = None;
    }
}

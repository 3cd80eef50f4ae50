//! An engine that does what its arguments say: it dies, hangs, forks, allocates, floods, and in
//! between serves the OpenAI API with made-up tokens. For tests of processes, probes and the proxy.
//!
//! `fake_engine socket=PATH ready_after=300ms tokens=20 token_gap=5ms …`; the keys are in
//! `script.rs`. It reads no clock that can be set and starts within a few milliseconds.

mod http;
mod misbehave;
mod script;
mod serve;

use std::{
    fs::OpenOptions,
    io::{self, BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use http::{Connection, Request};
use nix::{
    sys::signal::{SigSet, Signal},
    time::{ClockId, clock_gettime},
};
use script::{AllocAt, Script};

/// What all connections share.
pub(crate) struct Engine {
    pub(crate) script: Script,
    pub(crate) is_ready: AtomicBool,
    /// Whether it fell into what `wedge` says.
    pub(crate) is_wedged: AtomicBool,
    /// How many prompts are worked on.
    pub(crate) prompts: AtomicU64,
    pub(crate) next_id: AtomicU64,
    /// What `alloc` took, kept so that it stays in use.
    pub(crate) hoard: Mutex<Vec<u8>>,
}

fn main() -> ExitCode {
    let script = match Script::read(std::env::args().skip(1)) {
        Ok(script) => script,
        Err(fault) => {
            say(&format!("error: {fault}"));
            return ExitCode::from(64);
        }
    };
    match run(script) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(74)
        }
    }
}

fn run(script: Script) -> io::Result<u8> {
    note(script.spawn_log.as_deref(), "started")?;
    if script.ignore_term {
        // Blocked in this thread and in all that it starts: never delivered.
        let term: SigSet = [Signal::SIGTERM].into_iter().collect();
        term.thread_block()?;
    }
    misbehave::before_serving(&script)?;
    if let Some(code) = script.die_at_start {
        return Ok(code);
    }
    let engine = Arc::new(Engine {
        is_ready: AtomicBool::new(false),
        is_wedged: AtomicBool::new(false),
        prompts: AtomicU64::new(0),
        next_id: AtomicU64::new(1),
        hoard: Mutex::default(),
        script,
    });
    if engine.script.alloc_at == AllocAt::Start {
        engine.alloc();
    }
    listen(&engine)?;
    load(&engine)?;
    if let Some(life) = engine.script.die_after {
        pause(life);
        return Ok(engine.script.exit);
    }
    wait_for_ever()
}

/// Waits for a signal to end it all.
pub(crate) fn wait_for_ever() -> ! {
    loop {
        thread::park();
    }
}

/// Takes its time, and becomes ready.
fn load(engine: &Engine) -> io::Result<()> {
    let steps = if engine.script.progress { 4 } else { 1 };
    for step in 0..steps {
        if engine.script.progress {
            say(&format!("loading: {} %", step * 100 / steps));
        }
        pause(engine.script.ready_after / steps);
    }
    engine.is_ready.store(true, Ordering::SeqCst);
    note(engine.script.spawn_log.as_deref(), "ready")?;
    say("ready");
    Ok(())
}

fn listen(engine: &Arc<Engine>) -> io::Result<()> {
    let engine = Arc::clone(engine);
    if let Some(path) = &engine.script.socket {
        let listener = UnixListener::bind(path)?;
        say(&format!("listening on {}", path.display()));
        let accept = move || listener.accept().map(|(stream, _)| Connection::Unix(stream));
        thread::spawn(move || accept_all(&engine, accept));
    } else {
        let thief = steal_port(&engine.script)?;
        let listener = TcpListener::bind(("127.0.0.1", engine.script.port))?;
        drop(thief);
        say(&format!("listening on {}", listener.local_addr()?));
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(Connection::Tcp(stream))
        };
        thread::spawn(move || accept_all(&engine, accept));
    }
    Ok(())
}

/// Takes the port before the engine does, the first time.
fn steal_port(script: &Script) -> io::Result<Option<TcpListener>> {
    let Some(done) = script.steal_port_once.as_deref().filter(|done| !done.exists()) else {
        return Ok(None);
    };
    append(done, "done\n")?;
    TcpListener::bind(("127.0.0.1", script.port)).map(Some)
}

fn accept_all(engine: &Arc<Engine>, accept: impl Fn() -> io::Result<Connection>) {
    while let Ok(connection) = accept() {
        if engine.is_deaf() {
            return;
        }
        let engine = Arc::clone(engine);
        thread::spawn(move || {
            // A client that goes away is no fault of the engine.
            drop(answer_all(&engine, &connection));
        });
    }
}

fn answer_all(engine: &Engine, connection: &Connection) -> io::Result<()> {
    let mut requests = BufReader::new(connection.try_clone()?);
    let mut answers = connection.try_clone()?;
    while let Some(request) = Request::read(&mut requests)? {
        engine.answer(&request, &mut answers)?;
        if engine.is_deaf() {
            break;
        }
    }
    Ok(())
}

impl Engine {
    /// Takes memory and touches each page of it.
    pub(crate) fn alloc(&self) {
        let mut hoard = self.hoard.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.script.alloc;
        while hoard.len() < size {
            let more = (size - hoard.len()).min(1 << 20);
            let length = hoard.len() + more;
            hoard.resize(length, 0x5a);
        }
    }
}

/// Appends `WORD NANOSECONDS` of monotonic time.
fn note(log: Option<&Path>, word: &str) -> io::Result<()> {
    let Some(log) = log else { return Ok(()) };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let line = format!("{word} {}\n", Duration::from(now).as_nanos());
    append(log, &line)
}

/// Appends one line in one write.
pub(crate) fn append(log: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(log)?.write_all(line.as_bytes())
}

/// Writes one line to stderr in one write; without stderr there is nobody to tell.
pub(crate) fn say(line: &str) {
    drop(io::stderr().write_all(format!("{line}\n").as_bytes()));
}

/// Lets time pass: for an engine of the test's making that is what a load, or a token, is.
#[expect(clippy::disallowed_methods, reason = "the script asks for time to pass")]
pub(crate) fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}

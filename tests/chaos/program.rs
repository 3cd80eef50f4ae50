//! `make chaos SEED=… SECONDS=…`: a real daemon, real processes, random faults, and what must hold.
//!
//! Arguments: the slotd program, the fake engine, the seed, the seconds, and optionally llama-server
//! and a model. One seed gives one sequence of faults; what the processes make of it differs, as it
//! does on any machine. Ends with 1 when an invariant was broken, and says which and in which step.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a set-up that breaks ends the program with the place where it broke"
)]

mod clients;
mod daemon;
mod faults;
mod processes;
mod random;

use std::{
    env, fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clients::Clients;
use daemon::Daemon;
use faults::Faults;
use random::Random;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// What everybody here knows.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Counts the lives of the daemon: odd while it is up.
    pub(crate) life: AtomicU64,
    /// What was broken.
    broken: Mutex<Vec<String>>,
    /// How requests ended.
    pub(crate) ends: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    pub(crate) url: Mutex<String>,
}

impl Shared {
    /// Notes that an invariant does not hold.
    pub(crate) fn broke(&self, what: String) {
        println!("BROKEN: {what}");
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    pub(crate) fn life(&self) -> u64 {
        self.life.load(Ordering::SeqCst)
    }
}

/// The programs that take part.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) slotd: PathBuf,
    pub(crate) fake: PathBuf,
    pub(crate) llama: Option<(PathBuf, PathBuf)>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> ExitCode {
    let mut given = env::args_os().skip(1);
    let mut path = || given.next().map(|path| fs::canonicalize(path).unwrap());
    let (slotd, fake) = (path().unwrap(), path().unwrap());
    let mut number = || given.next().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let (seed, seconds) = (number(), number());
    let llama = given.next().map(PathBuf::from).zip(given.next().map(PathBuf::from));
    println!("seed {seed}, {seconds} s");
    let shared = Arc::new(Shared::default());
    let programs = Programs { slotd, fake, llama };
    run(programs, seed, Duration::from_secs(seconds), &shared).await;
    for (end, count) in &*shared.ends.lock().unwrap() {
        println!("  requests: {count} × {end}");
    }
    let broken = shared.broken.lock().unwrap().len();
    println!("seed {seed}: {broken} broken");
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(programs: Programs, seed: u64, time: Duration, shared: &Arc<Shared>) {
    let mut daemon = Daemon::start(programs, Arc::clone(shared)).await;
    daemon.warm_up().await;
    let baseline = daemon.figures();
    println!("  baseline: {baseline:?}");
    let mut random = Random::new(seed);
    let clients = Clients::start(&mut random, shared, &daemon.slots());
    let mut watch = JoinSet::new();
    watch.spawn(processes::watch(daemon.nonce().to_owned(), Arc::clone(shared)));
    let end = Instant::now() + time;
    let mut faults = Faults::default();
    while Instant::now() < end {
        faults.step(&mut daemon, &mut random).await;
        daemon.check_files();
        sleep(Duration::from_millis(random.below(120))).await;
    }
    faults.mend(&mut daemon).await;
    if !clients.end().await {
        shared.broke("I9: a client waits for ever".to_owned());
    }
    faults.tell();
    daemon.check_end(baseline).await;
    watch.shutdown().await;
}

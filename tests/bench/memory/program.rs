//! `make bench-box`: a box of memory that holds two of five models, under requests for all of them. slotd
//! and llama-server's own router get the same requests at the same times, each in a box of its own.
//!
//! Arguments: the slotd program, llama-server, the directory of the five files. Prints a Markdown table.
//! `SLOTD_BENCH_BOX` says for how many minutes, `SLOTD_BENCH_BOX_SEED` which requests,
//! `SLOTD_BENCH_BOX_EVERY_MS` how often one comes, `SLOTD_BENCH_BOX_MODELS_MAX` how many models the router may
//! have, `SLOTD_BENCH_BOX_KEEP` a directory for the logs and for a line about each request.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot be set up ends with the place where it broke"
)]

mod cell;
mod random;
mod report;
mod sample;
mod side;
mod trace;

use std::{env, fs, path::PathBuf, rc::Rc, time::Duration};

use side::{Paths, Side};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinSet, LocalSet},
    time::{Instant, sleep, sleep_until},
};
use trace::Ask;

/// What all engines of slotd may take together, in MiB: any two of the models, no three.
const LIMIT_MIB: u64 = 800;
/// The limit of each box, in MiB: that, what slotd keeps free, and what it takes itself.
const BOX_MIB: u64 = 896;
/// How often both are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// One of the models, and how it is served.
struct Model {
    name: &'static str,
    file: &'static str,
    /// Tokens of one request.
    context: u32,
    parallel: u32,
    /// Loaded from the start.
    is_kept: bool,
    /// Prompts that are put aside, in MiB: what slotd gives the engine, for the router's engines too.
    cache_ram: u32,
}

const MODELS: [Model; 5] = [
    Model {
        name: "main",
        file: "f16.gguf",
        context: 1024,
        parallel: 2,
        is_kept: true,
        cache_ram: 45,
    },
    Model {
        name: "coder",
        file: "q8_0.gguf",
        context: 2048,
        parallel: 2,
        is_kept: false,
        cache_ram: 90,
    },
    Model {
        name: "long",
        file: "q4_1.gguf",
        context: 4096,
        parallel: 1,
        is_kept: false,
        cache_ram: 90,
    },
    Model {
        name: "small",
        file: "q5_0.gguf",
        context: 2048,
        parallel: 2,
        is_kept: false,
        cache_ram: 90,
    },
    Model {
        name: "embed",
        file: "q4_0.gguf",
        context: 512,
        parallel: 2,
        is_kept: false,
        cache_ram: 23,
    },
];

fn asked<T: std::str::FromStr>(name: &str, usual: T) -> T {
    let given = env::var(name).ok().filter(|text| !text.is_empty());
    given.map_or(usual, |text| {
        text.parse().ok().unwrap_or_else(|| panic!("{name}={text}: a number"))
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut ended = signal(SignalKind::terminate()).unwrap();
    let work = LocalSet::new();
    // What was started is ended by being dropped, whoever ends this.
    tokio::select! {
        () = work.run_until(run()) => {}
        _ = ended.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn run() {
    let mut given = env::args_os().skip(1).map(|path| fs::canonicalize(path).unwrap());
    let (slotd, llama, models) = (given.next(), given.next(), given.next());
    let kept = env::var_os("SLOTD_BENCH_BOX_KEEP").map(PathBuf::from);
    let paths =
        Paths { slotd: slotd.unwrap(), llama: llama.unwrap(), models: models.unwrap(), kept };
    let length = Duration::from_secs_f64(asked("SLOTD_BENCH_BOX", 30.0) * 60.0);
    let every = Duration::from_millis(asked("SLOTD_BENCH_BOX_EVERY_MS", 6000));
    let seed: u64 = asked("SLOTD_BENCH_BOX_SEED", 5);
    let most: u32 = asked("SLOTD_BENCH_BOX_MODELS_MAX", 2);
    let names = MODELS.each_ref().map(|model| model.name);
    let asks = Rc::new(trace::draw(seed, length, every, &names));
    println!(
        "Seed {seed}, {} requests in {:.0} s, boxes of {BOX_MIB} MiB, load average {}",
        asks.len(),
        length.as_secs_f64(),
        load()
    );
    let sides = [
        Rc::new(Side::slotd(&paths, 0, trace::quiet(length)).await),
        Rc::new(Side::router(&paths, 1, most).await),
    ];
    drive(&sides, &asks, length).await;
    println!("Load average at the end {}\n", load());
    for side in &sides {
        side.end().await;
    }
    report::print(&sides, &asks, most);
    if let Some(dir) = &paths.kept {
        report::keep(&sides, &asks, dir);
    }
}

/// Sends everything to both sides at its time; returns once all of it has ended.
async fn drive(sides: &[Rc<Side>; 2], asks: &Rc<Vec<Ask>>, length: Duration) {
    let from = Instant::now();
    let mut watchers = JoinSet::new();
    for side in sides {
        watchers.spawn_local(sample::look(Rc::clone(side)));
        for model in MODELS.iter().filter(|_| side.control.is_some()) {
            watchers.spawn_local(sample::watch(Rc::clone(side), model.name));
        }
    }
    let swapped = sides.clone();
    watchers.spawn_local(async move {
        // Neither has the better core for the whole time.
        sleep(length / 2).await;
        swapped[0].cell.on_core(1);
        swapped[1].cell.on_core(0);
    });
    let mut requests = JoinSet::new();
    for index in 0..asks.len() {
        sleep_until(from + asks[index].at).await;
        for side in sides {
            let (side, asks) = (Rc::clone(side), Rc::clone(asks));
            requests.spawn_local(async move { side.ask(index, &asks[index]).await });
        }
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    // What is still restored comes to its end.
    sleep(Duration::from_secs(2)).await;
    watchers.shutdown().await;
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

//! What the endpoint costs, measured beside a relay that knows nothing and beside other proxies.
//!
//! `endpoint rounds SLOTD [ROUNDS] [peers]` measures; `endpoint crowd SLOTD [STREAMS] [SECONDS]` holds
//! many streams at once. The other words are the parts that these start: `origin`, `origin-tcp`, `relay`.
//! The proxy has one core, origin and load the other; every visit has a fresh process; ratios are taken
//! within a round.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::too_many_lines,
    clippy::infinite_loop,
    clippy::disallowed_methods,
    reason = "a benchmark that cannot be set up ends with the place where it broke"
)]

mod crowd;
mod load;
mod origin;
mod relay;
mod rounds;
mod sys;
mod table;
mod target;
mod visit;

use std::{env, path::PathBuf, time::Duration};

/// The programs that take part.
struct Programs {
    own: PathBuf,
    slotd: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Vec<String> = env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let programs = |slotd: &str| Programs {
        own: env::current_exe().unwrap(),
        slotd: PathBuf::from(slotd).canonicalize().unwrap(),
    };
    match given.as_slice() {
        ["origin", socket] => origin::serve(PathBuf::from(socket)).await,
        ["origin-tcp", address] => origin::serve_tcp((*address).to_owned()).await,
        ["relay", address, upstream] => {
            relay::serve((*address).to_owned(), (*upstream).to_owned()).await;
        }
        ["rounds", slotd, more @ ..] => {
            let count = more.iter().find_map(|word| word.parse().ok()).unwrap_or(3);
            rounds::rounds(&programs(slotd), count, more.contains(&"peers")).await;
        }
        // For a profiler beside it.
        ["load", address, key, connections, seconds] => {
            let request = load::request(key, 300, "");
            let until = load::Until::Time(Duration::from_secs(seconds.parse().unwrap()));
            let (address, connections) = (address.parse().unwrap(), connections.parse().unwrap());
            sys::move_to_core(target::LOAD_CORE);
            eprintln!("{:?}", load::closed_loop(address, &request, connections, until).await);
        }
        ["crowd", slotd, more @ ..] => {
            let mut numbers = more.iter().filter_map(|word| word.parse::<u64>().ok());
            let (streams, seconds) =
                (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(60));
            crowd::crowd(&programs(slotd), usize::try_from(streams).unwrap(), seconds).await;
        }
        _ => panic!("rounds SLOTD [ROUNDS] [peers], or crowd SLOTD [STREAMS] [SECONDS]"),
    }
}

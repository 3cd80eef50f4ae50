//! Many streams held at once for a while: none may be lost, none out of order.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::time::sleep;

use super::{
    Programs,
    load::{percentile, streams},
    sys::{self, cpu_ns, pss_kib},
    target::{Kind, LOAD_CORE, Origin, Target},
};

const PACE: Duration = Duration::from_secs(1);
/// How long the streams take to begin.
const RAMP: Duration = Duration::from_secs(10);
/// Files that are no connections of clients' or engines': slotd keeps so many back.
const OTHER_FILES: u64 = 64;

/// Holds streams for so many seconds. A stream takes slotd two files: where the system allows too few
/// for one daemon, several share them.
#[expect(clippy::print_stdout, reason = "the report")]
pub(crate) async fn crowd(programs: &Programs, count: usize, seconds: u64) {
    sys::move_to_core(LOAD_CORE);
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let each = usize::try_from(files.saturating_sub(OTHER_FILES) / 2).unwrap().max(1);
    let daemons = count.div_ceil(each);
    let origin = Origin::start(programs, LOAD_CORE);
    let mut targets = Vec::new();
    for _ in 0..daemons {
        targets.push(Target::start(Kind::SlotdUnix, programs, &origin).await);
    }
    let pids = targets.iter().flat_map(Target::pids).collect();
    let doors: Vec<_> = targets.iter().map(|target| (target.address, target.key.clone())).collect();
    let (idle, mut full, mut cpu) = (pss_kib(&pids), 0, 0);
    let events = seconds + RAMP.as_secs() + 5;
    let mut all = streams(&doors, count, (events, PACE, RAMP), async || {
        let before = cpu_ns(&pids);
        sleep(Duration::from_secs(seconds)).await;
        (full, cpu) = (pss_kib(&pids), cpu_ns(&pids) - before);
    })
    .await;
    let p50 = percentile(&mut all.hops_ns, 0.5);
    let p99 = percentile(&mut all.hops_ns, 0.99);
    println!(
        "| streams at once | daemons | seconds | whole | lost | events | out of order | MiB | KiB/stream | hop p50 / p99 ms | CPU µs/event |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let per_stream = full.saturating_sub(idle) * 100 / u64::try_from(count).unwrap();
    let sent = u64::try_from(count).unwrap() * seconds;
    println!(
        "| {count} | {daemons} | {seconds} | {} | {} | {} | {} | {} | {}.{:02} | {:.1} / {:.1} | {}.{} |",
        all.whole,
        all.lost,
        all.events,
        all.out_of_order,
        full / 1024,
        per_stream / 100,
        per_stream % 100,
        p50 / 1e3,
        p99 / 1e3,
        cpu / sent / 1000,
        cpu / sent % 1000 / 100
    );
}

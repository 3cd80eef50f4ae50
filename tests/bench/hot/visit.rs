//! One visit at one target: a fresh process, each kind of load once.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::sleep;

use super::{
    Programs,
    load::{Loop, Until, closed_loop, percentile, request, short_streams, streams},
    sys::{cpu_ns, machine_ns, monotonic_ns, pss_kib},
    target::{Kind, Origin, Target},
};

/// How many paced streams at once, and the time between two events of one.
const STREAMS: usize = 2000;
const PACE: Duration = Duration::from_millis(100);
const BIG_PROMPT: usize = 32 << 10;
const PROMPT: usize = 300;
/// So many requests come before memory is looked at again.
const LONG_LIFE: u64 = 100_000;

/// What a visit found; figures that were not asked for are not numbers.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    pub(crate) one: Loop,
    pub(crate) sixteen: Loop,
    pub(crate) many: Loop,
    pub(crate) big: Loop,
    pub(crate) cpu_us: f64,
    pub(crate) short_us: f64,
    pub(crate) event_cpu_us: f64,
    pub(crate) hop_us: f64,
    pub(crate) idle_mib: f64,
    pub(crate) streams_mib: f64,
    pub(crate) errors: u64,
    /// Cores that others used meanwhile, and what other machines took.
    pub(crate) foreign: f64,
    pub(crate) steal: f64,
}

#[expect(clippy::cast_precision_loss, reason = "memory and CPU time are far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

fn mib(pids: &BTreeSet<u32>) -> f64 {
    float(pss_kib(pids)) / 1024.0
}

/// Measures everything once.
pub(crate) async fn visit(kind: Kind, programs: &Programs, origin: &Origin) -> Visit {
    let (began, (busy, stolen)) = (monotonic_ns(), machine_ns());
    let ours = || [std::process::id()].into_iter().chain(origin.pids()).collect();
    let own_before = cpu_ns(&ours());
    let target = Target::start(kind, programs, origin).await;
    let pids = target.pids();
    sleep(Duration::from_millis(200)).await;
    let idle_mib = mib(&pids);
    let plain = request(&target.key, PROMPT, "");
    let run = |connections, ms| {
        let plain = plain.clone();
        let address = target.address;
        async move {
            let until = Until::Time(Duration::from_millis(ms));
            closed_loop(address, &plain, connections, until).await
        }
    };
    run(16, 200).await;
    let one = run(1, 700).await;
    let sixteen = run(16, 600).await;
    let before = cpu_ns(&pids);
    let many = run(64, 1500).await;
    let cpu_us = float(cpu_ns(&pids) - before) / 1e3 / float(many.requests.max(1));
    let (short_us, short_errors) = short_streams(target.address, &target.key, 300).await;
    let prompt = request(&target.key, BIG_PROMPT, "");
    let until = Until::Time(Duration::from_secs(1));
    let big = closed_loop(target.address, &prompt, 64, until).await;
    let (mut streams_mib, mut event_ns, window) = (0.0, 0, Duration::from_millis(1500));
    let mut paced = streams(
        &[(target.address, target.key.clone())],
        STREAMS,
        (30, PACE, Duration::from_millis(800)),
        async || {
            let before = cpu_ns(&pids);
            sleep(window).await;
            event_ns = cpu_ns(&pids) - before;
            streams_mib = mib(&pids);
        },
    )
    .await;
    let events = float(u64::try_from(STREAMS).unwrap()) * window.as_secs_f64() / PACE.as_secs_f64();
    let errors = one.errors + sixteen.errors + many.errors + big.errors + short_errors;
    let (now, (busy_now, stolen_now)) = (monotonic_ns(), machine_ns());
    let used = cpu_ns(&ours()) - own_before + cpu_ns(&pids);
    let took = float(now - began);
    Visit {
        one,
        sixteen,
        many,
        big,
        cpu_us,
        short_us,
        event_cpu_us: float(event_ns) / 1e3 / events,
        hop_us: percentile(&mut paced.hops_ns, 0.5),
        idle_mib,
        streams_mib,
        errors: errors + paced.lost + paced.out_of_order,
        foreign: float((busy_now - busy).saturating_sub(used)) / took,
        steal: float(stolen_now - stolen) / took,
    }
}

/// Memory after a long life: so many requests, then a moment's rest.
pub(crate) async fn long_life(programs: &Programs, origin: &Origin) -> (u64, f64, f64) {
    let target = Target::start(Kind::Slotd, programs, origin).await;
    let pids = target.pids();
    let before = mib(&pids);
    let plain = request(&target.key, PROMPT, "");
    let done = closed_loop(target.address, &plain, 64, Until::Count(LONG_LIFE)).await;
    sleep(Duration::from_millis(300)).await;
    (done.requests, before, mib(&pids))
}

//! What is worth knowing of a child's last seconds, kept while it lives.
//!
//! Memory and counters are read once a second: what was counted long before a death says nothing
//! about it.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    engine,
    process::{self, Counters, KernelTail},
    sensor::{self, Processes},
    spec::{
        Bytes,
        death::{Evidence, ExitStatus, KernelLog, MemorySample, MemoryTimeline},
    },
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The time between two looks in a child's first seconds, in which most deaths of a load happen.
const FIRST_PERIOD: Duration = Duration::from_millis(250);
/// How many looks are kept.
const KEPT: usize = 12;

/// Counters that only rise.
#[derive(Clone, Copy, Debug)]
struct Counts {
    own: Option<u64>,
    daemon: Option<u64>,
    machine: Option<u64>,
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    resident: Option<Bytes>,
    available: Option<Bytes>,
    counts: Counts,
}

/// Begun before the spawn, so that nothing is missed.
#[derive(Debug)]
pub(super) struct Before {
    kernel: KernelTail,
    counts: Counts,
}

/// A child's last seconds.
#[derive(Debug)]
pub(super) struct LastSeconds {
    pid: u32,
    counters: Counters,
    kernel: KernelTail,
    /// What the kernel's log said last of this child, and when it was read.
    said: Option<(Instant, KernelLog)>,
    processes: Processes,
    total: Option<Bytes>,
    looks: VecDeque<Look>,
    /// The counters at the last look that is not kept any more, or before the spawn.
    baseline: Counts,
    began: Instant,
}

impl Before {
    /// Looks for the first time.
    pub(super) fn begin() -> Self {
        let counts = Counts {
            own: Some(0),
            daemon: process::daemon_oom_kills(),
            machine: sensor::machine_oom_kills(),
        };
        Self { kernel: KernelTail::open(), counts }
    }

    /// Goes on with the child that was spawned.
    pub(super) fn of(self, pid: u32, counters: Counters) -> LastSeconds {
        LastSeconds {
            pid,
            counters,
            kernel: self.kernel,
            said: None,
            processes: Processes::new(),
            total: sensor::host_memory().total,
            looks: VecDeque::with_capacity(KEPT),
            baseline: self.counts,
            began: Instant::now(),
        }
    }
}

impl LastSeconds {
    /// Looks until it is dropped: the child's end ends it.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn keep(&mut self) -> Infallible {
        loop {
            self.look();
            let is_young = self.began.elapsed() < FIRST_PERIOD.saturating_mul(12);
            sleep(if is_young { FIRST_PERIOD } else { PERIOD }).await;
        }
    }

    /// Reads a few small files of the kernel.
    fn look(&mut self) {
        self.read_kernel_log();
        let look = Look {
            at: Instant::now(),
            resident: self.processes.look_at(self.pid),
            available: sensor::host_memory().available,
            counts: self.counts(),
        };
        if self.looks.len() >= KEPT
            && let Some(oldest) = self.looks.pop_front()
        {
            self.baseline = oldest.counts;
        }
        self.looks.push_back(look);
    }

    /// The wider counters are read only where the child's own is missing.
    fn counts(&self) -> Counts {
        let own = self.counters.oom_kills();
        let is_alone = own.is_none();
        Counts {
            own,
            daemon: is_alone.then(process::daemon_oom_kills).flatten(),
            machine: is_alone.then(sensor::machine_oom_kills).flatten(),
        }
    }

    fn read_kernel_log(&mut self) {
        let pid = process::has_kernels_pids().then_some(self.pid);
        for line in self.kernel.read_new() {
            let child = engine::log::Named { pid, cgroup: self.counters.cgroup_name() };
            if let Some(said) = engine::log::kernel(&line, child) {
                self.said = Some((Instant::now(), said));
            }
        }
    }

    /// Says what is known once the child has ended, before it is reaped.
    pub(super) fn at_the_end(&mut self, status: ExitStatus) -> Evidence {
        self.read_kernel_log();
        let now = Instant::now();
        let counts = self.counts();
        let oldest = self.looks.front().map_or(self.began, |look| look.at);
        let rise = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        let kernel_log = match &self.said {
            Some((at, said)) if *at >= oldest => said.clone(),
            Some(_) | None if self.names_are_known() => KernelLog::Silent,
            Some(_) | None => KernelLog::Unreadable,
        };
        Evidence {
            oom_kills: rise(counts.own, self.baseline.own.or(Some(0))),
            daemon_oom_kills: rise(counts.daemon, self.baseline.daemon),
            machine_oom_kills: rise(counts.machine, self.baseline.machine),
            kernel_log,
            memory: Box::new(MemoryTimeline {
                total_bytes: self.total,
                limit_bytes: self.counters.limit(),
                samples: self.looks.iter().map(|look| look.before(now)).collect(),
            }),
            ..Evidence::of(status)
        }
    }

    /// Tells whether a line about the child would have been known as one.
    fn names_are_known(&self) -> bool {
        let has_name = process::has_kernels_pids() || self.counters.cgroup_name().is_some();
        self.kernel.is_readable() && has_name
    }
}

impl Look {
    fn before(&self, end: Instant) -> MemorySample {
        let before = end.saturating_duration_since(self.at).as_millis();
        MemorySample {
            before_ms: u64::try_from(before).unwrap_or(u64::MAX),
            rss_bytes: self.resident,
            available_bytes: self.available,
        }
    }
}

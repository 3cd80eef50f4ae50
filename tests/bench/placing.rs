//! How long the core takes to decide, by how many slots there are: who makes room, who starts, and what
//! a single event comes to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use slotd::{
    spec::{
        Bytes, Monotime, SlotName, WaiterId,
        ladder::Rung,
        memory::{Basis, EngineReading, GpuNeed, GpuReading, GpuState, MemoryReading, Need, Room},
        profile::Profile,
    },
    supervisor::{ChildEvent, Command, EngineInfo, Event, Policy, SlotEvent, Supervisor},
};
use tokio::time::Instant;

const GPUS: u64 = 8;
const MIB: u64 = 1 << 20;
/// Fewer without optimisation, which is good for ratios only.
const ROUNDS: usize = if cfg!(debug_assertions) { 3 } else { 21 };

/// Prints median times at three sizes.
pub(crate) fn run() {
    println!(
        "| slots on {GPUS} GPUs | who makes room | and shown | engines that do | all start | one becomes ready | a request comes |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for slots in [10, 100, 1000] {
        let rounds: Vec<_> = (0..ROUNDS).map(|_| round(slots)).collect();
        let median = |of: fn(&Round) -> Duration| {
            let mut times: Vec<_> = rounds.iter().map(of).collect();
            times.sort_unstable();
            times[ROUNDS / 2]
        };
        let (room, all) = (median(|round| round.make_room), median(|round| round.all_start));
        let decision = median(|round| round.decision);
        let (ready, request) = (median(|round| round.ready), median(|round| round.request));
        let leaving = rounds[0].leaving;
        println!(
            "| {slots} | {decision:.2?} | {room:.2?} | {leaving} | {all:.2?} | {ready:.2?} | {request:.2?} |"
        );
    }
}

/// How long each kind of decision took, with the view of all slots that follows it.
struct Round {
    all_start: Duration,
    ready: Duration,
    request: Duration,
    make_room: Duration,
    /// Without the view.
    decision: Duration,
    leaving: usize,
}

/// A core with what it is asked.
struct Bench {
    core: Supervisor,
    now: Monotime,
    commands: Vec<Command>,
    /// What the last decision took by itself.
    decision: Duration,
}

impl Bench {
    /// Tells the core of an event, as the daemon does: its decision, its view, its next deadline.
    fn tell(&mut self, event: Event) -> Duration {
        let began = Instant::now();
        self.core.handle(self.now, event, &mut self.commands);
        self.decision = began.elapsed();
        let seen = self.core.snapshot();
        let next = self.core.deadline();
        let took = began.elapsed();
        drop((seen, next));
        took
    }
}

/// `slots` engines come, and fill all GPUs; a request comes for one of them; then one slot comes that
/// needs half of them all.
fn round(slots: u64) -> Round {
    let total = 80_000 * MIB;
    let part = total * GPUS / (slots + 1) - MIB;
    let names: Vec<SlotName> = (0..slots).map(name).collect();
    let policy = Policy { memory_reserve: Bytes(0), ..Policy::default() };
    let core = Supervisor::new(policy, 1, BTreeMap::new());
    let mut bench =
        Bench { core, now: Monotime::default(), commands: Vec::new(), decision: Duration::ZERO };
    let big = name(slots);
    let profiles = names.iter().map(|name| (name.clone(), profile(name, true)));
    let profiles = profiles.chain([(big.clone(), profile(&big, false))]);
    bench.tell(Event::ProfilesChanged { profiles: profiles.collect() });
    for name in &names {
        bench.tell(child(name, sized(part)));
    }
    let all_start = bench.tell(reading(total, &[], part));
    let mut ready = Vec::new();
    for name in &names {
        bench.tell(child(name, spawned()));
        ready.push(bench.tell(child(name, ChildEvent::BecameReady)));
    }
    bench.now = bench.now.after(Duration::from_hours(1));
    bench.tell(Event::DeadlinePassed);
    let mut request: Vec<_> = (0..slots.min(100))
        .map(|waiter| {
            let waiter = WaiterId(waiter);
            bench.tell(of(&names[names.len() / 2], SlotEvent::Demanded { waiter }))
        })
        .collect();
    bench.tell(of(&big, SlotEvent::Demanded { waiter: WaiterId(slots) }));
    bench.tell(child(&big, sized(total * GPUS / 2)));
    bench.commands.clear();
    let make_room = bench.tell(reading(total, &names, part));
    let decision = bench.decision;
    let is_drain = |command: &&Command| matches!(command, Command::Drain { .. });
    let leaving = bench.commands.iter().filter(is_drain).count();
    ready.sort_unstable();
    request.sort_unstable();
    let (ready, request) = (ready[ready.len() / 2], request[request.len() / 2]);
    Round { all_start, ready, request, make_room, decision, leaving }
}

fn name(index: u64) -> SlotName {
    format!("slot-{index}").parse().unwrap()
}

fn profile(name: &SlotName, autostart: bool) -> Arc<Profile> {
    let value = json!({
        "slot": name, "source": "a.toml", "engine": "Auto", "args": [], "env": {}, "aliases": [],
        "capabilities": [], "autostart": autostart, "essential": false, "max_restarts": 3,
        "start_timeout": { "secs": 600, "nanos": 0 }, "stop_timeout": { "secs": 10, "nanos": 0 },
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn of(slot: &SlotName, event: SlotEvent) -> Event {
    Event::Slot { slot: slot.clone(), event }
}

fn child(slot: &SlotName, event: ChildEvent) -> Event {
    let generation = slotd::spec::Generation(1);
    of(slot, SlotEvent::Child { generation, event })
}

fn sized(spread: u64) -> ChildEvent {
    let gpu = Some(GpuNeed { spread: Bytes(spread), each: Bytes(0) });
    let need = Need { host: Bytes(MIB), gpu, basis: Basis::Header };
    ChildEvent::Sized { rungs: [Rung::default()].into(), needs: [need].into() }
}

fn spawned() -> ChildEvent {
    let engine = EngineInfo {
        name: "engine".to_owned(),
        program: "engine".to_owned(),
        parallel: 1,
        cores: 0,
        sole: None,
    };
    ChildEvent::Spawned { pid: 1, engine, rungs: [Rung::default()].into() }
}

fn reading(total: u64, engines: &[SlotName], part: u64) -> Event {
    let used = part * u64::try_from(engines.len()).unwrap() / GPUS;
    let gpus = (0..u32::try_from(GPUS).unwrap()).map(|index| {
        let room = Room { total: Bytes(total), free: Bytes(total.saturating_sub(used)) };
        let (uuid, name) = (format!("GPU-{index}"), "bench".to_owned());
        (index, GpuReading { uuid, name, state: GpuState::Present(room) })
    });
    let room = Room { total: Bytes(1 << 40), free: Bytes(1 << 40) };
    let reading = MemoryReading { host: Some(room), gpus: gpus.collect() };
    let engines = engines.iter().map(|name| {
        let generation = slotd::spec::Generation(1);
        let idle_for = Duration::from_hours(1);
        (name.clone(), EngineReading { generation, idle_for, ..EngineReading::default() })
    });
    Event::MemoryRead { reading, engines: engines.collect() }
}

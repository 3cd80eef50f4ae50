//! How long the core takes to decide who makes room, by how many slots there are.

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

/// Prints the median time of the decision at three sizes.
pub(crate) fn run() {
    println!("| slots on {GPUS} GPUs | decision, median of {ROUNDS} | engines that make room |");
    println!("| ---: | ---: | ---: |");
    for slots in [10, 100, 1000] {
        let mut times = Vec::new();
        let mut leaving = 0;
        for _ in 0..ROUNDS {
            let (time, drains) = decide(slots);
            times.push(time);
            leaving = drains;
        }
        times.sort_unstable();
        println!("| {slots} | {:?} | {leaving} |", times[ROUNDS / 2]);
    }
}

/// All GPUs are full of `slots` engines; one comes that needs half of them all.
fn decide(slots: u64) -> (Duration, usize) {
    let total = 80_000 * MIB;
    let part = total * GPUS / (slots + 1) - MIB;
    let names: Vec<SlotName> = (0..slots).map(name).collect();
    let policy = Policy { memory_reserve: Bytes(0), ..Policy::default() };
    let mut core = Supervisor::new(policy, 1, BTreeMap::new());
    let mut commands = Vec::new();
    let big = name(slots);
    let profiles = names.iter().chain([&big]).map(|name| (name.clone(), profile(name)));
    let profiles = Event::ProfilesChanged { profiles: profiles.collect() };
    let mut now = Monotime::default();
    core.handle(now, profiles, &mut commands);
    for (index, name) in names.iter().enumerate() {
        let waiter = WaiterId(u64::try_from(index).unwrap());
        core.handle(now, of(name, SlotEvent::Demanded { waiter }), &mut commands);
        core.handle(now, child(name, sized(part)), &mut commands);
    }
    // One reading starts them all.
    core.handle(now, reading(total, &[], part), &mut commands);
    for name in &names {
        core.handle(now, child(name, spawned()), &mut commands);
        core.handle(now, child(name, ChildEvent::BecameReady), &mut commands);
    }
    now = now.after(Duration::from_hours(1));
    core.handle(now, Event::DeadlinePassed, &mut commands);
    core.handle(now, of(&big, SlotEvent::Demanded { waiter: WaiterId(slots) }), &mut commands);
    core.handle(now, child(&big, sized(total * GPUS / 2)), &mut commands);
    commands.clear();
    let event = reading(total, &names, part);
    let began = Instant::now();
    core.handle(now, event, &mut commands);
    let took = began.elapsed();
    let drains = commands.iter().filter(|command| matches!(command, Command::Drain { .. }));
    (took, drains.count())
}

fn name(index: u64) -> SlotName {
    format!("slot-{index}").parse().unwrap()
}

fn profile(name: &SlotName) -> Arc<Profile> {
    let value = json!({
        "slot": name, "source": "a.toml", "engine": "Auto", "args": [], "env": {}, "aliases": [],
        "capabilities": [], "autostart": false, "essential": false, "max_restarts": 3,
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

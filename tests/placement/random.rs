//! Random days of machines without a GPU, with one, two and eight.

use std::time::Duration;

use slotd::{
    spec::{
        SlotName,
        death::ExitStatus,
        pressure::{Pressure, Strain},
        residence::{Residence, Restore, WhenFull},
    },
    supervisor::{Event, Policy, SlotEvent, StateView},
};

use super::machine::{Fate, GIB, Machine, Truth, need, residence, works};

/// Events of each machine; `SLOTD_PLACEMENT_EVENTS` sets another number.
const EVENTS: u64 = 25_000;

/// `SplitMix64`, so that a seed gives the same day on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `from..to`.
    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.roll() % (to - from)
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.within(from, to))
    }
}

/// Twelve slots, all sorts of them, for a machine with GPUs of `gpu` bytes.
fn slots(machine: &mut Machine, gpu: Option<u64>) -> Vec<SlotName> {
    let dice = &mut machine.dice;
    let made = (0..12_u64).map(|index| {
        let on_gpu = gpu.is_some() && index % 4 != 3;
        let largest = gpu.unwrap_or(8 * GIB) / (1 << 20);
        let size = dice.within(largest / 10, largest * 7 / 10);
        let first = if on_gpu { need(500, Some(size)) } else { need(size / 4, None) };
        let lower = if on_gpu { need(500, Some(size / 2)) } else { need(size / 8, None) };
        let needs = if index.is_multiple_of(3) { vec![first, lower] } else { vec![first] };
        let stay = Residence {
            pinned: index == 1,
            pressure_evict_only: index == 2,
            priority: Some(u32::try_from(dice.within(0, 100)).unwrap()),
            min_residency: (index == 4).then_some(Duration::from_secs(30)),
            when_full: if index == 5 { WhenFull::Refuse } else { WhenFull::Swap },
            restore: (index == 6).then_some(Restore::Never),
            ..Residence::default()
        };
        let mut profile = residence(&format!("slot-{index}"), stay);
        profile.autostart = index.is_multiple_of(5);
        profile.max_restarts = if index < 10 { 1000 } else { 3 };
        let fate = match index {
            10 => Fate::CannotStart,
            11 => Fate::DiesLoading,
            _ => Fate::Works,
        };
        (profile, Truth { fate, load: dice.millis(1000, 20_000), ..works(needs) })
    });
    let made: Vec<_> = made.collect();
    let names = made.iter().map(|(profile, _)| profile.slot.clone()).collect();
    machine.have(made);
    names
}

/// Strangers come and go; GPUs are lost and found.
fn weather(machine: &mut Machine) {
    machine.strangers = machine.dice.within(0, machine.host / 4);
    if machine.dice.within(0, 5) == 0 {
        let dice = &mut machine.dice;
        let mut level = || match dice.within(0, 8) {
            6 => Pressure::Elevated,
            7 => Pressure::Critical,
            _ => Pressure::Normal,
        };
        let gpus = (0_u32..).zip(&machine.gpus).map(|(index, _)| (index, level())).collect();
        let strain = Strain { memory: level(), gpus, ..Strain::default() };
        machine.tell(&Event::PressureChanged { strain });
    }
    for index in 0..machine.gpus.len() {
        let (total, roll) = (machine.gpus[index].total, machine.dice.within(0, 100));
        let taken = machine.dice.within(0, total / 4);
        let gpu = &mut machine.gpus[index];
        gpu.strangers = if roll < 50 { taken } else { 0 };
        gpu.is_lost = roll == 99;
        if gpu.is_lost {
            let index = u32::try_from(index).unwrap();
            let dead: Vec<_> = machine
                .processes
                .iter()
                .filter(|(_, process)| process.share.gpus.contains_key(&index))
                .map(|(slot, process)| (slot.clone(), process.generation))
                .collect();
            for (slot, generation) in dead {
                machine.exit(&slot, generation, ExitStatus::Signal(6));
            }
        }
    }
}

fn live(gpus: &[u64], seed: u64) {
    let events = std::env::var("SLOTD_PLACEMENT_EVENTS").ok();
    let events = events.map_or(EVENTS, |text| text.parse().unwrap());
    let host = if gpus.is_empty() { 8 * GIB } else { 32 * GIB };
    let mut machine = Machine::new(host, gpus, Policy::default(), seed);
    let largest = gpus.iter().copied().min().max(Some(gpus.iter().sum::<u64>() / 3));
    let names = slots(&mut machine, largest.filter(|_| !gpus.is_empty()));
    while machine.figures.events < events {
        let pick = usize::try_from(machine.dice.within(0, 1000)).unwrap();
        let name = names[pick % names.len()].clone();
        match machine.dice.within(0, 100) {
            0..70 => machine.request(&name),
            70..72 => machine.ask(&name, SlotEvent::LoadRequested),
            72 => machine.ask(&name, SlotEvent::LoadOrderedByRule),
            73..76 => machine.ask(&name, SlotEvent::UnloadRequested),
            76..84 => weather(&mut machine),
            84..87 => machine.pass(Duration::from_mins(3)),
            _ => {}
        }
        let pause = machine.dice.millis(10, 6000);
        machine.pass(pause);
    }
    come_to_rest(&mut machine);
    let loads = busiest_minute(&machine);
    let (displaced, back) = (machine.figures.displaced, machine.figures.came_back);
    println!(
        "{} GPUs: {} events, {} loads (at most {loads} of one slot in a minute), {displaced} displaced, {back} back, {} served after a wait of at most {:?}, refused {:?}",
        gpus.len(),
        machine.figures.events,
        machine.figures.loads.len(),
        machine.figures.granted,
        machine.figures.longest_wait,
        machine.figures.refused
    );
    assert!(displaced > 20, "hardly anybody made room");
    // One stay of `min_residency` and one load at the least.
    assert!(loads <= 6, "{loads} loads of one slot in a minute");
}

/// Strangers leave, GPUs return, nobody asks: what was displaced is back, or there is no room for it.
fn come_to_rest(machine: &mut Machine) {
    machine.strangers = 0;
    machine.tell(&Event::PressureChanged { strain: Strain::default() });
    for gpu in &mut machine.gpus {
        (gpu.strangers, gpu.is_lost) = (0, false);
    }
    machine.pass(Duration::from_hours(2));
    assert!(machine.waiting.is_empty(), "{:?} wait for ever", machine.waiting);
    for (name, view) in &machine.last.slots {
        let is_queued = matches!(view.state, StateView::Queued { .. });
        // One that went down a rung climbs when its ladder says so; that may take a day.
        let is_lower = view.state.takes_requests() && view.rung_index > 0;
        if (view.displaced_by.is_none() && !is_queued) || is_lower {
            continue;
        }
        // The least that it takes, and what is left of the host and of the emptiest GPUs.
        let (least, used) = (machine.truths[name].needs[0].clone(), promised(machine));
        let reserve = machine.policy.memory_reserve.0;
        let host = machine.host - reserve - used.0;
        let gpu: u64 = used
            .1
            .iter()
            .zip(&machine.gpus)
            .map(|(used, gpu)| (gpu.total - reserve).saturating_sub(used + 256 * (1 << 20)))
            .sum();
        let fits = least.host.0 <= host && least.gpu.is_none_or(|need| need.spread.0 <= gpu);
        assert!(!fits, "{name} is {:?} though there is room", view.state);
    }
}

fn promised(machine: &Machine) -> (u64, Vec<u64>) {
    let (mut host, mut gpus) = (0, vec![0; machine.gpus.len()]);
    for share in machine.last.slots.values().filter_map(|view| view.promised.as_ref()) {
        host += share.host.0;
        for (gpu, bytes) in &share.gpus {
            gpus[usize::try_from(*gpu).unwrap()] += bytes.0;
        }
    }
    (host, gpus)
}

fn busiest_minute(machine: &Machine) -> usize {
    let loads = &machine.figures.loads;
    let in_minute = |(at, slot): &(_, SlotName)| {
        let later = loads.iter().filter(|(other, name)| {
            name == slot && *other >= *at && other.since(*at) < Duration::from_mins(1)
        });
        later.count()
    };
    loads.iter().map(in_minute).max().unwrap_or_default()
}

#[test]
fn a_machine_without_a_gpu_keeps_its_promises() {
    live(&[], 1);
}

#[test]
fn a_machine_with_one_gpu_keeps_its_promises() {
    live(&[24 * GIB], 2);
}

#[test]
fn a_machine_with_two_gpus_keeps_its_promises() {
    live(&[8 * GIB, 48 * GIB], 3);
}

#[test]
fn a_machine_with_eight_gpus_keeps_its_promises() {
    let gpus = [8, 12, 16, 24, 32, 40, 48, 80].map(|gib| gib * GIB);
    live(&gpus, 4);
}

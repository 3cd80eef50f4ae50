//! What must hold after each event, whatever happens.

use std::collections::BTreeMap;

use slotd::{
    spec::{SlotName, memory::GpuState},
    supervisor::{ChildEvent, Command, Event, SlotEvent, Snapshot, StateView},
};

use super::machine::Machine;

/// Holds one step of the core against the machine as it was before.
pub(crate) fn hold(machine: &mut Machine, event: &Event, before: &Snapshot, commands: &[Command]) {
    let after = std::sync::Arc::clone(&machine.last);
    hold_pools(machine, &after);
    let is_for_a_person = commands.iter().any(|one| matches!(one, Command::AnswerRoom { .. }));
    for command in commands {
        match command {
            Command::Spawn { slot, devices, .. } => {
                hold_room(machine, &after);
                let promised = after.slots[slot].promised.clone().unwrap();
                let gpus: Vec<_> =
                    promised.gpus.keys().map(|index| format!("GPU-{index}")).collect();
                assert_eq!(*devices, gpus, "{slot} is to see what was promised to it");
                let wants_gpu = machine.truths[slot].needs[0].gpu.is_some();
                assert_eq!(
                    !gpus.is_empty(),
                    wants_gpu,
                    "{slot} came to the CPU, or to a GPU, unasked"
                );
            }
            Command::Drain { slot, .. } if is_for_a_person => {
                assert!(!is_pinned(machine, slot), "{slot} is pinned");
            }
            Command::Drain { slot, .. } => hold_drain(machine, event, before, slot),
            Command::Signal { slot, generation, .. } => {
                let in_flight = machine
                    .process(slot, *generation)
                    .map_or(0, |process| if process.has_exited { 0 } else { process.in_flight });
                assert_eq!(in_flight, 0, "{slot} was told to end while it worked");
            }
            Command::CutRequests { slot, .. } => {
                assert!(machine.put_down.contains(slot), "requests of {slot} were cut");
            }
            _ => {}
        }
    }
    count(machine, before, &after);
}

/// What is promised is there, strangers or no strangers.
fn hold_pools(machine: &Machine, after: &Snapshot) {
    let (mut host, mut gpus) = (0_u64, BTreeMap::<u32, u64>::new());
    for promised in after.slots.values().filter_map(|view| view.promised.as_ref()) {
        host += promised.host.0;
        for (gpu, bytes) in &promised.gpus {
            *gpus.entry(*gpu).or_default() += bytes.0;
        }
    }
    let reserve = machine.policy.memory_reserve.0;
    assert!(host <= machine.host - reserve, "{host} bytes of the host's are promised");
    for (gpu, bytes) in gpus {
        let total = machine.gpus[usize::try_from(gpu).unwrap()].total;
        assert!(
            bytes <= total - reserve,
            "{bytes} bytes of GPU {gpu} are promised, it has {total}"
        );
    }
}

/// What is promised with a spawn is there beside strangers, by the last reading.
fn hold_room(machine: &Machine, after: &Snapshot) {
    let Some((read, _)) = &machine.read else { panic!("a spawn without a reading") };
    for (index, gpu) in &read.gpus {
        let promised = |view: &slotd::supervisor::SlotView| {
            view.promised.as_ref().and_then(|promised| promised.gpus.get(index)).map_or(0, |b| b.0)
        };
        let sum: u64 = after.slots.values().map(AsRef::as_ref).map(promised).sum();
        let is_new = after.slots.values().any(|view| {
            matches!(view.state, StateView::Starting { pid: None, .. }) && promised(view) > 0
        });
        if is_new {
            let GpuState::Present(_) = gpu.state else {
                panic!("GPU {index} is not there, and something is promised on it")
            };
            let actual = &machine.gpus[usize::try_from(*index).unwrap()];
            assert!(sum <= actual.total, "GPU {index}: {sum} of {}", actual.total);
        }
    }
}

/// Whoever makes room is not pinned; and one that works does so only when it is another's turn.
fn hold_drain(machine: &Machine, event: &Event, before: &Snapshot, slot: &SlotName) {
    if is_own_reason(event, slot) {
        return;
    }
    let residence = &machine.profiles[slot].residence;
    assert!(!is_pinned(machine, slot), "{slot} is pinned");
    let view = &before.slots[slot];
    let StateView::Ready { .. } = view.state else { panic!("{slot} was {:?}", view.state) };
    if machine.last.slots[slot].relieved.is_some() {
        assert!(machine.strain.of_memory().next().is_some(), "{slot} went without pressure");
        let Some((_, engines)) = &machine.read else { panic!("{slot} goes unseen") };
        assert_eq!(engines[slot].in_flight, 0, "{slot} worked");
        return;
    }
    assert!(!residence.pressure_evict_only, "{slot} goes under pressure alone");
    let stay = residence.min_residency.unwrap_or(machine.policy.min_residency);
    assert!(machine.now.since(view.since) >= stay, "{slot} had only just come");
    // A request may have come since; it is served before the engine ends.
    let Some((_, engines)) = &machine.read else { panic!("{slot} makes room unseen") };
    let in_flight = engines[slot].in_flight;
    let waits_for_long = before.slots.values().any(|view| {
        let is_queued = matches!(view.state, StateView::Queued { .. });
        is_queued && machine.now.since(view.since) >= machine.policy.turn_after
    });
    assert!(in_flight == 0 || waits_for_long, "{slot} worked, and nobody waited for long");
}

/// Tells whether a slot goes for itself: it was ordered, or climbs.
fn is_own_reason(event: &Event, slot: &SlotName) -> bool {
    match event {
        Event::StayOrdered { slot: of, .. } => of == slot,
        Event::Slot { slot: of, event } if of == slot => match event {
            SlotEvent::UnloadRequested | SlotEvent::RestartRequested => true,
            SlotEvent::Child { event, .. } => matches!(event, ChildEvent::RoomMeasured { .. }),
            _ => false,
        },
        _ => false,
    }
}

fn is_pinned(machine: &Machine, slot: &SlotName) -> bool {
    let ordered = machine.last.slots[slot].orders.pinned;
    ordered.unwrap_or(machine.profiles[slot].residence.pinned)
}

fn count(machine: &mut Machine, before: &Snapshot, after: &Snapshot) {
    for (name, view) in &after.slots {
        let was = before.slots.get(name).and_then(|view| view.displaced_by.as_ref());
        match (was, &view.displaced_by) {
            (None, Some(_)) => machine.figures.displaced += 1,
            (Some(by), None) => {
                machine.figures.came_back += 1;
                // One on a lower rung was not away: its engine may end like any other.
                let is_accounted_for = !matches!(view.state, StateView::Offline)
                    || machine.put_down.contains(name)
                    || view.rung_index > 0;
                assert!(is_accounted_for, "{name} made room for {by} and was forgotten");
            }
            _ => {}
        }
    }
}

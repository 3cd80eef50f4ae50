//! The machine runs short of memory: who goes, who stays, who comes back.

use std::{collections::BTreeMap, time::Duration};

use slotd::{
    spec::{
        pressure::{Pressure, Source, Strain},
        profile::Profile,
        residence::Residence,
    },
    supervisor::{Event, Policy},
};

use super::machine::{GIB, Machine, need, profile, residence, slot, works};

fn short(machine: &mut Machine, memory: Pressure) {
    let strain = Strain { memory, ..Strain::default() };
    machine.tell(&Event::PressureChanged { strain });
}

/// Loads slots of 1 GiB each, oldest first, and lets them rest.
fn loaded(profiles: Vec<Profile>, rest: Duration) -> Machine {
    let mut machine = Machine::new(16 * GIB, &[], Policy::default(), 7);
    let names: Vec<_> = profiles.iter().map(|profile| profile.slot.clone()).collect();
    machine.have(profiles.into_iter().map(|profile| (profile, works(vec![need(1024, None)]))));
    for name in &names {
        machine.request(name);
        machine.settle();
        machine.pass(Duration::from_secs(2));
    }
    machine.pass(rest);
    machine
}

fn ready(machine: &Machine) -> Vec<String> {
    let slots = machine.last.slots.iter();
    slots
        .filter(|(_, view)| view.state.takes_requests())
        .map(|(name, _)| name.to_string())
        .collect()
}

#[test]
fn one_idle_slot_goes_at_a_time_until_there_is_enough() {
    let mut machine = loaded(["a", "b", "c"].map(profile).into(), Duration::from_mins(1));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(6));
    assert_eq!(ready(&machine), ["b", "c"], "the one that has been idle for longest goes");
    assert_eq!(machine.view("a").relieved, Some(Source::Memory));
    machine.pass(Duration::from_secs(8));
    assert_eq!(ready(&machine), ["c"]);
    short(&mut machine, Pressure::Normal);
    machine.pass(Duration::from_mins(10));
    assert_eq!(ready(&machine), ["c"], "whoever is loaded on demand waits for one");
    machine.request(&slot("a"));
    machine.settle();
    assert_eq!((ready(&machine), machine.view("a").relieved), (vec!["a".into(), "c".into()], None));
}

#[test]
fn a_warm_slot_goes_only_when_next_to_nothing_is_left_and_a_working_or_pinned_one_never() {
    let pinned = residence("pinned", Residence { pinned: true, ..Residence::default() });
    let mut machine =
        loaded(vec![pinned, profile("busy"), profile("warm")], Duration::from_secs(1));
    machine.truths.get_mut(&slot("busy")).unwrap().request = Duration::from_hours(1);
    machine.request(&slot("busy"));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(10));
    assert_eq!(ready(&machine), ["busy", "pinned", "warm"]);
    short(&mut machine, Pressure::Critical);
    machine.pass(Duration::from_mins(4));
    assert_eq!(ready(&machine), ["busy", "pinned"]);
}

#[test]
fn those_that_are_there_until_memory_runs_out_go_first() {
    let only = Residence { pressure_evict_only: true, ..Residence::default() };
    let spare = residence("spare", only);
    let mut machine = loaded(vec![profile("older"), profile("old"), spare], Duration::from_mins(1));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(6));
    assert_eq!(ready(&machine), ["old", "older"]);
}

#[test]
fn whoever_holds_nothing_of_what_is_short_stays() {
    let mut machine = Machine::new(16 * GIB, &[8 * GIB, 8 * GIB], Policy::default(), 7);
    machine.have([
        (profile("on-cpu"), works(vec![need(1024, None)])),
        (profile("on-gpu"), works(vec![need(100, Some(4000))])),
    ]);
    for name in ["on-cpu", "on-gpu"] {
        machine.request(&slot(name));
        machine.settle();
    }
    machine.pass(Duration::from_mins(1));
    let gpu = *machine.view("on-gpu").promised.as_ref().unwrap().gpus.keys().next().unwrap();
    let of =
        |gpu| Strain { gpus: BTreeMap::from([(gpu, Pressure::Critical)]), ..Strain::default() };
    machine.tell(&Event::PressureChanged { strain: of(1 - gpu) });
    machine.pass(Duration::from_mins(1));
    assert_eq!(ready(&machine), ["on-cpu", "on-gpu"]);
    machine.tell(&Event::PressureChanged { strain: of(gpu) });
    machine.pass(Duration::from_mins(1));
    assert_eq!(ready(&machine), ["on-cpu"]);
    assert_eq!(machine.view("on-gpu").relieved, Some(Source::Gpu(gpu)));
}

#[test]
fn what_is_kept_loaded_comes_back_when_there_is_enough_again() {
    let kept = Profile { autostart: true, ..profile("kept") };
    let mut machine = loaded(vec![kept, profile("other")], Duration::from_mins(1));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_mins(2));
    assert!(ready(&machine).is_empty());
    short(&mut machine, Pressure::Normal);
    machine.pass(Duration::from_mins(1));
    assert_eq!(ready(&machine), ["kept"]);
    assert_eq!(machine.view("kept").relieved, None);
}

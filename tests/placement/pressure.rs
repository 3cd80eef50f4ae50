//! The machine runs short of memory: who goes, who stays, who comes back.

use std::{collections::BTreeMap, time::Duration};

use slotd::{
    spec::{
        Bytes,
        pressure::{Pressure, Source, Strain},
        profile::Profile,
        residence::Residence,
    },
    supervisor::{Event, Memory, Policy, SlotEvent, Supervisor},
};

use super::machine::{Fate, GIB, Machine, Truth, need, profile, residence, slot, works};

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

fn short_of(machine: &Machine, name: &str) -> Option<Source> {
    machine.view(name).relieved.as_ref().map(|relieved| relieved.source)
}

fn kept_out(machine: &Machine, name: &str) -> Option<String> {
    let relieved = machine.view(name).relieved.as_ref()?;
    relieved.kept_out.as_ref().map(|why| why.sentence(relieved.source))
}

#[test]
fn one_idle_slot_goes_at_a_time_until_there_is_enough() {
    let mut machine = loaded(["a", "b", "c"].map(profile).into(), Duration::from_mins(1));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(6));
    assert_eq!(ready(&machine), ["b", "c"], "the one that has been idle for longest goes");
    assert_eq!(short_of(&machine, "a"), Some(Source::Memory));
    machine.pass(Duration::from_secs(8));
    assert_eq!(ready(&machine), ["c"]);
    short(&mut machine, Pressure::Normal);
    machine.pass(Duration::from_mins(10));
    assert_eq!(ready(&machine), ["c"], "whoever is loaded on demand waits for one");
    machine.request(&slot("a"));
    machine.settle();
    assert_eq!((ready(&machine), short_of(&machine, "a")), (vec!["a".into(), "c".into()], None));
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
    assert_eq!(short_of(&machine, "on-gpu"), Some(Source::Gpu(gpu)));
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

/// It was loaded and unloaded in turns for as long as it was kept.
#[test]
fn a_kept_slot_with_which_the_machine_would_run_short_again_stays_out_until_there_is_room() {
    let kept = Profile { autostart: true, ..profile("kept") };
    let mut machine = loaded(vec![kept], Duration::from_mins(1));
    machine.strangers = 14 * GIB;
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_mins(1));
    assert_eq!(machine.state("kept"), "offline");
    assert_eq!(kept_out(&machine, "kept").as_deref(), Some("there is still too little of memory"));
    // Without it 2 GiB are free; with it, less than the 8 per cent from where on there is pressure.
    short(&mut machine, Pressure::Normal);
    machine.figures.loads.clear();
    machine.pass(Duration::from_hours(1));
    assert_eq!((machine.state("kept"), machine.figures.loads.len()), ("offline", 0));
    assert_eq!(
        kept_out(&machine, "kept").as_deref(),
        Some(
            "it took 1.0 GiB of memory, and comes back once 2.2 GiB is free: with less the machine would run short again"
        )
    );
    machine.strangers = 8 * GIB;
    machine.pass(Duration::from_mins(1));
    assert_eq!((machine.state("kept"), kept_out(&machine, "kept")), ("ready", None));
}

/// It stayed out for ever where the mark was larger than the GPU.
#[test]
fn a_kept_slot_comes_back_to_a_small_gpu_once_that_is_nearly_empty() {
    let mut policy = Policy::default();
    policy.pressure.gpu_free = Bytes(20 * GIB);
    let mut machine = Machine::new(16 * GIB, &[16 * GIB], policy, 7);
    let kept = Profile { autostart: true, ..profile("kept") };
    machine.have([(kept, works(vec![need(100, Some(100))]))]);
    machine.pass(Duration::from_mins(1));
    let short = |machine: &mut Machine, gpu| {
        let strain = Strain { gpus: BTreeMap::from([(0, gpu)]), ..Strain::default() };
        machine.tell(&Event::PressureChanged { strain });
        machine.pass(Duration::from_mins(1));
    };
    short(&mut machine, Pressure::Critical);
    assert_eq!(short_of(&machine, "kept"), Some(Source::Gpu(0)));
    short(&mut machine, Pressure::Normal);
    assert_eq!((machine.state("kept"), kept_out(&machine, "kept")), ("ready", None));
}

/// Hours with a slot that makes the machine run short each time it is there, for as long as it is.
fn a_nuisance(machine: &mut Machine, hours: u64) {
    let until = machine.now.after(Duration::from_hours(hours));
    let mut is_short = false;
    while machine.now < until {
        machine.pass(Duration::from_secs(1));
        let is_there = machine.view("kept").state.pid().is_some();
        if is_there != is_short {
            is_short = is_there;
            machine.pass(Duration::from_secs(12));
            short(machine, if is_short { Pressure::Elevated } else { Pressure::Normal });
        }
    }
}

#[test]
fn a_kept_slot_that_makes_the_machine_run_short_each_time_rests_longer_and_longer() {
    let kept = Profile { autostart: true, ..profile("kept") };
    let mut machine = loaded(vec![kept], Duration::from_mins(1));
    machine.figures.loads.clear();
    a_nuisance(&mut machine, 4);
    let loads: Vec<_> = machine.figures.loads.iter().map(|(at, _)| *at).collect();
    println!("loads of a nuisance in four hours: {}", loads.len());
    assert!((5..=10).contains(&loads.len()), "{loads:?}");
    for pair in loads.windows(2).skip(2) {
        let gap = pair[1].since(pair[0]);
        assert!(gap >= Duration::from_mins(1), "{gap:?} between two loads");
    }
    assert_eq!(
        kept_out(&machine, "kept").as_deref(),
        Some(
            "the machine ran short of memory soon after it had come, 9 times in a row: it is tried again after 60 min"
        )
    );
    // Somebody asks for it, and from here on it does no harm.
    machine.request(&slot("kept"));
    machine.settle();
    machine.pass(Duration::from_hours(3));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_mins(1));
    assert_eq!(machine.state("kept"), "offline");
    short(&mut machine, Pressure::Normal);
    machine.pass(Duration::from_secs(30));
    assert_eq!(machine.state("kept"), "ready", "that it was a nuisance is forgotten");
}

/// Each change of the level let the next one go at once.
#[test]
fn news_of_pressure_end_no_pause_between_two_that_go() {
    let mut machine = loaded(["a", "b", "c"].map(profile).into(), Duration::from_mins(1));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(4));
    assert_eq!(ready(&machine), ["b", "c"]);
    for level in [Pressure::Critical, Pressure::Normal, Pressure::Elevated, Pressure::Critical] {
        short(&mut machine, level);
        machine.pass(Duration::from_millis(500));
        assert_eq!(ready(&machine), ["b", "c"], "{level:?}");
    }
    machine.pass(Duration::from_secs(4));
    assert_eq!(ready(&machine), ["c"]);
}

#[test]
fn where_nobody_could_go_worse_news_are_heard_at_once() {
    let mut machine = loaded(vec![profile("warm")], Duration::from_secs(11));
    short(&mut machine, Pressure::Elevated);
    machine.pass(Duration::from_secs(1));
    assert_eq!(machine.state("warm"), "ready");
    short(&mut machine, Pressure::Critical);
    machine.pass(Duration::from_millis(500));
    assert_ne!(machine.state("warm"), "ready");
}

/// Pressure unloaded what had only just come.
#[test]
fn nobody_goes_before_its_stay_is_over_however_short_the_machine_is() {
    let stay = Residence { min_residency: Some(Duration::from_mins(5)), ..Residence::default() };
    let mut machine = loaded(vec![residence("new", stay)], Duration::from_mins(1));
    short(&mut machine, Pressure::Critical);
    machine.pass(Duration::from_mins(3));
    assert_eq!(machine.state("new"), "ready");
    machine.pass(Duration::from_mins(2));
    assert_eq!(machine.state("new"), "offline");
}

/// The reason that was remembered was dropped, and the slot loaded at once.
#[test]
fn a_kept_slot_that_went_for_want_of_memory_is_not_loaded_by_a_restart_of_the_daemon() {
    let kept = Profile { autostart: true, ..profile("kept") };
    let mut machine = Machine::new(16 * GIB, &[], Policy::default(), 7);
    let relieved = Some((Source::Memory, Bytes(GIB)));
    let memory = BTreeMap::from([(slot("kept"), Memory { relieved, ..Memory::default() })]);
    machine.core = Supervisor::new(Policy::default(), 7, memory);
    machine.strangers = 14 * GIB;
    machine.have([(kept, works(vec![need(1024, None)]))]);
    machine.pass(Duration::from_mins(10));
    assert_eq!((machine.state("kept"), machine.figures.loads.len()), ("offline", 0));
    assert!(kept_out(&machine, "kept").is_some());
    machine.strangers = 0;
    machine.pass(Duration::from_mins(10));
    assert_eq!(machine.state("kept"), "ready");
    assert_eq!(machine.view("kept").relieved, None);
}

/// It was taken for a person's word.
#[test]
fn a_slot_whose_model_came_displaces_nobody_while_nobody_waits_for_it() {
    let mut machine = loaded(vec![profile("other")], Duration::from_hours(1));
    machine.strangers = 13 * GIB;
    let truth = works(vec![need(1800, None)]);
    machine.have([
        (profile("other"), works(vec![need(1024, None)])),
        (profile("new"), Truth { fate: Fate::CannotStart, ..truth.clone() }),
    ]);
    machine.request(&slot("new"));
    machine.pass(Duration::from_secs(5));
    assert_eq!(machine.state("new"), "failed");
    machine.have([(profile("other"), works(vec![need(1024, None)])), (profile("new"), truth)]);
    machine.ask(&slot("new"), SlotEvent::ModelBecameWhole);
    machine.pass(Duration::from_mins(10));
    assert_eq!(ready(&machine), ["other"]);
    machine.request(&slot("new"));
    machine.settle();
    assert_eq!(ready(&machine), ["new"], "a request may");
}

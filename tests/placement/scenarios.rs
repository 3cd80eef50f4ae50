//! Named scenarios: what people ask about machines on which not everything fits.

use std::time::Duration;

use slotd::{
    engine,
    spec::{
        Bytes, Generation,
        death::ExitStatus,
        profile::Profile,
        residence::{Asks, Residence, WhenFull},
    },
    supervisor::{Policy, Refusal, SlotEvent, StateView, Wait},
};

use super::machine::{Fate, GIB, Machine, Truth, need, profile, residence, slot, works};

fn machine(gib: u64) -> Machine {
    Machine::new(gib * GIB + (256 << 20), &[], Policy::default(), 7)
}

/// Loads slots of 2 GiB each, one after the other.
fn three_of_two_gib(machine: &mut Machine) {
    machine.have(["a", "b", "c"].map(|name| (profile(name), works(vec![need(2048, None)]))));
    for name in ["a", "b", "c"] {
        machine.request(&slot(name));
        machine.settle();
    }
    machine.pass(Duration::from_secs(30));
}

fn states(machine: &Machine, names: [&str; 3]) -> [&'static str; 3] {
    names.map(|name| machine.state(name))
}

#[test]
fn a_load_that_fails_gives_back_all_that_it_took_in_order() {
    let mut machine = machine(6);
    three_of_two_gib(&mut machine);
    let big = Truth { fate: Fate::DiesLoading, ..works(vec![need(6000, None)]) };
    machine.have([(profile("big"), big)]);
    assert_eq!(states(&machine, ["a", "b", "c"]), ["ready"; 3]);
    machine.figures.loads.clear();

    machine.request(&slot("big"));
    machine.settle();
    let (asked, refusal) = machine.refusals.pop().unwrap();
    assert!(asked == slot("big") && matches!(refusal, Refusal::LoadFailed { .. }), "{refusal:?}");
    assert_eq!(machine.figures.displaced, 3);
    machine.pass(Duration::from_mins(10));
    assert_eq!(states(&machine, ["a", "b", "c"]), ["ready"; 3]);
    let loads: Vec<_> = machine.figures.loads.iter().map(|(_, name)| name.to_string()).collect();
    assert_eq!(
        loads[..4],
        ["big", "a", "b", "c"],
        "they come back in the order in which they went"
    );
    assert_eq!(loads.len(), 4, "and nobody makes room for the broken one again");
}

#[test]
fn two_slots_that_fit_one_at_a_time_are_both_served_a_thousand_times() {
    let mut machine = machine(8);
    let quick = Truth { load: Duration::from_secs(2), ..works(vec![need(5000, None)]) };
    machine.have(["left", "right"].map(|name| (profile(name), quick.clone())));
    for _ in 0..1000 {
        for name in ["left", "right"] {
            let pause = machine.dice.millis(0, 20_000);
            machine.pass(pause);
            machine.request(&slot(name));
        }
    }
    machine.settle();
    println!(
        "1,000 pairs: {} waited, {} loads, the longest wait was {:?}",
        machine.figures.granted,
        machine.figures.loads.len(),
        machine.figures.longest_wait
    );
    assert_eq!(machine.figures.refused.len(), 0, "{:?}", machine.figures.refused);
    assert!(machine.figures.longest_wait < Duration::from_mins(1));
}

/// In a box with small models each swap waited for the next second to pass.
#[test]
fn whoever_waits_goes_on_soon_after_its_time_has_come() {
    let mut machine = machine(8);
    let quick = Truth { load: Duration::from_secs(2), ..works(vec![need(5000, None)]) };
    machine.have(["here", "wanted"].map(|name| (profile(name), quick.clone())));
    machine.request(&slot("here"));
    machine.settle();
    machine.pass(Duration::from_secs(20));
    machine.request(&slot("wanted"));
    // The other is spared for a quarter of its load.
    machine.pass(Duration::from_millis(400));
    assert_eq!(machine.state("here"), "ready");
    machine.pass(Duration::from_millis(450));
    assert_ne!(machine.state("here"), "ready");
    machine.settle();
}

#[test]
fn a_slot_under_constant_load_gives_way_and_cuts_nobody() {
    let mut machine = machine(8);
    machine.have(["busy", "other"].map(|name| (profile(name), works(vec![need(5000, None)]))));
    machine.request(&slot("busy"));
    machine.settle();
    machine.request(&slot("other"));
    for _ in 0..200 {
        machine.request(&slot("busy"));
        machine.pass(Duration::from_millis(500));
    }
    machine.settle();
    assert!(machine.figures.longest_wait < Duration::from_mins(1), "{:?}", machine.figures);
}

#[test]
fn nobody_is_touched_for_a_slot_that_can_never_start() {
    let mut machine = machine(6);
    three_of_two_gib(&mut machine);
    let missing = Truth { fate: Fate::CannotStart, ..works(vec![need(4000, None)]) };
    let refusing = Residence { when_full: WhenFull::Refuse, ..Residence::default() };
    machine.have([
        (profile("giant"), works(vec![need(9000, None)])),
        (profile("missing"), missing),
        (residence("shy", refusing), works(vec![need(2048, None)])),
    ]);
    for round in 0..200 {
        machine.request(&slot(["giant", "missing", "shy"][round % 3]));
        machine.pass(Duration::from_secs(3));
    }
    machine.settle();
    println!("refused: {:?}", machine.figures.refused);
    assert_eq!(machine.figures.displaced, 0);
    assert_eq!(states(&machine, ["a", "b", "c"]), ["ready"; 3]);
    for name in ["a", "b", "c"] {
        assert_eq!(machine.view(name).generation.0, 1, "{name} was touched");
    }
    let no_room = machine.refusals.iter().find_map(|(name, refusal)| match refusal {
        Refusal::NoRoom { reason } if *name == slot("giant") => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(
        no_room.unwrap(),
        "it needs 8.7 GiB of memory, and 6.0 GiB can be had on this machine, whoever goes"
    );
}

#[test]
fn a_slot_that_goes_over_to_another_revision_keeps_its_cores_and_so_does_who_stands_in() {
    let cores = engine::Machine { cores: 8, has_gpu: false };
    let policy = Policy { machine: cores, ..Policy::default() };
    let mut machine = Machine::new(64 * GIB, &[], policy, 7);
    let (chat, beside) = (slot("chat"), slot("chat~new"));
    let needs = || works(vec![need(500, None)]);
    machine.have([(profile("chat"), needs())]);
    machine.request(&chat);
    machine.settle();
    assert_eq!(machine.processes[&chat].cores, 8);
    machine.have([(profile("chat~new"), needs())]);
    machine.request(&beside);
    machine.settle();
    assert_eq!(machine.processes[&beside].cores, 8, "it serves in the slot's place");
    machine.ask(&chat, SlotEvent::RestartRequested);
    machine.pass(Duration::from_mins(1));
    assert_eq!(machine.view("chat").generation, Generation(2));
    assert_eq!(machine.processes[&chat].cores, 8, "it has them for good");
}

#[test]
fn a_gpu_that_is_lost_is_waited_for() {
    let mut machine = Machine::new(64 * GIB, &[24 * GIB], Policy::default(), 7);
    let needs = vec![need(500, Some(8000)), need(9000, None)];
    machine.have([(profile("chat"), works(needs))]);
    machine.request(&slot("chat"));
    machine.settle();

    machine.gpus[0].is_lost = true;
    let generation = machine.view("chat").generation;
    machine.exit(&slot("chat"), generation, ExitStatus::Signal(6));
    machine.pass(Duration::from_secs(30));
    machine.request(&slot("chat"));
    machine.pass(Duration::from_mins(2));
    let StateView::Queued { wait: Wait::Room { lack }, .. } = &machine.view("chat").state else {
        panic!("{:?}", machine.view("chat").state)
    };
    assert_eq!(lack.clause(), "it needs a GPU, and none can be used (GPU 0: it fell off the bus)");

    machine.gpus[0].is_lost = false;
    machine.settle();
    assert_eq!(machine.state("chat"), "ready");
    assert!(!machine.view("chat").promised.clone().unwrap().gpus.is_empty());
}

#[test]
fn a_displaced_slot_that_is_kept_comes_back_once_its_displacer_is_idle() {
    let mut machine = machine(8);
    let kept = Profile { autostart: true, ..profile("kept") };
    machine.have([
        (kept, works(vec![need(5000, None)])),
        (profile("guest"), works(vec![need(5000, None)])),
    ]);
    machine.pass(Duration::from_mins(1));
    machine.request(&slot("guest"));
    machine.settle();
    assert_eq!((machine.state("kept"), machine.state("guest")), ("offline", "ready"));
    machine.pass(Duration::from_mins(3));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("ready", "offline"));
    // Nobody has asked: no ping-pong.
    machine.figures.loads.clear();
    machine.pass(Duration::from_hours(2));
    assert_eq!(machine.figures.loads.len(), 0);
}

#[test]
fn what_is_kept_loaded_is_loaded_by_importance_and_the_rest_says_why_not() {
    let mut machine = machine(6);
    let kept = |name: &str, priority| {
        let stay = Residence { priority: Some(priority), ..Residence::default() };
        Profile { autostart: true, ..residence(name, stay) }
    };
    machine.have([
        (kept("a", 10), works(vec![need(3000, None)])),
        (kept("b", 90), works(vec![need(3000, None)])),
        (kept("c", 50), works(vec![need(3000, None)])),
    ]);
    machine.pass(Duration::from_mins(1));
    assert_eq!(states(&machine, ["a", "b", "c"]), ["queued", "ready", "ready"]);
    machine.ask(&slot("b"), SlotEvent::UnloadRequested);
    machine.pass(Duration::from_mins(1));
    assert_eq!(states(&machine, ["a", "b", "c"]), ["ready", "offline", "ready"]);
}

/// A slot with two rungs, loaded and idle for a while, and one that needs part of its memory.
fn with_a_ladder(machine: &mut Machine) {
    machine.have([
        (profile("chat"), works(vec![need(6000, None), need(2000, None)])),
        (profile("guest"), works(vec![need(4000, None)])),
    ]);
    machine.request(&slot("chat"));
    machine.settle();
    machine.pass(Duration::from_mins(1));
}

#[test]
fn an_idle_slot_goes_on_on_a_lower_rung_where_that_is_enough_and_climbs_back() {
    let mut machine = machine(7);
    with_a_ladder(&mut machine);
    machine.request(&slot("guest"));
    machine.settle();
    machine.pass(Duration::from_secs(20));
    assert_eq!((machine.state("guest"), machine.state("chat")), ("ready", "ready"));
    let chat = machine.view("chat");
    assert_eq!(chat.rung.as_ref().unwrap().index, 1);
    assert_eq!(chat.displaced_by, Some(slot("guest")));
    // As long as the guest is there, there is no room to climb, and nobody tries.
    machine.figures.loads.clear();
    machine.pass(Duration::from_hours(1));
    assert_eq!(machine.figures.loads.len(), 0);

    machine.ask(&slot("guest"), SlotEvent::UnloadRequested);
    machine.pass(Duration::from_mins(30));
    let chat = machine.view("chat");
    assert_eq!((chat.state.as_str(), chat.rung.as_ref().unwrap().index), ("ready", 0));
    assert_eq!(chat.displaced_by, None);
}

#[test]
fn a_slot_that_nobody_has_used_for_long_is_unloaded_whatever_rungs_it_has() {
    let mut machine = machine(7);
    with_a_ladder(&mut machine);
    machine.pass(Duration::from_mins(10));
    machine.request(&slot("guest"));
    machine.settle();
    assert_eq!((machine.state("guest"), machine.state("chat")), ("ready", "offline"));
}

#[test]
fn a_request_for_a_slot_that_goes_down_a_rung_is_served_there() {
    let mut machine = machine(7);
    with_a_ladder(&mut machine);
    machine.request(&slot("guest"));
    while machine.state("chat") == "ready" {
        let until = machine.now.after(Duration::from_mins(1));
        assert!(machine.step(until), "nobody made room");
    }
    machine.request(&slot("chat"));
    machine.settle();
    assert_eq!(machine.view("chat").rung.as_ref().unwrap().index, 1);
    assert_eq!((machine.figures.granted, machine.figures.refused.len()), (3, 0));
}

#[test]
fn a_slot_in_use_whose_load_takes_long_is_spared_until_the_wait_weighs_as_much() {
    let mut machine = machine(8);
    let slow = Truth { load: Duration::from_secs(80), ..works(vec![need(5000, None)]) };
    machine.have([(profile("slow"), slow), (profile("quick"), works(vec![need(5000, None)]))]);
    machine.request(&slot("slow"));
    machine.settle();
    machine.pass(Duration::from_secs(11));
    machine.request(&slot("slow"));
    machine.pass(Duration::from_secs(7));
    machine.request(&slot("quick"));
    machine.pass(Duration::from_secs(10));
    let StateView::Queued { wait: wait @ Wait::Spared { .. }, .. } = &machine.view("quick").state
    else {
        panic!("{:?}", machine.view("quick").state)
    };
    assert_eq!(
        wait.sentence(),
        "it needs 4.8 GiB of memory, and 3.1 GiB can be had; slow was used just now and takes \
         80.0 s to load again, so it makes room once the requests have waited 20.0 s together, or \
         when it is idle"
    );
    // A second one that waits makes it more.
    machine.request(&slot("quick"));
    machine.pass(Duration::from_secs(3));
    assert_ne!(machine.state("slow"), "ready");
    machine.settle();
    assert_eq!(machine.state("quick"), "ready");
}

#[test]
fn a_slot_that_asks_for_more_of_the_machine_is_skipped_and_says_so() {
    let mut machine = Machine::new(32 * GIB, &[24 * GIB], Policy::default(), 7);
    let asks = |gpus, memory: Option<u64>| Asks {
        gpus: Some(gpus),
        gpu_memory: None,
        memory: memory.map(|gib| Bytes(gib * GIB)),
    };
    let asking = |name: &str, asks| Profile {
        autostart: true,
        ..residence(name, Residence { asks, ..Residence::default() })
    };
    // What would fail if it were looked at.
    let broken = Truth { fate: Fate::CannotStart, ..works(vec![need(100, Some(1000))]) };
    machine.have([
        (asking("pair", asks(2, None)), broken.clone()),
        (asking("roomy", asks(1, Some(64))), broken),
        (asking("fine", asks(1, Some(32))), works(vec![need(100, Some(1000))])),
    ]);
    machine.pass(Duration::from_mins(10));
    assert_eq!(states(&machine, ["pair", "roomy", "fine"]), ["queued", "queued", "ready"]);
    for name in ["pair", "roomy"] {
        let view = machine.view(name);
        assert_eq!((view.deaths.len(), view.tally), (0, 0), "{name} was looked at");
    }
    let StateView::Queued { wait, .. } = &machine.view("pair").state else { panic!() };
    assert_eq!(
        wait.sentence(),
        "it is skipped on this machine: its profile needs `gpus` = 2, and 1 is there"
    );
    machine.request(&slot("roomy"));
    machine.settle();
    let Some((_, Refusal::NoRoom { reason })) = machine.refusals.pop() else { panic!() };
    assert_eq!(
        reason,
        "it is skipped on this machine: its profile needs `memory` = 64 GiB, and there is 32 GiB"
    );
    assert_eq!(machine.figures.displaced, 0);
}

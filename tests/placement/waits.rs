//! Who waits for what, for how long, and whom it keeps.

use std::time::Duration;

use slotd::{
    spec::{
        death::ExitStatus,
        profile::Profile,
        residence::{Residence, WhenFull},
    },
    supervisor::{Policy, SlotEvent, StateView, Wait},
};

use super::machine::{GIB, Machine, need, profile, residence, slot, works};

fn waits_for_room(machine: &Machine, name: &str) -> bool {
    matches!(machine.view(name).state, StateView::Queued { wait: Wait::Room { .. }, .. })
}

/// It kept what it needed from all others, for as long as strangers had it.
#[test]
fn who_waits_for_strangers_memory_keeps_nobody_else_and_goes_on_once_they_leave() {
    let mut machine = Machine::new(32 * GIB, &[], Policy::default(), 7);
    machine.strangers = 16 * GIB;
    machine.have([
        (profile("big"), works(vec![need(21 * 1024, None)])),
        (profile("small"), works(vec![need(1024, None)])),
    ]);
    machine.ask(&slot("big"), SlotEvent::LoadRequested);
    machine.pass(Duration::from_secs(10));
    assert!(waits_for_room(&machine, "big"), "{:?}", machine.view("big").state);
    machine.ask(&slot("small"), SlotEvent::LoadRequested);
    machine.pass(Duration::from_secs(7));
    assert_eq!(machine.state("small"), "ready");
    assert!(waits_for_room(&machine, "big"), "{:?}", machine.view("big").state);
    // Not only with the next calm look.
    machine.strangers = GIB;
    machine.pass(Duration::from_millis(1500));
    assert_eq!(machine.state("big"), "starting");
}

/// It was forgotten, and stayed away for ever.
#[test]
fn who_was_displaced_comes_back_after_a_restart_of_the_daemon() {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    machine.have(["first", "guest"].map(|name| (profile(name), works(vec![need(5000, None)]))));
    for name in ["first", "guest"] {
        machine.request(&slot(name));
        machine.settle();
        machine.pass(Duration::from_secs(15));
    }
    assert_eq!(machine.view("first").displaced_by, Some(slot("guest")));
    machine.restart();
    assert_eq!(machine.view("first").displaced_by, Some(slot("guest")));
    machine.pass(Duration::from_mins(1));
    assert_eq!((machine.state("first"), machine.state("guest")), ("ready", "offline"));
}

/// What its gate had counted before its present load made it give way at once.
#[test]
fn a_rest_before_the_present_load_brings_nobody_back() {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    let kept = Profile { autostart: true, ..profile("kept") };
    let works = || works(vec![need(5000, None)]);
    machine.have([(kept, works()), (profile("guest"), works())]);
    machine.pass(Duration::from_mins(1));
    machine.rested_before = Duration::from_hours(1);
    machine.request(&slot("guest"));
    machine.settle();
    machine.pass(Duration::from_secs(55));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("offline", "ready"));
    machine.pass(Duration::from_mins(1));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("ready", "offline"));
}

/// Nobody asked for it at the moment, and it was given up for good.
#[test]
fn one_that_served_and_died_waits_for_its_memory_though_nobody_asks() {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    machine.have([(profile("chat"), works(vec![need(5000, None)]))]);
    machine.request(&slot("chat"));
    machine.settle();
    machine.pass(Duration::from_mins(2));
    machine.strangers = 6 * GIB;
    let generation = machine.view("chat").generation;
    machine.exit(&slot("chat"), generation, ExitStatus::Signal(11));
    machine.pass(Duration::from_mins(1));
    assert!(waits_for_room(&machine, "chat"), "{:?}", machine.view("chat").state);
    machine.strangers = 0;
    machine.pass(Duration::from_mins(1));
    assert_eq!(machine.state("chat"), "ready");
}

/// A slot on a lower rung that has just ended to climb.
fn climbing() -> Machine {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    machine.strangers = 5 * GIB;
    machine.have([(profile("chat"), works(vec![need(6000, None), need(2000, None)]))]);
    machine.request(&slot("chat"));
    machine.settle();
    assert_eq!(machine.view("chat").rung_index, 1);
    machine.strangers = 0;
    let until = machine.now.after(Duration::from_hours(1));
    while machine.state("chat") == "ready" {
        assert!(machine.step(until), "it never climbed");
    }
    machine
}

/// The same, where it had ended only to climb.
#[test]
fn one_that_climbs_waits_for_its_memory_though_nobody_asks() {
    let mut machine = climbing();
    machine.strangers = 7 * GIB;
    machine.pass(Duration::from_mins(1));
    assert!(waits_for_room(&machine, "chat"), "{:?}", machine.view("chat").state);
    machine.strangers = 0;
    machine.pass(Duration::from_mins(1));
    assert_eq!((machine.state("chat"), machine.view("chat").rung_index), ("ready", 0));
}

/// It stayed down until there was room for the rung that it had climbed to.
#[test]
fn one_that_climbs_into_room_that_is_gone_goes_back_to_its_rung() {
    let mut machine = climbing();
    machine.strangers = 5 * GIB;
    machine.pass(Duration::from_mins(1));
    assert_eq!((machine.state("chat"), machine.view("chat").rung_index), ("ready", 1));
}

/// It came forward anew as one that nobody had asked for, and was taken out of the line without a word.
#[test]
fn an_edit_of_one_in_line_takes_back_no_order() {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    let works = || works(vec![need(5000, None)]);
    let refusing = Residence { when_full: WhenFull::Refuse, ..Residence::default() };
    let first = (profile("first"), works());
    machine.have([first.clone(), (residence("second", refusing), works())]);
    machine.request(&slot("first"));
    machine.settle();
    machine.pass(Duration::from_mins(2));
    machine.ask(&slot("second"), SlotEvent::LoadRequested);
    machine.pass(Duration::from_secs(5));
    assert_eq!((machine.state("first"), machine.state("second")), ("ready", "queued"));
    machine.have([first, (profile("second"), works())]);
    machine.pass(Duration::from_secs(30));
    assert_eq!((machine.state("first"), machine.state("second")), ("offline", "ready"));
}

/// Nobody said who would have to be let go.
#[test]
fn one_that_never_fits_names_those_that_make_room_for_nobody() {
    let mut machine = Machine::new(8 * GIB, &[], Policy::default(), 7);
    let works = |mib| works(vec![need(mib, None)]);
    let pinned = Residence { pinned: true, ..Residence::default() };
    machine.have([
        (residence("first", pinned), works(4000)),
        (profile("warm"), works(500)),
        (profile("second"), works(5000)),
    ]);
    for name in ["first", "warm"] {
        machine.request(&slot(name));
        machine.settle();
    }
    machine.ask(&slot("second"), SlotEvent::LoadRequested);
    machine.pass(Duration::from_mins(2));
    let StateView::Queued { wait: Wait::Never { stayers, .. }, .. } = &machine.view("second").state
    else {
        panic!("{:?}", machine.view("second").state)
    };
    let named: Vec<_> = stayers.iter().map(|one| one.slot.as_str()).collect();
    assert_eq!(named, ["first"]);
}

/// The next look was up to 15 s away, however soon it was to come back.
#[test]
fn who_was_displaced_comes_back_soon_after_the_other_one_has_rested() {
    let policy = Policy {
        restore_after: Duration::from_secs(4),
        min_residency: Duration::from_secs(2),
        ..Policy::default()
    };
    let mut machine = Machine::new(8 * GIB, &[], policy, 7);
    let kept = Profile { autostart: true, ..profile("kept") };
    let works = || works(vec![need(5000, None)]);
    machine.have([(kept, works()), (profile("guest"), works())]);
    machine.pass(Duration::from_mins(1));
    machine.request(&slot("guest"));
    machine.settle();
    machine.pass(Duration::from_secs(1));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("offline", "ready"));
    machine.pass(Duration::from_secs(9));
    assert_ne!(machine.state("guest"), "ready", "it still has the room");
}

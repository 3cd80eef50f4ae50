//! How the core's work grows with the number of slots: counted, not timed.

use std::{sync::Arc, time::Duration};

use slotd::{
    spec::{Bytes, profile::Profile},
    supervisor::{ChildEvent, Event, Policy, SlotEvent},
};

use super::machine::{GIB, Machine, need, profile, slot, works};

/// Looks at slots for the decision that took most: all start at once, then half of them make room.
fn looks(count: u64) -> (u64, u64) {
    let mut machine = Machine::new(1024 * GIB, &[80 * GIB; 8], Policy::default(), 5);
    let part = 600 * 1024 / count - 256;
    let kept = |index| Profile { autostart: true, ..profile(&format!("slot-{index}")) };
    machine.have((0..count).map(|index| (kept(index), works(vec![need(1, Some(part))]))));
    machine.pass(Duration::from_mins(30));
    assert!((0..count).all(|index| machine.state(&format!("slot-{index}")) == "ready"));
    let all_start = std::mem::take(&mut machine.figures.most_looks);

    machine.have([(profile("big"), works(vec![need(1, Some(300 * 1024))]))]);
    machine.request(&slot("big"));
    machine.settle();
    assert!(machine.figures.displaced > count / 4, "{} made room", machine.figures.displaced);
    (all_start, machine.figures.most_looks)
}

#[test]
fn the_work_of_a_decision_grows_no_faster_than_the_number_of_slots() {
    let (few, many) = (looks(25), looks(200));
    println!("looks at slots: {few:?} with 25, {many:?} with 200");
    // Eight times the slots; a little more is chance.
    assert!(many.0 < few.0 * 10, "all start");
    assert!(many.1 < few.1 * 10, "who makes room");
}

#[test]
fn only_the_views_of_slots_that_have_changed_are_made_anew() {
    let mut machine = Machine::new(1024 * GIB, &[], Policy::default(), 5);
    let names: Vec<_> = (0..50).map(|index| format!("slot-{index}")).collect();
    machine.have(names.iter().map(|name| (profile(name), works(vec![need(100, None)]))));
    for name in &names {
        machine.request(&slot(name));
    }
    machine.settle();
    let before = Arc::clone(&machine.last);
    let generation = machine.view("slot-7").generation;
    let event = ChildEvent::MemoryMeasured { rss: Bytes(7) };
    let event = SlotEvent::Child { generation, event };
    machine.tell(&Event::Slot { slot: slot("slot-7"), event });
    let news =
        machine.last.slots.iter().filter(|(name, view)| !Arc::ptr_eq(&before.slots[*name], view));
    assert_eq!(news.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["slot-7"]);
}

//! Room that a person asks for, and what a person orders of a slot's stay.

use std::time::Duration;

use slotd::{
    spec::{
        Bytes, SlotName, WaiterId,
        memory::{Basis, GpuNeed, Need},
        profile::Profile,
        residence::StayOrder,
    },
    supervisor::{Event, Policy, Purpose, RoomAnswer, RoomRequest, SlotEvent},
};

use super::machine::{GIB, MIB, Machine, Truth, need, profile, slot, works};

/// Three slots of 1 GiB each on a machine that can promise 4.
fn three() -> Machine {
    three_by(Policy::default())
}

fn three_by(policy: Policy) -> Machine {
    let mut machine = Machine::new(4 * GIB + (256 << 20), &[], policy, 7);
    machine.have(["a", "b", "c"].map(|name| (profile(name), works(vec![need(1024, None)]))));
    for name in ["a", "b", "c"] {
        machine.request(&slot(name));
        machine.settle();
        machine.pass(Duration::from_secs(2));
    }
    machine.pass(Duration::from_mins(1));
    machine
}

fn ensure(machine: &mut Machine, request: RoomRequest) -> RoomAnswer {
    machine.tell(&Event::RoomRequested(request));
    machine.pass(Duration::from_secs(10));
    assert_eq!(machine.rooms.len(), 1, "each is answered once");
    machine.rooms.pop().unwrap()
}

fn of_host(gib: u64) -> RoomRequest {
    let need = Need { host: Bytes(gib * GIB), basis: Basis::Profile, gpu: None };
    RoomRequest { asker: WaiterId(1), need, gpu: None, slot: None, purpose: Purpose::Make }
}

fn names(answer: &RoomAnswer) -> Vec<&str> {
    answer.going.iter().map(SlotName::as_str).collect()
}

#[test]
fn as_few_go_as_are_enough_and_nobody_where_there_is_room() {
    let mut machine = three();
    let answer = ensure(&mut machine, of_host(1));
    assert_eq!((names(&answer), answer.free), (vec![], Bytes(GIB)));
    let answer = ensure(&mut machine, of_host(2));
    assert_eq!(names(&answer), ["a"], "the one that has been idle for longest");
    assert_eq!(machine.state("a"), "offline");
    machine.pass(Duration::from_mins(10));
    assert_eq!(machine.state("a"), "offline", "it does not come back into the room that was made");
}

#[test]
fn a_pinned_slot_and_the_one_it_is_for_stay_and_a_refusal_has_the_numbers() {
    let mut machine = three();
    let order = StayOrder::Pin;
    machine.tell(&Event::StayOrdered { slot: slot("a"), order });
    let request = RoomRequest { slot: Some(slot("b")), ..of_host(2) };
    assert_eq!(names(&ensure(&mut machine, request.clone())), ["c"]);
    let answer = ensure(&mut machine, RoomRequest { slot: None, ..of_host(4) });
    assert_eq!(names(&answer), Vec::<&str>::new());
    assert_eq!(
        answer.refused.as_deref(),
        Some(
            "4.0 GiB of memory cannot be had: 2.0 GiB is free, 3.0 GiB if the one slot that may go were gone"
        )
    );
    assert_eq!((machine.state("a"), machine.state("b")), ("ready", "ready"));
    machine.tell(&Event::StayOrdered { slot: slot("a"), order: StayOrder::Unpin });
    assert_eq!(names(&ensure(&mut machine, of_host(4))), ["a", "b"]);
}

/// It was told that there is room, and the load then waited for a place.
#[test]
fn whether_a_slot_could_be_loaded_counts_how_many_may_be_there() {
    let mut machine = three_by(Policy { max_resident: Some(3), ..Policy::default() });
    let ask = |slot: Option<SlotName>| {
        let purpose = Purpose::Ask;
        let need = Need { host: Bytes(GIB), basis: Basis::Profile, gpu: None };
        RoomRequest { need, slot, purpose, ..of_host(0) }
    };
    let answer = ensure(&mut machine, ask(None));
    assert_eq!((names(&answer), answer.free), (vec!["a"], Bytes(GIB)), "one has to go");
    let answer = ensure(&mut machine, ask(Some(slot("b"))));
    assert_eq!((names(&answer), &answer.refused), (vec![], &None), "it has a place");
    for name in ["a", "b", "c"] {
        machine.tell(&Event::StayOrdered { slot: slot(name), order: StayOrder::Pin });
    }
    let answer = ensure(&mut machine, ask(None));
    assert_eq!(
        answer.refused.as_deref(),
        Some("as many slots are loaded as may be, and none of them may go")
    );
    assert_eq!(ensure(&mut machine, of_host(1)).refused, None, "room that a person asks for");
}

#[test]
fn a_priority_by_hand_counts_before_the_profiles() {
    let mut machine = three();
    let order = StayOrder::Priority(Some(10));
    machine.tell(&Event::StayOrdered { slot: slot("c"), order });
    assert_eq!(names(&ensure(&mut machine, of_host(2))), ["c"]);
    assert_eq!(machine.view("c").orders.priority, Some(10));
}

#[test]
fn room_on_one_gpu_is_made_on_that_one() {
    let mut machine = Machine::new(16 * GIB, &[8 * GIB, 8 * GIB], Policy::default(), 7);
    machine.have(["a", "b"].map(|name| (profile(name), works(vec![need(100, Some(7000))]))));
    for name in ["a", "b"] {
        machine.request(&slot(name));
        machine.settle();
    }
    machine.pass(Duration::from_mins(1));
    let on = |machine: &Machine, name: &str| {
        *machine.view(name).promised.as_ref().unwrap().gpus.keys().next().unwrap()
    };
    let gpu = on(&machine, "b");
    assert_ne!(gpu, on(&machine, "a"));
    let spread = GpuNeed { spread: Bytes(4000 * MIB), each: Bytes(0) };
    let need = Need { host: Bytes(0), gpu: Some(spread), basis: Basis::Profile };
    let request = RoomRequest { gpu: Some(gpu), need, ..of_host(1) };
    assert_eq!(names(&ensure(&mut machine, request.clone())), ["b"]);
    let answer = ensure(&mut machine, RoomRequest { gpu: Some(7), ..request });
    assert_eq!(answer.refused.as_deref(), Some("GPU 7 is not known"));
}

#[test]
fn an_offloaded_slot_comes_back_one_rung_lower_and_a_lower_start_can_be_ordered_before() {
    let mut machine = Machine::new(16 * GIB, &[], Policy::default(), 7);
    let rungs = || works(vec![need(2048, None), need(1024, None)]);
    machine.have([(profile("up"), rungs()), (profile("down"), rungs())]);
    machine.request(&slot("up"));
    machine.settle();
    // Nothing is known of a ladder of the other one.
    let before = machine.view("down").clone();
    machine.tell(&Event::StayOrdered { slot: slot("down"), order: StayOrder::Offload });
    assert_eq!(*machine.view("down"), before);
    machine.request(&slot("down"));
    machine.settle();
    machine.ask(&slot("down"), SlotEvent::UnloadRequested);
    machine.pass(Duration::from_secs(20));
    for name in ["up", "down"] {
        machine.tell(&Event::StayOrdered { slot: slot(name), order: StayOrder::Offload });
    }
    machine.pass(Duration::from_secs(20));
    assert_eq!((machine.state("up"), machine.view("up").generation.0), ("ready", 2));
    assert_eq!(machine.state("down"), "offline");
    machine.request(&slot("down"));
    machine.settle();
    for name in ["up", "down"] {
        let view = machine.view(name);
        assert_eq!(view.rung.as_ref().unwrap().index, 1);
        assert_eq!(view.promised.as_ref().unwrap().host, Bytes(GIB));
        machine.tell(&Event::StayOrdered { slot: slot(name), order: StayOrder::Offload });
    }
    machine.pass(Duration::from_secs(20));
    assert_eq!(machine.view("up").generation.0, 2, "there is nothing below");
}

/// Others went although what was on its way out would have been enough.
#[test]
fn what_is_on_its_way_out_is_waited_for_and_nobody_else_goes() {
    let mut machine = three();
    for _ in 0..2 {
        machine.tell(&Event::RoomRequested(of_host(2)));
        machine.pass(Duration::from_millis(40));
        assert_eq!(names(&machine.rooms.pop().unwrap()), ["a"]);
        assert_ne!(machine.state("a"), "offline", "it is still on its way");
    }
    machine.pass(Duration::from_secs(10));
    assert_eq!((machine.state("b"), machine.state("c")), ("ready", "ready"));
}

/// Who had been displaced came back into the room at once.
#[test]
fn who_was_displaced_leaves_room_that_was_asked_for_free_for_a_while() {
    let mut machine = Machine::new(8 * GIB + (256 << 20), &[], Policy::default(), 7);
    let kept = Profile { autostart: true, ..profile("kept") };
    let works = || works(vec![need(5000, None)]);
    machine.have([(kept, works()), (profile("guest"), works())]);
    machine.pass(Duration::from_mins(1));
    machine.request(&slot("guest"));
    machine.settle();
    machine.pass(Duration::from_secs(15));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("offline", "ready"));
    assert_eq!(names(&ensure(&mut machine, of_host(7))), ["guest"]);
    machine.pass(Duration::from_secs(19));
    assert_eq!((machine.state("kept"), machine.state("guest")), ("offline", "offline"));
    machine.pass(Duration::from_mins(1));
    assert_eq!(machine.state("kept"), "ready", "whoever asked for it has had half a minute");
}

/// It was refused by figures of which the slot was no part yet.
#[test]
fn one_that_has_just_become_ready_goes_for_room_that_is_asked_for() {
    let mut machine = Machine::new(4 * GIB + (256 << 20), &[], Policy::default(), 7);
    let quick = Truth { load: Duration::ZERO, ..works(vec![need(3000, None)]) };
    machine.have([(profile("quick"), quick)]);
    machine.ask(&slot("quick"), SlotEvent::LoadRequested);
    while machine.state("quick") != "ready" {
        let until = machine.now.after(Duration::from_secs(10));
        assert!(machine.step(until), "it never came");
    }
    assert_eq!(names(&ensure(&mut machine, of_host(2))), ["quick"]);
}

#[test]
fn a_question_is_answered_by_the_same_rules_and_nobody_goes() {
    let mut machine = three();
    machine.tell(&Event::StayOrdered { slot: slot("a"), order: StayOrder::Pin });
    let ask = |gib| RoomRequest { purpose: Purpose::Ask, ..of_host(gib) };
    let answer = ensure(&mut machine, ask(2));
    assert_eq!((names(&answer), answer.left.host), (vec!["b"], Bytes(GIB)));
    let answer = ensure(&mut machine, ask(4));
    assert!(answer.refused.is_some() && answer.going.is_empty(), "{answer:?}");
    // What it has itself is free for it.
    let answer = ensure(&mut machine, RoomRequest { slot: Some(slot("c")), ..ask(2) });
    assert_eq!((names(&answer), answer.left.host), (vec![], Bytes(2 * GIB)));
    machine.pass(Duration::from_mins(1));
    for name in ["a", "b", "c"] {
        assert_eq!(machine.state(name), "ready");
    }
}

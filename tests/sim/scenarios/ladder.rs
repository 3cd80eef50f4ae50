//! Down and up the ladder, step by step.

use slotd::spec::Bytes;

use super::*;

const IDLE: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_mins(10);

fn oom() -> Evidence {
    Evidence { oom_kills: Some(1), ..ended(ExitStatus::Signal(9)) }
}

fn started_on(commands: &[Command]) -> Vec<usize> {
    let rung_of = |command: &Command| match command {
        Command::Spawn { rung, .. } => Some(*rung),
        _ => None,
    };
    commands.iter().filter_map(rung_of).collect()
}

fn room() -> ChildEvent {
    ChildEvent::RoomMeasured { in_flight: 0, idle_for: IDLE, free: Some(Bytes(1 << 40)) }
}

/// A slot that is ready on its second rung.
fn lowered() -> Stage {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    assert_eq!(started_on(&stage.die(oom())), [1], "at once, one rung lower");
    stage.spawn();
    let granted = stage.child(ChildEvent::BecameReady);
    assert!(matches!(granted[..], [Command::Grant { .. }]), "the request was held: {granted:?}");
    stage
}

/// Lets the quiet time pass and the climb begin; the commands of the start.
fn climb(stage: &mut Stage, quiet: Duration) -> Vec<Command> {
    let asked = stage.pass(quiet);
    assert!(matches!(asked[..], [Command::MeasureRoom { .. }]), "{asked:?}");
    stage.child(room());
    assert_eq!(stage.state(), "draining");
    stage.child(ChildEvent::Drained);
    stage.die(ended(ExitStatus::Signal(15)))
}

#[test]
fn a_load_that_does_not_fit_ends_on_a_lower_rung_after_one_failed_start() {
    let stage = lowered();
    let rung = stage.view().rung.clone().unwrap();
    assert_eq!((rung.index, rung.of, rung.name.as_str()), (1, 3, "context 4096"));
    assert!(stage.view().deaths[0].reason.ends_with("it goes on one rung lower: context 4096"));
}

#[test]
fn the_last_rung_exhausted_is_the_end() {
    let mut stage = Stage::on_demand();
    stage.demand();
    for _ in 0..2 {
        stage.spawn();
        stage.die(oom());
    }
    stage.spawn();
    let told = stage.die(oom());
    assert_eq!(stage.state(), "failed");
    assert!(matches!(refusals(&told)[..], [Refusal::Failed { verdict: Verdict::OomHost, .. }]));
    let reason = &stage.view().deaths.last().unwrap().reason;
    assert!(reason.ends_with("no lower rung can help, it was on: context 2048"), "{reason}");
    assert_eq!(started_on(&stage.ask(SlotEvent::LoadRequested)), [0], "a person begins anew");
}

#[test]
fn a_slot_climbs_after_a_quiet_time_and_stays_once_proven() {
    let mut stage = lowered();
    assert_eq!(started_on(&climb(&mut stage, QUIET)), [0]);
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    assert_eq!(stage.pass(QUIET * 10), [], "there is nothing above");
    assert_eq!(stage.view().rung.as_ref().unwrap().index, 0);
}

#[test]
fn nobody_at_work_is_disturbed_by_a_climb() {
    let mut stage = lowered();
    stage.pass(QUIET);
    let big = Some(Bytes(1 << 40));
    let busy = ChildEvent::RoomMeasured { in_flight: 1, idle_for: IDLE, free: big };
    assert_eq!(stage.child(busy), []);
    let asked = stage.pass(IDLE);
    assert!(matches!(asked[..], [Command::MeasureRoom { .. }]), "it looks again: {asked:?}");
    let tight = ChildEvent::RoomMeasured { in_flight: 0, idle_for: IDLE, free: Some(Bytes(1)) };
    assert_eq!(stage.child(tight), []);
    let unknown = ChildEvent::RoomMeasured { in_flight: 0, idle_for: IDLE, free: None };
    assert_eq!(stage.child(unknown), []);
    assert_eq!(stage.state(), "ready");
}

#[test]
fn a_failed_climb_is_no_drama_and_the_next_one_waits_twice_as_long() {
    let mut stage = lowered();
    climb(&mut stage, QUIET);
    stage.spawn();
    stage.demand();
    assert_eq!(started_on(&stage.die(oom())), [1]);
    assert_eq!(stage.view().tally, 0, "it is not counted");
    stage.spawn();
    let granted = stage.child(ChildEvent::BecameReady);
    assert!(matches!(granted[..], [Command::Grant { .. }]), "{granted:?}");
    assert_eq!(stage.pass(QUIET), [], "not again so soon");
    assert_eq!(started_on(&climb(&mut stage, QUIET)), [0]);
}

#[test]
fn a_request_that_crosses_a_climb_is_held_for_it() {
    let mut stage = lowered();
    stage.pass(QUIET);
    stage.child(room());
    assert_eq!(stage.demand(), []);
    stage.child(ChildEvent::Drained);
    assert_eq!(started_on(&stage.die(ended(ExitStatus::Signal(15)))), [0]);
    stage.spawn();
    assert!(matches!(stage.child(ChildEvent::BecameReady)[..], [Command::Grant { .. }]));
}

#[test]
fn an_unload_during_a_climb_wins_and_the_rung_stays() {
    let mut stage = lowered();
    stage.pass(QUIET);
    stage.child(room());
    stage.ask(SlotEvent::UnloadRequested);
    stage.child(ChildEvent::Drained);
    assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), 0);
    assert_eq!(stage.state(), "offline");
    assert_eq!(started_on(&stage.demand()), [1]);
}

#[test]
fn another_engine_and_a_restart_begin_on_the_first_rung() {
    let mut stage = lowered();
    stage.ask(SlotEvent::RestartRequested);
    stage.child(ChildEvent::Drained);
    assert_eq!(started_on(&stage.die(ended(ExitStatus::Signal(15)))), [0]);
    let mut stage = lowered();
    stage.take(profiles_changed([Profile { context: Some(512), ..profile("chat") }]));
    stage.child(ChildEvent::Drained);
    assert_eq!(started_on(&stage.die(ended(ExitStatus::Signal(15)))), [0]);
}

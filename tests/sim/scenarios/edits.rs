//! What edits and people change while a slot is busy with something else.

use super::*;

#[test]
fn an_edit_of_the_engine_while_draining_starts_the_new_one_after_the_old_is_gone() {
    let mut stage = Stage::serving(profile("chat"));
    stage.take(profiles_changed([Profile { context: Some(4096), ..profile("chat") }]));
    assert_eq!(stage.state(), "draining");
    let edited = Profile { context: Some(8192), ..profile("chat") };
    assert_eq!(stage.take(profiles_changed([edited.clone()])), [], "the drain goes on");
    assert_eq!(signals(&stage.child(ChildEvent::Drained)), [StopSignal::Terminate]);
    let commands = stage.die(ended(ExitStatus::Signal(15)));
    assert!(
        matches!(&commands[..], [Command::Spawn { profile, .. }] if **profile == edited),
        "{commands:?}"
    );
}

#[test]
fn an_edit_that_leaves_the_engine_alone_does_not_disturb_it() {
    let mut stage = Stage::serving(profile("chat"));
    let aliases = vec!["other".to_owned()];
    assert_eq!(stage.take(profiles_changed([Profile { aliases, ..profile("chat") }])), []);
    assert_eq!(stage.state(), "ready");
}

#[test]
fn a_profile_that_goes_and_returns_while_its_engine_stops_is_a_slot_again() {
    for (autostart, expected, count) in [(false, "offline", 0), (true, "starting", 1)] {
        let resident = Profile { autostart, ..profile("chat") };
        let mut stage = Stage::serving(profile("chat"));
        stage.take(profiles_changed([]));
        stage.child(ChildEvent::Drained);
        assert_eq!(stage.state(), "stopping");
        stage.take(profiles_changed([resident]));
        assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), count);
        assert_eq!(stage.state(), expected);
    }
}

#[test]
fn a_profile_that_returns_goes_on_counting_generations() {
    let mut stage = Stage::serving(profile("chat"));
    stage.take(profiles_changed([]));
    stage.child(ChildEvent::Drained);
    stage.die(ended(ExitStatus::Signal(15)));
    assert_eq!(stage.checker.view(&stage.chat), None);
    stage.take(profiles_changed([profile("chat")]));
    stage.demand();
    assert_eq!(stage.view().generation.0, 2);
}

#[test]
fn an_edit_that_leaves_the_engine_alone_does_not_shorten_its_load() {
    let start_timeout = Duration::from_secs(30);
    let patient = Profile { start_timeout, ..profile("chat") };
    let mut stage = Stage::new(patient.clone());
    stage.demand();
    // The checks before the spawn take their time; the load's own begins with the child.
    stage.pass(Duration::from_secs(20));
    stage.spawn();
    stage.pass(Duration::from_secs(15));
    let aliases = vec!["other".to_owned()];
    assert_eq!(stage.take(profiles_changed([Profile { aliases, ..patient }])), []);
    assert_eq!(signals(&stage.pass(Duration::from_secs(14))), []);
    assert_eq!(signals(&stage.pass(Duration::from_secs(1))), [StopSignal::Kill]);
}

#[test]
fn an_edit_of_the_start_timeout_counts_for_the_load_under_way() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    stage.pass(Duration::from_secs(50));
    let start_timeout = Duration::from_secs(40);
    let told = stage.take(profiles_changed([Profile { start_timeout, ..profile("chat") }]));
    assert_eq!(signals(&told), [StopSignal::Kill]);
}

/// Has died twice while starting, and starts for a third time.
fn third_attempt() -> Stage {
    let mut stage = Stage::new(Profile { max_restarts: 2, ..profile("chat") });
    stage.demand();
    for _ in 0..2 {
        stage.spawn();
        stage.die(ended(CRASH));
        stage.pass(Duration::from_secs(15));
    }
    assert_eq!((stage.state(), stage.view().tally), ("starting", 2));
    stage
}

#[test]
fn a_person_or_another_engine_wipes_the_tally_of_a_slot_that_comes_up() {
    let edited = Profile { max_restarts: 2, context: Some(1024), ..profile("chat") };
    let orders = [
        of_slot(&slot("chat"), SlotEvent::LoadRequested),
        of_slot(&slot("chat"), SlotEvent::RestartRequested),
        profiles_changed([edited]),
    ];
    for order in orders {
        let mut spawning = third_attempt();
        spawning.take(order.clone());
        assert_eq!(spawning.view().tally, 0, "spawning, {order:?}");
        let mut starting = third_attempt();
        starting.spawn();
        starting.take(order.clone());
        assert_eq!(starting.view().tally, 0, "starting, {order:?}");
    }
}

#[test]
fn an_unload_wipes_the_tally_also_while_the_dead_engine_is_reaped() {
    let mut stage = third_attempt();
    stage.spawn();
    stage.child(exited(ended(CRASH)));
    assert_eq!(stage.state(), "reaping");
    stage.ask(SlotEvent::UnloadRequested);
    stage.child(ChildEvent::Reaped);
    assert_eq!(stage.state(), "offline");
    assert_eq!(spawns(&stage.demand()), 1);
    stage.spawn();
    stage.die(ended(CRASH));
    assert_eq!(stage.state(), "backoff", "the next death is the first, not the last straw");
}

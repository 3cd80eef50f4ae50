//! How loads, runs and stops end, and what becomes of the requests.

use super::*;

#[test]
fn a_kill_by_an_admin_is_no_memory_death() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(ExitStatus::Signal(9)));
    assert_eq!(stage.last_verdict(), Verdict::KilledByOther);
    assert_eq!(stage.state(), "starting", "and it is brought back");
}

#[test]
fn an_engine_told_to_end_from_outside_rests_until_it_is_asked_for() {
    let mut stage = Stage::serving(profile("chat"));
    assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), 0);
    assert_eq!(stage.state(), "offline");
    assert_eq!(spawns(&stage.demand()), 1);
}

#[test]
fn being_told_to_end_again_and_again_is_no_failure() {
    let mut stage = Stage::on_demand();
    for _ in 0..20 {
        assert_eq!(spawns(&stage.demand()), 1);
        stage.spawn();
        stage.child(ChildEvent::BecameReady);
        stage.die(ended(ExitStatus::Signal(15)));
        assert_eq!((stage.state(), stage.view().tally), ("offline", 0));
    }
}

#[test]
fn a_resident_engine_told_to_end_from_outside_comes_back() {
    let mut stage = Stage::serving(Profile { autostart: true, ..profile("chat") });
    assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), 1);
}

#[test]
fn an_unload_during_a_backoff_wins() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(CRASH));
    stage.spawn();
    stage.die(ended(CRASH));
    assert_eq!(stage.state(), "backoff");
    stage.ask(SlotEvent::UnloadRequested);
    assert_eq!(stage.state(), "offline");
    assert_eq!(spawns(&stage.pass(Duration::from_hours(1))), 0);
}

#[test]
fn a_stop_while_spawning_ends_the_child_as_soon_as_it_is_there() {
    let mut stage = Stage::on_demand();
    stage.demand();
    let told = stage.ask(SlotEvent::UnloadRequested);
    assert!(matches!(refusals(&told)[..], [Refusal::Unloaded]));
    assert_eq!(signals(&told), [], "there is nothing to signal yet");
    assert_eq!(signals(&stage.spawn()), [StopSignal::Terminate]);
    assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), 0);
    assert_eq!(stage.state(), "offline");
    assert_eq!(stage.last_verdict(), Verdict::StoppedByUs);
}

#[test]
fn a_request_that_crosses_an_idle_unload_is_held_for_the_next_engine() {
    let timeout = Duration::from_secs(30);
    let mut stage = Stage::serving(Profile { idle_timeout: Some(timeout), ..profile("chat") });
    let asked = stage.pass(timeout);
    assert!(matches!(asked[..], [Command::MeasureActivity { .. }]), "{asked:?}");
    stage.child(ChildEvent::ActivityMeasured { in_flight: 0, idle_for: timeout });
    assert_eq!(stage.state(), "draining");
    assert_eq!(stage.demand(), [], "held, neither granted nor refused");
    stage.child(ChildEvent::Drained);
    assert_eq!(spawns(&stage.die(ended(ExitStatus::Signal(15)))), 1);
    stage.spawn();
    let granted = stage.child(ChildEvent::BecameReady);
    assert!(matches!(granted[..], [Command::Grant { .. }]), "{granted:?}");
}

#[test]
fn a_busy_engine_is_not_unloaded_for_being_idle() {
    let timeout = Duration::from_secs(30);
    let mut stage = Stage::serving(Profile { idle_timeout: Some(timeout), ..profile("chat") });
    stage.pass(timeout);
    let busy = ChildEvent::ActivityMeasured { in_flight: 1, idle_for: timeout * 9 };
    assert_eq!(stage.child(busy), []);
    let used = ChildEvent::ActivityMeasured { in_flight: 0, idle_for: timeout / 3 };
    stage.pass(timeout);
    assert_eq!(stage.child(used), []);
    let look_again = stage.pass(timeout * 2 / 3);
    assert!(matches!(look_again[..], [Command::MeasureActivity { .. }]), "{look_again:?}");
}

#[test]
fn a_load_past_its_time_is_killed_and_is_one_death_with_its_evidence() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    let told = stage.pass(Duration::from_mins(2));
    assert_eq!(signals(&told), [StopSignal::Kill]);
    assert!(matches!(
        refusals(&told)[..],
        [Refusal::LoadFailed { verdict: Verdict::StartTimeout, .. }]
    ));
    stage.die(ended(ExitStatus::Signal(9)));
    let view = stage.view();
    assert_eq!(view.tally, 1);
    let [death] = &view.deaths[..] else { panic!("not one death: {:?}", view.deaths) };
    assert_eq!(death.verdict, Verdict::StartTimeout);
    assert_eq!(death.evidence, Some(ended(ExitStatus::Signal(9))));
    assert!(death.at_unix_ms > 0);
}

#[test]
fn a_request_is_held_over_a_short_backoff_of_an_engine_that_had_worked() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(CRASH));
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    stage.die(ended(CRASH));
    assert_eq!(stage.demand(), []);
    stage.pass(Duration::from_secs(6));
    stage.spawn();
    let granted = stage.child(ChildEvent::BecameReady);
    assert!(matches!(granted[..], [Command::Grant { .. }]), "{granted:?}");
}

#[test]
fn requests_in_flight_are_cut_and_a_deaf_engine_is_killed_each_at_its_time() {
    let mut stage = Stage::serving(profile("chat"));
    stage.ask(SlotEvent::UnloadRequested);
    assert_eq!(stage.pass(Duration::from_millis(9_999)), []);
    let cut = stage.pass(Duration::from_millis(1));
    assert!(
        matches!(
            cut[..],
            [Command::CutRequests { .. }, Command::Signal { signal: StopSignal::Terminate, .. }]
        ),
        "{cut:?}"
    );
    assert_eq!(stage.pass(Duration::from_millis(9_999)), []);
    assert_eq!(signals(&stage.pass(Duration::from_millis(1))), [StopSignal::Kill]);
}

#[test]
fn a_load_bar_never_runs_backwards() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    let mut told = Vec::new();
    // Log lines and health answers race.
    for percent in [10, 40, 30, 250, 90] {
        stage.child(ChildEvent::Progressed { percent });
        if let StateView::Starting { percent: Some(percent), .. } = stage.view().state {
            told.push(percent);
        }
    }
    assert_eq!(told, [10, 40, 40, 100, 100]);
}

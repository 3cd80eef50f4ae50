//! What follows a death: how soon, how often, and when not at all.

use super::*;

#[test]
fn the_first_death_after_a_run_starts_at_once_and_the_next_wait_longer_each() {
    let mut stage = Stage::serving(Profile { max_restarts: 20, ..profile("chat") });
    assert_eq!(spawns(&stage.die(ended(CRASH))), 1, "the first restart waits for nothing");
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
        stage.spawn();
        stage.child(ChildEvent::BecameReady);
        assert_eq!(spawns(&stage.die(ended(CRASH))), 0);
        let backoff = stage.backoff();
        assert!(is_about(backoff, seconds), "{backoff:?} instead of about {seconds} s");
        let moment = Duration::from_millis(1);
        assert_eq!(spawns(&stage.pass(backoff.saturating_sub(moment))), 0);
        assert_eq!(spawns(&stage.pass(moment)), 1);
    }
}

#[test]
fn a_failed_start_waits_from_the_first_time_on() {
    let mut stage = Stage::new(Profile { max_restarts: 20, ..profile("chat") });
    stage.demand();
    for seconds in [5, 10, 20, 40] {
        stage.spawn();
        stage.die(ended(ExitStatus::Code(1)));
        let backoff = stage.backoff();
        assert!(is_about(backoff, seconds), "{backoff:?} instead of about {seconds} s");
        stage.pass(backoff);
    }
}

#[test]
fn a_healthy_run_wipes_the_tally() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(CRASH));
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    assert_eq!(stage.view().tally, 1);
    stage.pass(Duration::from_mins(1));
    assert_eq!(stage.view().tally, 0);
    assert_eq!(spawns(&stage.die(ended(CRASH))), 1, "as if it were the first death");
}

#[test]
fn only_ready_time_wipes_the_tally() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(CRASH));
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    stage.pass(Duration::from_secs(59));
    stage.child(ChildEvent::BecameUnready);
    stage.pass(Duration::from_mins(10));
    assert_eq!(stage.view().tally, 1);
    stage.child(ChildEvent::BecameReady);
    stage.pass(Duration::from_mins(1));
    assert_eq!(stage.view().tally, 0);
}

#[test]
fn an_engine_that_dies_at_start_is_spawned_four_times_in_a_minute_of_hammering() {
    let mut stage = Stage::new(Profile { max_restarts: 10, ..profile("chat") });
    let mut spawned_at = Vec::new();
    // A request every 10 ms; each spawn lives for 20 ms.
    for tick in 0..6000_u64 {
        let now = Monotime::from_start(Duration::from_millis(tick * 10));
        let told = stage.checker.step(now, Event::DeadlinePassed).unwrap();
        let mut commands = stage.size(told);
        commands.extend(stage.demand());
        if spawns(&commands) > 0 {
            spawned_at.push(now.since_start().as_secs_f64());
            stage.spawn();
        }
        let age = spawned_at.last().map_or(0.0, |at| now.since_start().as_secs_f64() - at);
        if stage.state() == "starting" && age >= 0.02 {
            let waiting = stage.view().waiting;
            assert!(waiting > 0);
            let told = stage.child(exited(ended(ExitStatus::Code(1))));
            let refused = refusals(&told);
            assert_eq!(refused.len(), waiting, "all are told in the step that the exit is seen in");
            assert!(matches!(refused[0], Refusal::LoadFailed { .. }), "{refused:?}");
            stage.child(ChildEvent::Reaped);
        }
    }
    println!("spawned at {spawned_at:.2?} s");
    assert_eq!(spawned_at.len(), 4, "{spawned_at:?}");
    for (at, about) in spawned_at.iter().zip([0.0, 5.0, 15.0, 35.0]) {
        assert!((at - about).abs() <= about * 0.1 + 0.1, "{spawned_at:?}");
    }
}

#[test]
fn a_refused_argument_is_not_tried_again() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    let told = stage.die(logged(ExitStatus::Code(1), LogCause::BadConfig));
    assert_eq!(stage.state(), "failed");
    assert_eq!(stage.last_verdict(), Verdict::BadConfig);
    assert!(matches!(refusals(&told)[..], [Refusal::Failed { verdict: Verdict::BadConfig, .. }]));
    assert_eq!(spawns(&stage.pass(Duration::from_hours(1))), 0);
    let told = stage.demand();
    assert_eq!(spawns(&told), 0, "a request does not try again either");
    assert!(matches!(refusals(&told)[..], [Refusal::Failed { .. }]));
    assert_eq!(spawns(&stage.ask(SlotEvent::LoadRequested)), 1, "a person does");
}

#[test]
fn a_rule_that_loads_tries_nothing_again_that_waits_for_a_person_or_its_time() {
    let mut stage = Stage::new(Profile { max_restarts: 1, ..profile("chat") });
    assert_eq!(spawns(&stage.ask(SlotEvent::LoadOrderedByRule)), 1, "it loads what is at rest");
    stage.spawn();
    stage.die(ended(CRASH));
    let backoff = stage.backoff();
    assert_eq!(spawns(&stage.ask(SlotEvent::LoadOrderedByRule)), 0, "the next try has its time");
    assert_eq!((stage.state(), stage.view().tally), ("backoff", 1));
    assert_eq!(spawns(&stage.pass(backoff)), 1);
    stage.spawn();
    stage.die(ended(CRASH));
    assert_eq!(stage.state(), "failed");
    assert_eq!(spawns(&stage.ask(SlotEvent::LoadOrderedByRule)), 0, "a person has to look");
    assert_eq!(stage.state(), "failed");
}

#[test]
fn an_essential_slot_retries_at_the_cap_what_only_a_person_can_mend() {
    let mut stage = Stage::new(Profile { essential: true, autostart: true, ..profile("chat") });
    for _ in 0..6 {
        stage.spawn();
        stage.die(logged(ExitStatus::Code(1), LogCause::BadConfig));
        let backoff = stage.backoff();
        assert!(is_about(backoff, 300), "{backoff:?}");
        assert_eq!(spawns(&stage.pass(backoff)), 1);
    }
}

#[test]
fn an_essential_slot_never_fails() {
    let mut stage = Stage::new(Profile {
        essential: true,
        autostart: true,
        max_restarts: 2,
        ..profile("chat")
    });
    let mut waits = Vec::new();
    for _ in 0..8 {
        stage.spawn();
        stage.die(ended(CRASH));
        waits.push(stage.backoff());
        stage.pass(Duration::from_mins(6));
    }
    assert!(is_about(waits[0], 5) && is_about(waits[1], 10), "{waits:?}");
    assert!(waits[2..].iter().all(|wait| is_about(*wait, 300)), "{waits:?}");
}

#[test]
fn without_restarts_the_first_death_is_the_last() {
    let mut stage = Stage::serving(Profile { max_restarts: 0, ..profile("chat") });
    assert_eq!(spawns(&stage.die(ended(CRASH))), 0);
    assert_eq!(stage.state(), "failed");
}

#[test]
fn exactly_max_restarts_are_made_in_a_row() {
    let mut stage = Stage::new(Profile { max_restarts: 3, ..profile("chat") });
    let mut count = spawns(&stage.demand());
    while stage.state() == "starting" {
        stage.spawn();
        stage.die(ended(CRASH));
        count += spawns(&stage.pass(Duration::from_mins(1)));
    }
    assert_eq!(count, 4, "one start and three restarts");
    assert_eq!(stage.view().restarts, 3, "and that is what is told");
    assert_eq!(stage.state(), "failed");
    stage.ask(SlotEvent::LoadRequested);
    assert_eq!(stage.view().restarts, 3, "a start that a person asked for is no restart");
}

fn not_spawned(verdict: Verdict) -> ChildEvent {
    let reason = "it is not there".to_owned();
    ChildEvent::SpawnFailed { verdict, reason, at_unix_ms: 7, engine: None }
}

/// Clients were told to fetch a model that was there, and the slot was started again and again.
#[test]
fn a_file_that_no_pull_brings_is_not_told_as_a_model_to_be_downloaded() {
    let repo = ModelSource::Hub { repo: "o/r".to_owned(), quant: None, revision: None };
    let of_hub = || Stage::new(Profile { model: Some(repo.clone()), ..profile("chat") });
    let mut adapter = of_hub();
    adapter.demand();
    adapter.spawn();
    let told = adapter.die(logged(ExitStatus::Code(1), LogCause::MissingFile));
    assert!(matches!(refusals(&told)[..], [Refusal::Failed { verdict: Verdict::MissingFile, .. }]));
    assert_eq!(spawns(&adapter.ask(SlotEvent::ModelBecameWhole)), 0, "its model is not the cause");
    assert_eq!(adapter.state(), "failed");
    let mut model = of_hub();
    model.demand();
    let told = model.child(not_spawned(Verdict::ModelNotFetched));
    assert!(matches!(refusals(&told)[..], [Refusal::DownloadRequired { .. }]), "{told:?}");
    assert_eq!(spawns(&model.ask(SlotEvent::ModelBecameWhole)), 1);
    assert_eq!(model.view().tally, 0);
}

#[test]
fn a_slot_that_was_unloaded_meanwhile_is_not_started_when_its_model_comes() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.child(not_spawned(Verdict::ModelNotFetched));
    stage.ask(SlotEvent::UnloadRequested);
    assert_eq!(spawns(&stage.ask(SlotEvent::ModelBecameWhole)), 0);
    assert_eq!(stage.state(), "offline");
}

//! Named scenarios: what the core does in situations that people ask about.

use std::time::Duration;

use slotd::{
    spec::{
        Monotime, SlotName, WaiterId,
        death::{Evidence, ExitStatus, LogCause, Verdict},
        profile::Profile,
    },
    supervisor::{
        ChildEvent, Command, Event, Policy, Refusal, SlotEvent, SlotView, StateView, StopSignal,
    },
};

use super::{
    checker::Checker, ended, exited, logged, of_child, of_slot, profile, profiles_changed, slot,
    spawned,
};

const CRASH: ExitStatus = ExitStatus::Signal(11);

/// A box with one slot, `chat`, whose steps are all held against the model too.
struct Stage {
    checker: Checker,
    chat: SlotName,
    waiters: u64,
}

impl Stage {
    fn new(profile: Profile) -> Self {
        let mut stage =
            Self { checker: Checker::new(Policy::default(), 7), chat: slot("chat"), waiters: 0 };
        stage.take(profiles_changed([profile]));
        stage
    }

    fn on_demand() -> Self {
        Self::new(profile("chat"))
    }

    /// A slot whose engine is ready, loaded by a request.
    fn serving(profile: Profile) -> Self {
        let mut stage = Self::new(profile);
        stage.demand();
        stage.spawn();
        stage.child(ChildEvent::BecameReady);
        stage
    }

    fn take(&mut self, event: Event) -> Vec<Command> {
        self.checker.step(self.checker.now, event).unwrap()
    }

    fn ask(&mut self, event: SlotEvent) -> Vec<Command> {
        self.take(of_slot(&self.chat.clone(), event))
    }

    fn child(&mut self, event: ChildEvent) -> Vec<Command> {
        let generation = self.view().generation;
        self.take(of_child(&self.chat.clone(), generation, event))
    }

    fn demand(&mut self) -> Vec<Command> {
        self.waiters += 1;
        let waiter = WaiterId(self.waiters);
        self.ask(SlotEvent::Demanded { waiter })
    }

    fn spawn(&mut self) -> Vec<Command> {
        self.child(spawned(42))
    }

    /// The child dies, and nothing is left of it.
    fn die(&mut self, evidence: Evidence) -> Vec<Command> {
        let mut commands = self.child(exited(evidence));
        commands.extend(self.child(ChildEvent::Reaped));
        commands
    }

    /// Lets time pass, with each deadline at its moment.
    fn pass(&mut self, time: Duration) -> Vec<Command> {
        let end = self.checker.now.after(time);
        let mut commands = Vec::new();
        while let Some(at) = self.checker.deadline().filter(|at| *at <= end) {
            commands.extend(self.checker.step(at, Event::DeadlinePassed).unwrap());
        }
        commands.extend(self.checker.step(end, Event::DeadlinePassed).unwrap());
        commands
    }

    fn view(&self) -> &SlotView {
        self.checker.view(&self.chat).unwrap()
    }

    fn state(&self) -> &'static str {
        self.view().state.as_str()
    }

    fn last_verdict(&self) -> Verdict {
        self.view().deaths.last().unwrap().verdict
    }

    /// Returns how long the slot backs off from now.
    fn backoff(&self) -> Duration {
        match &self.view().state {
            StateView::Backoff { retry_at } => retry_at.since(self.checker.now),
            other => panic!("not backing off: {other:?}"),
        }
    }
}

fn spawns(commands: &[Command]) -> usize {
    commands.iter().filter(|command| matches!(command, Command::Spawn { .. })).count()
}

fn signals(commands: &[Command]) -> Vec<StopSignal> {
    let signal_of = |command: &Command| match command {
        Command::Signal { signal, .. } => Some(*signal),
        _ => None,
    };
    commands.iter().filter_map(signal_of).collect()
}

fn refusals(commands: &[Command]) -> Vec<&Refusal> {
    let of_command = commands.iter().map(|command| match command {
        Command::Refuse { refusal, .. } => Some(refusal),
        _ => None,
    });
    of_command.flatten().collect()
}

fn is_about(actual: Duration, seconds: u64) -> bool {
    let plain = Duration::from_secs(seconds);
    actual >= plain * 9 / 10 && actual <= plain * 11 / 10
}

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
fn an_engine_that_dies_at_start_is_spawned_four_times_in_a_minute_of_hammering() {
    let mut stage = Stage::new(Profile { max_restarts: 10, ..profile("chat") });
    let mut spawned_at = Vec::new();
    // A request every 10 ms; each spawn lives for 20 ms.
    for tick in 0..6000_u64 {
        let now = Monotime::from_start(Duration::from_millis(tick * 10));
        let mut commands = stage.checker.step(now, Event::DeadlinePassed).unwrap();
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
    assert_eq!(stage.state(), "failed");
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

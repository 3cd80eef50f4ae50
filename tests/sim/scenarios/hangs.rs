//! What becomes of engines that live and do nothing.

use std::time::Duration;

use slotd::{
    spec::{
        death::{ExitStatus, Verdict},
        profile::Profile,
    },
    supervisor::{ChildEvent, Command, SlotEvent, StopSignal, Vitals},
};

use super::{Stage, ended, exited, profile, signals, spawns};
use crate::sim::vitals;

const SILENT: fn() -> Vitals = || Vitals { has_answered: false, ..vitals() };

impl Stage {
    fn reading(&mut self, vitals: Vitals) -> Vec<Command> {
        self.child(ChildEvent::VitalsRead { vitals })
    }

    /// Reads the same signs every two seconds.
    fn readings(&mut self, seconds: u64, vitals: Vitals) -> Vec<Command> {
        let mut commands = Vec::new();
        for _ in 0..seconds / 2 {
            commands.extend(self.pass(Duration::from_secs(2)));
            commands.extend(self.reading(vitals));
        }
        commands
    }
}

#[test]
fn an_engine_that_hangs_is_told_to_end_then_killed_and_replaced() {
    let mut stage = Stage::serving(profile("chat"));
    stage.reading(Vitals { continues: false, ..SILENT() });
    assert_eq!(signals(&stage.readings(58, SILENT())), []);
    assert_eq!(signals(&stage.readings(2, SILENT())), [StopSignal::Terminate]);
    assert_eq!((stage.state(), stage.last_verdict()), ("stopping", Verdict::Hung));
    assert_eq!(stage.demand(), [], "the request waits for the next engine");
    assert_eq!(signals(&stage.pass(Duration::from_secs(10))), [StopSignal::Kill]);
    let killed = ended(ExitStatus::Signal(9));
    stage.child(exited(killed.clone()));
    let death = stage.view().deaths.last().unwrap();
    assert_eq!((death.verdict, &death.evidence), (Verdict::Hung, &Some(killed)));
    assert_eq!(spawns(&stage.child(ChildEvent::Reaped)), 1);
    assert_eq!(stage.view().deaths.len(), 1);
}

#[test]
fn an_engine_that_hangs_again_and_again_is_given_up() {
    let mut stage = Stage::serving(Profile { max_restarts: 1, ..profile("chat") });
    for state in ["starting", "failed"] {
        stage.reading(Vitals { failed_in_row: 5, ..vitals() });
        assert_eq!(stage.last_verdict(), Verdict::Poisoned);
        stage.die(ended(ExitStatus::Signal(15)));
        assert_eq!(stage.state(), state);
        if state == "starting" {
            stage.spawn();
            stage.child(ChildEvent::BecameReady);
        }
    }
}

#[test]
fn without_a_patience_only_failed_requests_condemn() {
    let mut stage = Stage::serving(Profile { hang_timeout: None, ..profile("chat") });
    assert_eq!(signals(&stage.readings(3600, SILENT())), []);
    assert_eq!(stage.state(), "ready");
    stage.reading(Vitals { failed_in_row: 5, ..SILENT() });
    assert_eq!(stage.last_verdict(), Verdict::Poisoned);
}

#[test]
fn an_engine_that_says_it_is_not_ready_and_never_is_again_is_replaced() {
    let mut stage = Stage::serving(profile("chat"));
    stage.reading(Vitals { continues: false, ..SILENT() });
    stage.child(ChildEvent::BecameUnready);
    assert_eq!(signals(&stage.readings(60, SILENT())), [StopSignal::Terminate]);
    assert_eq!(stage.last_verdict(), Verdict::Hung);
}

#[test]
fn a_stop_that_was_asked_for_wins_over_a_hang() {
    let mut stage = Stage::serving(profile("chat"));
    stage.reading(Vitals { failed_in_row: 5, ..vitals() });
    stage.ask(SlotEvent::UnloadRequested);
    stage.die(ended(ExitStatus::Code(0)));
    assert_eq!(stage.state(), "offline");
}

#[test]
fn a_step_forward_of_a_load_gives_it_its_time_anew_and_a_repeated_one_does_not() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    let minute = Duration::from_mins(1);
    for percent in [10, 20] {
        stage.pass(minute);
        stage.child(ChildEvent::Progressed { percent });
    }
    stage.pass(minute);
    stage.child(ChildEvent::Progressed { percent: 20 });
    assert_eq!(stage.state(), "starting", "three minutes into a load of two");
    assert_eq!(signals(&stage.pass(minute)), [StopSignal::Kill]);
    let death = stage.view().deaths.last().unwrap();
    let reason = "its load stood at 20 % for 120 s (`start_timeout`) and was killed";
    assert_eq!((death.verdict, death.reason.as_str()), (Verdict::StartTimeout, reason));
}

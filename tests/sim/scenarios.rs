//! Named scenarios: what the core does in situations that people ask about.

mod edits;
mod ends;
mod hangs;
mod ladder;
mod restarts;
mod rollback;

use std::time::Duration;

use slotd::{
    spec::{
        Monotime, SlotName, WaiterId,
        death::{Evidence, ExitStatus, LogCause, Verdict},
        profile::{ModelSource, Profile},
    },
    supervisor::{
        ChildEvent, Command, Event, Policy, Refusal, SlotEvent, SlotView, StateView, StopSignal,
    },
};

use super::{
    checker::Checker, ended, exited, logged, of_child, of_slot, profile, profiles_changed, sized,
    slot, spawned,
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
        let commands = self.checker.step(self.checker.now, event).unwrap();
        self.size(commands)
    }

    /// What every start needs is there at once, and nothing is known of its memory.
    fn size(&mut self, commands: Vec<Command>) -> Vec<Command> {
        let mut rest = Vec::new();
        for command in commands {
            if let Command::Size { slot, generation, .. } = command {
                let event = of_child(&slot, generation, sized(None));
                rest.extend(self.checker.step(self.checker.now, event).unwrap());
            } else {
                rest.push(command);
            }
        }
        rest
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
            let told = self.checker.step(at, Event::DeadlinePassed).unwrap();
            commands.extend(self.size(told));
        }
        let told = self.checker.step(end, Event::DeadlinePassed).unwrap();
        commands.extend(self.size(told));
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

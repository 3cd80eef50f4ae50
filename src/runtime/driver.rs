//! The one loop: an event in, the core's decision, its commands out, its snapshot published.
//!
//! Nothing awaited here can block: probes, disks and spawns run in tasks of their own and answer by
//! event.

use std::{collections::BTreeMap, ops::ControlFlow};

use tokio::time::sleep_until;
use tracing::debug;

use super::{clock::Clock, effects::Effects, publish::Publisher, service_manager::Watchdog};
use crate::{
    mailbox::Inbox,
    spec::SlotName,
    supervisor::{Command, Event, Memory, Supervisor},
};

/// The parts that the loop owns.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) core: Supervisor,
    pub(super) inbox: Inbox,
    pub(super) effects: Effects,
    pub(super) publisher: Publisher,
    pub(super) watchdog: Watchdog,
    pub(super) clock: Clock,
}

/// What is left when the driver has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Must still be waited for.
    pub(super) effects: Effects,
    /// What is worth remembering of every slot there was.
    pub(super) memory: BTreeMap<SlotName, Memory>,
}

impl Driver {
    /// Runs until the core has said that everything is stopped.
    pub(super) async fn run(mut self) -> Ended {
        let mut commands = Vec::new();
        while let Some(event) = self.next_event().await {
            if let Some(cell) = self.core.cell(&event) {
                debug!(state = cell.state, event = cell.event, "event taken");
            }
            self.core.handle(self.clock.now(), event, &mut commands);
            // Published before anything is performed: whoever is granted finds the open route, and
            // nobody new takes a route that is to be drained.
            self.publisher.publish(&self.core.snapshot(), self.effects.gates());
            if self.perform_all(&mut commands).is_break() {
                break;
            }
        }
        Ended { effects: self.effects, memory: self.core.memory() }
    }

    fn perform_all(&mut self, commands: &mut Vec<Command>) -> ControlFlow<()> {
        for command in commands.drain(..) {
            debug!(?command, "command given");
            match command {
                Command::Grant { waiter } => self.inbox.answer(waiter, Ok(())),
                Command::Refuse { waiter, refusal } => self.inbox.answer(waiter, Err(refusal)),
                Command::AnswerRoom { asker, answer } => self.inbox.answer_room(asker, answer),
                Command::Finish => return ControlFlow::Break(()),
                Command::Size { .. }
                | Command::Spawn { .. }
                | Command::ReadMemory
                | Command::Watch { .. }
                | Command::Signal { .. }
                | Command::Drain { .. }
                | Command::CutRequests { .. }
                | Command::Leave { .. }
                | Command::MeasureActivity { .. }
                | Command::MeasureRoom { .. } => self.effects.perform(command),
            }
        }
        ControlFlow::Continue(())
    }

    /// Returns the next event; `None` when nobody is left who could send one.
    async fn next_event(&mut self) -> Option<Event> {
        if let Some(answer) = self.effects.next_answer() {
            return Some(answer);
        }
        let deadline = self.core.deadline().map(|at| self.clock.instant(at));
        loop {
            tokio::select! {
                // The watchdog before all: a busy driver is no stuck one. Then news of children: a
                // death leaves the routing table before requests look.
                biased;
                () = self.watchdog.due() => self.watchdog.pat(),
                event = self.effects.next_report() => return Some(event),
                event = self.inbox.next() => return event,
                () = wait_until(deadline) => return Some(Event::DeadlinePassed),
            }
        }
    }
}

async fn wait_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

//! Requests that wait for a slot: held, granted, turned away.

use std::{mem, time::Duration};

use super::{
    command::{Command, Refusal},
    input::Input,
    slot::{Context, Slot},
};
use crate::spec::{
    Monotime, WaiterId,
    death::{Phase, Verdict},
};

impl Slot {
    /// Takes a request into the queue, or turns it away because the queue is full.
    pub(super) fn hold(&mut self, waiter: WaiterId, context: &mut Context<'_>) -> bool {
        let waiting = self.waiting.len();
        if waiting >= context.policy.waiting_limit {
            let refusal = Refusal::QueueFull { waiting };
            context.commands.push(Command::Refuse { waiter, refusal });
            return false;
        }
        self.waiting.insert(waiter);
        true
    }

    /// Sends every waiting request to the engine.
    pub(super) fn grant_all(&mut self, context: &mut Context<'_>) {
        let waiting = mem::take(&mut self.waiting);
        context.commands.extend(waiting.into_iter().map(|waiter| Command::Grant { waiter }));
    }

    /// Turns every waiting request away because the slot goes down on purpose.
    pub(super) fn dismiss_waiting(&mut self, input: &Input, context: &mut Context<'_>) {
        let is_shutdown = matches!(input, Input::Shutdown);
        let refusal = if is_shutdown { Refusal::ShuttingDown } else { Refusal::Unloaded };
        self.refuse_all(&refusal, context);
    }

    /// Turns every waiting request away.
    pub(super) fn refuse_all(&mut self, refusal: &Refusal, context: &mut Context<'_>) {
        let waiting = mem::take(&mut self.waiting);
        context.commands.extend(
            waiting.into_iter().map(|waiter| Command::Refuse { waiter, refusal: refusal.clone() }),
        );
    }

    /// Holds or turns away a request that came while the next attempt waits.
    ///
    /// A working engine that died is bridged when it will soon be back; a load that failed is told
    /// at once, so that no client waits for what may never come.
    pub(super) fn hold_over_backoff(
        &mut self,
        waiter: WaiterId,
        retry_at: Monotime,
        context: &mut Context<'_>,
    ) {
        if self.bridges(retry_at, context) {
            self.hold(waiter, context);
        } else {
            let refusal = self.load_failed(retry_at, context);
            context.commands.push(Command::Refuse { waiter, refusal });
        }
    }

    /// Turns a request away from a slot that has failed.
    pub(super) fn refuse_failed(&self, waiter: WaiterId, context: &mut Context<'_>) {
        context.commands.push(Command::Refuse { waiter, refusal: self.failed_refusal() });
    }

    pub(super) fn bridges(&self, retry_at: Monotime, context: &Context<'_>) -> bool {
        let had_worked = self.deaths.last().is_some_and(|death| death.phase == Phase::Serving);
        had_worked && retry_at.since(context.now) <= context.policy.bridge
    }

    pub(super) fn load_failed(&self, retry_at: Monotime, context: &Context<'_>) -> Refusal {
        self.load_failed_until(retry_at.since(context.now))
    }

    /// Says that the last load failed; the next attempt comes after `delay`.
    pub(super) fn load_failed_until(&self, delay: Duration) -> Refusal {
        let (verdict, reason) = self.last_cause();
        let load = self.expected_load().unwrap_or_default();
        Refusal::LoadFailed { verdict, reason, retry_in: delay + load }
    }

    pub(super) fn failed_refusal(&self) -> Refusal {
        let (verdict, reason) = self.last_cause();
        if verdict == Verdict::ModelNotFetched {
            return Refusal::DownloadRequired { reason };
        }
        Refusal::Failed { verdict, reason }
    }

    fn last_cause(&self) -> (Verdict, String) {
        self.deaths.last().map_or_else(
            || (Verdict::UnexpectedExit, "its cause is not known".to_owned()),
            |death| (death.verdict, death.reason.clone()),
        )
    }
}

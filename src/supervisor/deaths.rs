//! A slot's history: deaths with what follows them, and how long loads took.

use std::{sync::Arc, time::Duration};

use super::{
    ladder::Step,
    restart::{self, Next},
    slot::{After, Context, Slot},
    verdict::{self, OurPart},
};
use crate::spec::{
    Monotime,
    death::{Death, Evidence, Phase},
};

/// How many deaths are kept.
const DEATHS_KEPT: usize = 20;
/// How many load times are kept.
const LOADS_KEPT: usize = 8;

impl Slot {
    /// Records a death that nobody planned, and says what follows it.
    pub(super) fn bury(
        &mut self,
        (pid, began): (u32, Monotime),
        phase: Phase,
        exit: (Evidence, u64),
        context: &mut Context<'_>,
    ) -> After {
        self.bury_planned((pid, began), (phase, OurPart::None), exit, context);
        self.after_death(context)
    }

    /// Records a death whose consequence is settled already.
    pub(super) fn bury_planned(
        &mut self,
        (pid, began): (u32, Monotime),
        (phase, ours): (Phase, OurPart),
        (evidence, at_unix_ms): (Evidence, u64),
        context: &Context<'_>,
    ) {
        let judgement = verdict::judge(&evidence, phase, ours);
        self.record(Death {
            generation: self.generation,
            pid: Some(pid),
            verdict: judgement.verdict,
            confidence: judgement.confidence,
            reason: judgement.reason,
            phase,
            ran_for: context.now.since(began),
            at_unix_ms,
            evidence: Some(evidence),
        });
    }

    /// Adds to the last death what became known after it was recorded.
    pub(super) fn complete_last_death(&mut self, evidence: Evidence, at_unix_ms: u64) {
        if let Some(death) = self.deaths.last_mut() {
            let death = Arc::make_mut(death);
            death.evidence = Some(evidence);
            death.at_unix_ms = at_unix_ms;
            if let Some(rejected) = &mut self.edits.rejected
                && rejected.generation == death.generation
            {
                rejected.at_unix_ms = at_unix_ms;
            }
        }
    }

    /// Keeps a death.
    pub(super) fn record(&mut self, death: Death) {
        if self.deaths.len() >= DEATHS_KEPT {
            self.deaths.remove(0);
        }
        self.deaths.push(Arc::new(death));
    }

    /// Decides what follows the last death, and tells those who wait if it is not a new start.
    pub(super) fn after_death(&mut self, context: &mut Context<'_>) -> After {
        let Some(death) = self.deaths.last().cloned() else { return After::Rest };
        let random = context.random.draw();
        let step = if restart::was_a_wish(&self.profile, &death) {
            Step::Stays
        } else {
            self.ladder.suffer(&death, context.policy, context.now)
        };
        self.tell_step(step);
        let circumstances = (&*death, step, random);
        let next = restart::next(context.policy, &self.profile, &mut self.tally, circumstances);
        if next != Next::AtOnce
            && let Some(after) = self.roll_back(&death, context)
        {
            return after;
        }
        match next {
            Next::Rest if self.waiting.is_empty() => After::Rest,
            // Rest with somebody waiting: that is a demand.
            Next::AtOnce | Next::Rest => After::Restart,
            Next::After(delay) => {
                let retry_at = context.now.after(delay);
                if !self.bridges(retry_at, context) {
                    let refusal = self.load_failed(retry_at, context);
                    self.refuse_all(&refusal, context);
                }
                After::Backoff { retry_at }
            }
            Next::GiveUp => {
                // What has given up is nothing to go back to.
                self.edits.worked = None;
                let refusal = self.failed_refusal();
                self.refuse_all(&refusal, context);
                After::Fail
            }
        }
    }

    /// Adds to the last death where it has led to on the ladder.
    fn tell_step(&mut self, step: Step) {
        if let Some(told) = self.ladder.told(step) {
            self.add_to_last_reason(&told);
        }
    }

    /// Adds to the last death what it has led to.
    pub(super) fn add_to_last_reason(&mut self, told: &str) {
        if let Some(death) = self.deaths.last_mut() {
            let death = Arc::make_mut(death);
            death.reason = format!("{}; {told}", death.reason);
        }
    }

    /// Remembers how long a load took.
    pub(super) fn record_load(&mut self, took: Duration) {
        if self.loads.len() >= LOADS_KEPT {
            self.loads.remove(0);
        }
        self.loads.push(took);
    }

    /// Returns the median of earlier loads.
    pub(super) fn expected_load(&self) -> Option<Duration> {
        // On the stack: it is asked of all slots for one decision.
        let mut kept = [Duration::ZERO; LOADS_KEPT];
        let known = self.loads.len().min(LOADS_KEPT);
        let loads = kept.get_mut(..known)?;
        loads.iter_mut().zip(&self.loads).for_each(|(to, load)| *to = *load);
        loads.sort_unstable();
        loads.get(known / 2).copied()
    }
}

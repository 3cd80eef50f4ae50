//! A slot as scripts see it. The keys are stable: new ones may come, none changes its meaning.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{PullObject, RuleActObject};
use crate::{
    spec::{
        Bytes, Generation, Monotime, SlotName,
        death::{Confidence, Death, Evidence, Phase, Verdict},
        edit::Rejected,
        ladder::RungView,
        memory::{Basis, GpuNeed, Need, Share},
        profile::Capability,
        residence::{Orders, Unmet},
    },
    supervisor::{Relieved, SlotView, StateView, Wait},
};

/// One slot at one moment: an element of `GET /v1/slots` and of `slotd ps --json`.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SlotObject {
    /// Its name.
    pub slot: SlotName,
    /// The slot that it stands in for while that one goes over to another revision of its model.
    #[serde(default)]
    pub stands_in_for: Option<SlotName>,
    /// `offline`, `queued`, `starting`, `ready`, `unready`, `draining`, `stopping`, `reaping`, `backoff` or
    /// `failed`.
    pub state: String,
    /// The engine in use or last used, else what the profile asks for.
    pub engine: String,
    /// The model as the profile names it.
    pub model: Option<String>,
    /// Where the engine is, if somebody else runs it; `null` for one of slotd's own.
    #[serde(default)]
    pub url: Option<String>,
    /// Why such an engine is offline, once it was looked for.
    #[serde(default)]
    pub absence: Option<String>,
    /// Whether such an engine has put its model away until the next request; `null` unless it is ready.
    #[serde(default)]
    pub asleep: Option<bool>,
    /// The engine's process id while there is one.
    pub pid: Option<u32>,
    /// Counts the slot's engines, from 1; 0 before the first.
    pub generation: Generation,
    /// Restarts after deaths that slotd made by itself since the daemon started.
    pub restarts: u32,
    /// The verdict of the last death.
    pub verdict: Option<Verdict>,
    /// The sentence of the last death.
    pub reason: Option<String>,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// Names that it serves together with other slots.
    pub routes: Vec<String>,
    /// What it is offered for.
    pub capabilities: Vec<Capability>,
    /// The engine's program, once one was chosen.
    pub program: Option<String>,
    /// How long it has been in this state.
    pub since_ms: u64,
    /// While starting: the download of its model, where it waits for that.
    #[serde(default)]
    pub pull: Option<PullObject>,
    /// While starting: which attempt in a row this is, from 1.
    pub attempt: Option<u32>,
    /// While starting: how far the load has come, 0 to 100, where the engine tells.
    pub percent: Option<u8>,
    /// While starting: how long this load has taken.
    pub elapsed_ms: Option<u64>,
    /// How long a load is expected to take, from earlier ones.
    pub expected_load_ms: Option<u64>,
    /// While backing off: how long until the next attempt.
    pub retry_in_ms: Option<u64>,
    /// While queued: what it waits for, one sentence with the numbers.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// While queued: it needs more than this machine has, whoever goes.
    #[serde(default)]
    pub too_large: bool,
    /// While queued for room that nobody who may go could make: the slots that hold some of what is lacking, and make
    /// room for nobody; most first.
    #[serde(default)]
    pub held_by: Vec<SlotName>,
    /// What the machine has less of than its profile asks for under `[needs]`, one clause; `null` for a slot that is
    /// not skipped for that, and while an engine is there.
    #[serde(default)]
    pub skipped: Option<String>,
    /// While queued: what it will take of the host's memory, where that is known.
    #[serde(default)]
    pub need_bytes: Option<Bytes>,
    /// While queued: what it will take of the memory of GPUs; `null` where it takes none.
    #[serde(default)]
    pub need_gpu_bytes: Option<Bytes>,
    /// What it is counted with of the host's memory, while an engine is there or ordered.
    #[serde(default)]
    pub promised_bytes: Option<Bytes>,
    /// The same of the memory of all GPUs together.
    #[serde(default)]
    pub promised_gpu_bytes: Option<Bytes>,
    /// The slot that it has made room for, while it is down for that.
    #[serde(default)]
    pub displaced_by: Option<SlotName>,
    /// What the machine ran short of when the slot was unloaded for that, while it is down: `memory`,
    /// `gpu-0` and so on.
    #[serde(default)]
    pub unloaded_for: Option<String>,
    /// What a rule did last to the slot, since the daemon started.
    #[serde(default)]
    pub rule: Option<RuleActObject>,
    /// What keeps it out, where it is to come back by itself and cannot yet: one sentence.
    #[serde(default)]
    pub kept_out: Option<String>,
    /// Never unloaded for another slot, by its profile or a person's order.
    #[serde(default)]
    pub pinned: bool,
    /// Those with less give way first, by its profile or a person's order.
    #[serde(default)]
    pub priority: u32,
    /// Which of the two a person has ordered: `pinned`, `priority`.
    #[serde(default)]
    pub ordered: Vec<String>,
    /// Requests that the engine works on; `null` without one.
    pub in_flight: Option<u32>,
    /// Requests that wait for the slot.
    pub waiting: usize,
    /// The rung of its ladder: of the present engine, or of the next one where there is none; `null`
    /// while nothing is known of a ladder.
    #[serde(default)]
    pub rung: Option<RungView>,
    /// Deaths in a row without a healthy run in between.
    pub tally: u32,
    /// Resident memory of the engine while there is one, once it was measured.
    pub rss_bytes: Option<Bytes>,
    /// How many requests the engine works on at once, where that is known.
    pub parallel: Option<u32>,
    /// How many CPU cores its engine is counted with while there is one: its threads; 1 where a GPU
    /// computes, 0 where that is not known.
    #[serde(default)]
    pub cores: Option<u32>,
    /// Loaded when the daemon starts.
    pub autostart: bool,
    /// Retried for ever.
    pub essential: bool,
    /// The profile's file.
    pub source: PathBuf,
    /// The edit of the file that failed, while the slot runs its previous profile in its place.
    #[serde(default)]
    pub rejected_edit: Option<RejectedObject>,
    /// How long earlier loads took, oldest first.
    pub loads_ms: Vec<u64>,
    /// The last deaths with all their evidence, our own stops among them, oldest first.
    pub deaths: Vec<DeathObject>,
}

/// An edit whose engine did not become ready.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RejectedObject {
    /// The start that failed.
    pub generation: Generation,
    /// Why it failed.
    pub verdict: Verdict,
    /// One sentence for a person.
    pub reason: String,
    /// Wall-clock time of the failure in milliseconds since 1970; 0 until it is over.
    pub at_unix_ms: u64,
}

/// One death with what the verdict rests on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DeathObject {
    /// The generation that died.
    pub generation: Generation,
    /// Its process id, where it had come that far.
    pub pid: Option<u32>,
    /// The cause.
    pub verdict: Verdict,
    /// How much the verdict can be relied on: `guessed`, `likely` or `certain`.
    #[serde(default)]
    pub confidence: Confidence,
    /// One sentence for a person.
    pub reason: String,
    /// How far it had come.
    pub phase: Phase,
    /// How long it had run.
    pub ran_for_ms: u64,
    /// Wall-clock time of the death in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The evidence; `null` for a child that never was.
    pub evidence: Option<Evidence>,
}

impl SlotObject {
    /// Shows one slot at `now`. `in_flight` is what its engine works on, if there is one.
    pub fn of(name: &SlotName, view: &SlotView, now: Monotime, in_flight: Option<u32>) -> Self {
        let profile = &view.profile;
        let engine = view.engine.as_ref();
        let last = view.deaths.last();
        let (absence, asleep) = outside(&view.state);
        let (waits_for, need) = waiting(&view.state);
        let (attempt, percent, elapsed_ms) = progress(&view.state, now.since(view.since));
        Self {
            slot: name.clone(),
            stands_in_for: name.stands_in_for(),
            state: view.state.as_str().to_owned(),
            engine: engine.map_or(profile.engine.as_str(), |engine| &engine.name).to_owned(),
            model: profile.model_name(),
            url: profile.external().map(|external| external.endpoint.url()),
            absence,
            asleep,
            pid: view.state.pid(),
            generation: view.generation,
            restarts: view.restarts,
            verdict: last.map(|death| death.verdict),
            reason: last.map(|death| death.reason.clone()),
            aliases: profile.aliases.clone(),
            routes: profile.routes.clone(),
            capabilities: offered(view),
            program: engine.map(|engine| engine.program.clone()),
            since_ms: ms(now.since(view.since)),
            pull: None,
            attempt,
            percent,
            elapsed_ms,
            expected_load_ms: view.expected_load.map(ms),
            retry_in_ms: retry_in(&view.state, now),
            waits_for,
            too_large: is_too_large(&view.state),
            held_by: held_by(&view.state),
            skipped: None,
            need_bytes: need.map(|need| need.host),
            need_gpu_bytes: need.and_then(|need| need.gpu.as_ref()).map(GpuNeed::least),
            promised_bytes: view.promised.as_ref().map(|share| share.host),
            promised_gpu_bytes: view.promised.as_ref().map(of_gpus),
            displaced_by: view.displaced_by.clone(),
            rule: None,
            unloaded_for: view.relieved.as_ref().map(|one| one.source.to_string()),
            kept_out: view.relieved.as_ref().and_then(kept_out),
            pinned: view.orders.pinned.unwrap_or(profile.residence.pinned),
            priority: view.orders.priority.unwrap_or_else(|| profile.residence.priority()),
            ordered: ordered(view.orders),
            in_flight,
            waiting: view.waiting,
            rung: view.rung.clone(),
            tally: view.tally,
            rss_bytes: view.state.pid().and(view.rss),
            parallel: engine.map(|engine| engine.parallel).or(profile.parallel),
            cores: view.state.pid().and(engine).map(|engine| engine.cores),
            autostart: profile.autostart,
            essential: profile.essential,
            source: profile.source.clone(),
            rejected_edit: view.edits.rejected.as_ref().map(RejectedObject::of),
            loads_ms: view.loads.iter().copied().map(ms).collect(),
            deaths: view.deaths.iter().map(|death| DeathObject::of(death)).collect(),
        }
    }
}

fn offered(view: &SlotView) -> Vec<Capability> {
    match view.sole() {
        Some(sole) => vec![sole],
        None => Capability::ALL.into_iter().filter(|one| view.profile.offers(*one)).collect(),
    }
}

fn retry_in(state: &StateView, now: Monotime) -> Option<u64> {
    let StateView::Backoff { retry_at } = state else { return None };
    Some(ms(retry_at.since(now)))
}

fn is_too_large(state: &StateView) -> bool {
    matches!(state, StateView::Queued { wait: Wait::TooLarge { .. }, .. })
}

fn held_by(state: &StateView) -> Vec<SlotName> {
    let StateView::Queued { wait, .. } = state else { return Vec::new() };
    wait.stayers()
}

fn kept_out(relieved: &Relieved) -> Option<String> {
    relieved.kept_out.as_ref().map(|why| why.sentence(relieved.source))
}

/// Tells how far a start is: which attempt it is, per cent, and for how long it goes on, in milliseconds.
fn progress(state: &StateView, since: Duration) -> (Option<u32>, Option<u8>, Option<u64>) {
    if let StateView::Starting { attempt, percent, .. } = state {
        (Some(*attempt), *percent, Some(ms(since)))
    } else if let StateView::Coming { percent } = state {
        (None, *percent, Some(ms(since)))
    } else {
        (None, None, None)
    }
}

/// Returns what a slot without an engine is skipped for; `unmet` looks at the machine.
pub(super) fn skipped(state: &StateView, unmet: impl FnOnce() -> Option<Unmet>) -> Option<Unmet> {
    match state {
        StateView::Queued { wait: Wait::Skipped { unmet }, .. } => Some(*unmet),
        StateView::Offline
        | StateView::Queued { .. }
        | StateView::Backoff { .. }
        | StateView::Failed => unmet(),
        StateView::Starting { .. }
        | StateView::Ready { .. }
        | StateView::Unready { .. }
        | StateView::Draining { .. }
        | StateView::Stopping { .. }
        | StateView::Reaping { .. }
        | StateView::Absent { .. }
        | StateView::Coming { .. }
        | StateView::Present { .. }
        | StateView::Parting => None,
    }
}

/// Names what a person has ordered.
fn ordered(orders: Orders) -> Vec<String> {
    let named = [("pinned", orders.pinned.is_some()), ("priority", orders.priority.is_some())];
    named.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| (*name).to_owned()).collect()
}

/// Returns why an engine that somebody else runs is absent, or whether it sleeps.
fn outside(state: &StateView) -> (Option<String>, Option<bool>) {
    let StateView::Absent { reason } = state else {
        let StateView::Present { is_asleep } = state else { return (None, None) };
        return (None, Some(*is_asleep));
    };
    (reason.clone(), None)
}

/// Sums up what is promised on GPUs.
fn of_gpus(share: &Share) -> Bytes {
    Bytes(share.gpus.values().fold(0, |sum, bytes| sum.saturating_add(bytes.0)))
}

/// Returns what a slot in line waits for, and what it needs where that is known.
fn waiting(state: &StateView) -> (Option<String>, Option<&Need>) {
    let StateView::Queued { need, wait } = state else { return (None, None) };
    (Some(wait.sentence()), Some(need).filter(|need| need.basis != Basis::Unknown))
}

impl RejectedObject {
    fn of(rejected: &Rejected) -> Self {
        Self {
            generation: rejected.generation,
            verdict: rejected.verdict,
            reason: rejected.reason.clone(),
            at_unix_ms: rejected.at_unix_ms,
        }
    }
}

impl DeathObject {
    fn of(death: &Death) -> Self {
        Self {
            generation: death.generation,
            pid: death.pid,
            verdict: death.verdict,
            confidence: death.confidence,
            reason: death.reason.clone(),
            phase: death.phase,
            ran_for_ms: ms(death.ran_for),
            at_unix_ms: death.at_unix_ms,
            evidence: death.evidence.clone(),
        }
    }
}

/// Returns whole milliseconds.
pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

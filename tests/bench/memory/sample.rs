//! What is seen of both while they serve.

use std::rc::Rc;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{LIMIT_MIB, LOOK, MODELS, side::Side};

/// The shortest time that a slot stays; slotd's own default.
const MIN_RESIDENCY_MS: u128 = 10_000;

/// Sums and maxima of looks at one side.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) looks: u32,
    /// The most that was promised, by the control API.
    pub(crate) most_promised: u64,
    /// Looks at which more was promised than the limit.
    pub(crate) over: u32,
    pub(crate) most_all: u64,
    pub(crate) most_own: u64,
    pub(crate) oom_kills: u64,
    /// Time that requests waited for a model that was not there, each counted.
    pub(crate) request_s: f64,
    /// Time in which at least one did.
    pub(crate) wall_s: f64,
    /// Of the former: the slot waited for memory.
    pub(crate) queued_s: f64,
}

/// What slotd's watches told.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) loads: u32,
    pub(crate) evictions: u32,
    pub(crate) restores: u32,
    /// Evictions of an engine that worked: it had ended what it had begun.
    pub(crate) turns: u32,
    /// Evictions before the slot had been there for its time.
    pub(crate) early: u32,
    /// Deaths that slotd did not cause.
    pub(crate) deaths: Vec<String>,
    /// What happened when.
    pub(crate) lines: Vec<String>,
}

/// Looks at one side again and again.
#[expect(clippy::infinite_loop, reason = "it ends by being aborted")]
pub(crate) async fn look(side: Rc<Side>) {
    let mut last = Instant::now();
    loop {
        sleep(LOOK).await;
        let states = states(&side).await;
        let usage = side.cell.usage();
        let passed = last.elapsed().as_secs_f64();
        last = Instant::now();
        let mut samples = side.samples.borrow_mut();
        samples.looks += 1;
        samples.most_all = samples.most_all.max(usage.all);
        samples.most_own = samples.most_own.max(usage.own);
        samples.oom_kills = usage.oom_kills;
        let promised = states.iter().map(|state| state.promised).sum();
        samples.most_promised = samples.most_promised.max(promised);
        samples.over += u32::from(promised > LIMIT_MIB << 20);
        let mut waiting = 0;
        for (state, unanswered) in states.iter().zip(*side.unanswered.borrow()) {
            let kept = if state.is_there { 0 } else { unanswered };
            waiting += kept;
            samples.queued_s += if state.is_queued { f64::from(kept) * passed } else { 0.0 };
        }
        samples.request_s += f64::from(waiting) * passed;
        samples.wall_s += if waiting > 0 { passed } else { 0.0 };
    }
}

/// One model at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_there: bool,
    is_queued: bool,
    promised: u64,
}

async fn states(side: &Side) -> [State; MODELS.len()] {
    let (client, url) = match &side.control {
        Some(control) => (control, "http://slotd/v1/slots".to_owned()),
        None => (&side.client, format!("{}/models", side.url)),
    };
    let answer = client.get(url).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let list = answer.as_array().or(answer["data"].as_array()).unwrap();
    MODELS.each_ref().map(|model| {
        let found = list.iter().find(|one| one["slot"] == model.name || one["id"] == model.name);
        let one = found.expect("each model is listed");
        let state = one["state"].as_str().or(one["status"]["value"].as_str()).unwrap();
        State {
            // One that drains has the request.
            is_there: ["ready", "draining", "loaded"].contains(&state),
            is_queued: state == "queued",
            promised: one["promised_bytes"].as_u64().unwrap_or_default(),
        }
    })
}

/// Follows one slot of slotd's.
pub(crate) async fn watch(side: Rc<Side>, slot: &'static str) {
    let url = format!("http://slotd/v1/slots/{slot}/watch");
    let mut watch = side.control.as_ref().unwrap().get(url).send().await.unwrap();
    let (mut text, from) = (Vec::new(), Instant::now());
    let (mut last, mut ready_at) = (Value::Null, from);
    while let Ok(Some(chunk)) = watch.chunk().await {
        text.extend_from_slice(&chunk);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let view: Value = serde_json::from_slice(&line).unwrap();
            side.events.borrow_mut().note(&last, &view, (from, &mut ready_at));
            last = view;
        }
    }
}

impl Events {
    fn note(&mut self, last: &Value, view: &Value, (from, ready_at): (Instant, &mut Instant)) {
        let (slot, state) = (view["slot"].as_str().unwrap(), view["state"].as_str().unwrap());
        let is_new = last["state"] != view["state"];
        if is_new && state == "ready" && last["state"] != "unready" {
            *ready_at = Instant::now();
            self.loads += 1;
        }
        if view["generation"].as_u64() > last["generation"].as_u64()
            && last["displaced_by"].is_string()
            && view["waiting"] == 0
        {
            self.restores += 1;
        }
        if view["displaced_by"].is_string() && !last["displaced_by"].is_string() {
            self.evictions += 1;
            self.turns += u32::from(view["in_flight"].as_u64() > Some(0));
            let is_early = ready_at.elapsed().as_millis() + 50 < MIN_RESIDENCY_MS;
            self.early += u32::from(is_early && last["state"] == "ready");
        }
        let deaths = |view: &Value| view["deaths"].as_array().map_or(0, Vec::len);
        if deaths(view) > deaths(last) && view["verdict"] != "stopped-by-us" {
            self.deaths.push(format!("{slot}: {} {}", view["verdict"], view["reason"]));
        }
        if is_new {
            let seconds = from.elapsed().as_secs_f64();
            let why = view["waits_for"].as_str().unwrap_or_default();
            let by = view["displaced_by"].as_str().unwrap_or_default();
            self.lines.push(format!("{seconds:8.2} {slot} {state} {by} {why}"));
        }
    }
}

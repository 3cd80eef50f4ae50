//! `GET /metrics`: what Prometheus reads.
//!
//! One label, `slot`, and closed sets beside it. Names follow vLLM's where it has one, edges of buckets
//! OpenTelemetry's. Nothing here is counted: it is read when somebody asks.

use std::{
    fmt::{Display, Write},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use hyper::{
    Response,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::{
    Shared, Throttle, Turns, engine_metrics,
    flights::Flights,
    gpu_metrics,
    meters::{Histogram, Meters},
    reply::{Body, full},
    routes::{Route, RouteTable},
};
use crate::spec::{
    SlotName,
    pressure::{Pressure, Strain},
    profile::ModelSource,
};

/// The format's own media type.
/// Source: Prometheus documentation, exposition formats.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
}

pub(super) const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "gauge", help }
}

pub(super) const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "counter", help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "histogram", help }
}

const BUILD: Family = gauge("slotd_build_info", "The version of slotd, always 1.");
const INFO: Family =
    gauge("slotd_slot_info", "The engine in use or last used and the model of a slot, always 1.");
const STATE: Family = gauge("slotd_slot_state", "1 for the state that a slot is in, 0 for others.");
const RUNG: Family = gauge("slotd_slot_rung", "The rung of its ladder, 0 for the profile itself.");
const MEMORY: Family =
    gauge("slotd_slot_resident_memory_bytes", "Resident memory of the slot's engine.");
const RESTARTS: Family = counter(
    "slotd_slot_restarts_total",
    "Restarts after deaths that slotd made by itself since it started.",
);
const LOAD: Family =
    gauge("slotd_slot_expected_load_seconds", "How long a load takes, by earlier ones.");
const RUNNING: Family = gauge("slotd_num_requests_running", "Requests that the engine works on.");
const WAITING: Family = gauge(
    "slotd_num_requests_waiting",
    "Requests that wait for the slot to load or for a seat at its engine.",
);
const REQUESTS: Family =
    counter("slotd_requests_total", "Requests that have ended, by how they ended.");
const LATENCY: Family = histogram(
    "slotd_e2e_request_latency_seconds",
    "From a request to the end of its answer, waiting included.",
);
const FIRST_TOKEN: Family = histogram(
    "slotd_time_to_first_token_seconds",
    "From a request to the first byte of its stream, waiting included.",
);
const PER_TOKEN: Family =
    histogram("slotd_inter_token_latency_seconds", "Mean time between the tokens of a stream.");
const QUEUE: Family =
    histogram("slotd_request_queue_time_seconds", "Waiting for a seat at the engine.");
const COLD_START: Family = histogram(
    "slotd_cold_start_seconds",
    "Waiting for the slot to load, of the requests that had to.",
);
const PROMPT: Family = counter("slotd_prompt_tokens_total", "Tokens of prompts, as engines say.");
const GENERATED: Family = counter(
    "slotd_generation_tokens_total",
    "Tokens generated, as engines say, else one for each event of a stream.",
);
const PROMPT_TIME: Family =
    counter("slotd_prompt_seconds_total", "Time that engines say they worked on prompts.");
const GENERATED_TIME: Family =
    counter("slotd_generation_seconds_total", "Time that engines say they generated.");

const KEY_REFUSED: Family = counter(
    "slotd_key_limit_refused_total",
    "Requests refused because their key (label `key`) had as many in flight as it may.",
);

const PRESSURE: Family = gauge(
    "slotd_pressure",
    "How short the machine is of what `source` names: 0 normal, 1 elevated, 2 critical.",
);
const THROTTLE: Family = gauge(
    "slotd_throttle_ratio",
    "How much of their usual pace clients that can wait should keep, 0 to 1.",
);

/// Every family of slotd's own, in the order of the page.
#[cfg(test)]
const FAMILIES: [Family; 22] = [
    BUILD,
    INFO,
    STATE,
    RUNG,
    MEMORY,
    RESTARTS,
    LOAD,
    RUNNING,
    WAITING,
    REQUESTS,
    LATENCY,
    FIRST_TOKEN,
    PER_TOKEN,
    QUEUE,
    COLD_START,
    PROMPT,
    GENERATED,
    PROMPT_TIME,
    GENERATED_TIME,
    KEY_REFUSED,
    PRESSURE,
    THROTTLE,
];

const STATES: [&str; 10] = [
    "offline", "queued", "starting", "ready", "unready", "draining", "stopping", "reaping",
    "backoff", "failed",
];

/// Answers with the whole page.
pub(super) async fn answer(shared: &Shared) -> Response<Body> {
    let table = shared.routes.load_full();
    let mut page = page(&table, &shared.flights, &shared.access.turns, &shared.throttle);
    let gpus = Arc::clone(&shared.gpus.borrow());
    gpu_metrics::add(&mut page, &gpus, &table);
    engine_metrics::add(&mut page, &table).await;
    let mut response = Response::new(full(Bytes::from(page.0)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

fn page(table: &RouteTable, flights: &Flights, turns: &Turns, throttle: &Throttle) -> Page {
    let mut page = Page(String::with_capacity(16 << 10));
    page.family(BUILD);
    page.sample(BUILD.name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    slots(&mut page, table);
    // Each slot shows its zeros: a counter that appears with its first request hides that request.
    for (slot, _) in table.slots() {
        flights.meters(slot);
    }
    let all = flights.all_meters();
    requests(&mut page, &all.iter().collect::<Vec<_>>());
    page.family(KEY_REFUSED);
    for (key, refused) in turns.refused() {
        page.sample(KEY_REFUSED.name, &[("key", &key)], refused);
    }
    pressure(&mut page, &throttle.strain());
    page
}

fn pressure(page: &mut Page, strain: &Strain) {
    page.family(PRESSURE);
    for (source, level) in strain.each() {
        let level = match level {
            Pressure::Normal => 0,
            Pressure::Elevated => 1,
            Pressure::Critical => 2,
        };
        page.sample(PRESSURE.name, &[("source", &source.to_string())], level);
    }
    page.family(THROTTLE);
    page.sample(THROTTLE.name, &[], f64::from(strain.throttle_percent()) / 100.0);
}

fn slots(page: &mut Page, table: &RouteTable) {
    page.family(INFO);
    for (slot, route) in table.slots() {
        let engine = route.engine.as_deref().unwrap_or(route.profile.engine.as_str());
        let model = route.profile.model.as_ref().map(ModelSource::typed).unwrap_or_default();
        let labels = [("slot", slot.as_str()), ("engine", engine), ("model", &model)];
        page.sample(INFO.name, &labels, 1);
    }
    page.family(STATE);
    for (slot, route) in table.slots() {
        for state in STATES {
            let labels = [("slot", slot.as_str()), ("state", state)];
            page.sample(STATE.name, &labels, u8::from(route.state == state));
        }
    }
    page.each(RUNG, table, |route| Some(route.rung.as_ref().map_or(0, |rung| rung.index)));
    page.each(MEMORY, table, |route| route.rss.map(|rss| rss.0));
    page.each(RESTARTS, table, |route| Some(route.restarts));
    page.each(LOAD, table, |route| route.load.map(|load| load.as_secs_f64()));
    page.each(RUNNING, table, |route| {
        Some(route.gates().map(|gate| gate.in_flight()).fold(0_u32, u32::saturating_add))
    });
    page.each(WAITING, table, |route| {
        let at_gates = route.gates().map(|gate| gate.waiting());
        Some(at_gates.fold(route.waiting, usize::saturating_add))
    });
}

type Counted<'a> = (&'a SlotName, &'a Arc<Meters>);

fn requests(page: &mut Page, all: &[Counted<'_>]) {
    page.family(REQUESTS);
    for (slot, meters) in all {
        for (outcome, count) in meters.outcomes() {
            let labels = [("slot", slot.as_str()), ("outcome", outcome.as_str())];
            page.sample(REQUESTS.name, &labels, count);
        }
    }
    page.histograms(LATENCY, all, |meters| &meters.duration);
    page.histograms(FIRST_TOKEN, all, |meters| &meters.first_token);
    page.histograms(PER_TOKEN, all, |meters| &meters.per_token);
    page.histograms(QUEUE, all, |meters| &meters.queue);
    page.histograms(COLD_START, all, |meters| &meters.cold_start);
    page.counters(PROMPT, all, |meters| meters.prompt_tokens.load(Ordering::Relaxed));
    page.counters(GENERATED, all, |meters| meters.generated_tokens.load(Ordering::Relaxed));
    page.counters(PROMPT_TIME, all, |meters| meters.seconds().0);
    page.counters(GENERATED_TIME, all, |meters| meters.seconds().1);
}

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, family: Family) {
        let Family { name, kind, help } = family;
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Writes one sample.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            self.line(format_args!("{before}{label}=\"{text}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.line(format_args!("{after} {value}\n"));
    }

    fn each<T: Display>(
        &mut self,
        family: Family,
        table: &RouteTable,
        figure: impl Fn(&Route) -> Option<T>,
    ) {
        self.family(family);
        for (slot, route) in table.slots() {
            if let Some(figure) = figure(route) {
                self.sample(family.name, &[("slot", slot.as_str())], figure);
            }
        }
    }

    fn counters<T: Display>(
        &mut self,
        family: Family,
        all: &[Counted<'_>],
        count: impl Fn(&Meters) -> T,
    ) {
        self.family(family);
        for (slot, meters) in all {
            self.sample(family.name, &[("slot", slot.as_str())], count(meters));
        }
    }

    fn histograms<const N: usize>(
        &mut self,
        family: Family,
        all: &[Counted<'_>],
        of: impl Fn(&Meters) -> &Histogram<N>,
    ) {
        self.family(family);
        let name = family.name;
        for (slot, meters) in all {
            let slot = ("slot", slot.as_str());
            let histogram = of(meters);
            let mut count = 0;
            for (edge, so_far) in histogram.buckets() {
                let edge = edge.map_or_else(|| "+Inf".to_owned(), |edge| edge.to_string());
                self.sample(&format!("{name}_bucket"), &[slot, ("le", &edge)], so_far);
                count = so_far;
            }
            self.sample(&format!("{name}_sum"), &[slot], histogram.sum());
            self.sample(&format!("{name}_count"), &[slot], count);
        }
    }

    #[cfg(test)]
    pub(super) fn into_text(self) -> String {
        self.0
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        self.0.write_fmt(text).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::gpu::GpuFigures;

    #[test]
    fn the_document_has_every_family_and_no_other() {
        let row = |family: &Family| {
            let Family { name, kind, help } = family;
            format!("| `{name}` | {kind} | {help} |")
        };
        let wanted: Vec<_> = FAMILIES
            .iter()
            .chain(&gpu_metrics::FAMILIES)
            .chain(engine_metrics::families())
            .map(row)
            .collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let there: Vec<_> = document.lines().filter(|line| line.starts_with("| `slotd_")).collect();
        assert_eq!(there, wanted, "\n{}\n", wanted.join("\n"));
    }

    #[test]
    fn the_page_shows_exactly_the_families_that_are_documented() {
        let flights = Flights::new(super::super::AccessLog::Off);
        let table = RouteTable::default();
        let mut page = page(&table, &flights, &Turns::default(), &Throttle::default());
        gpu_metrics::add(&mut page, &GpuFigures::default(), &table);
        let shown: Vec<_> = page
            .0
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let wanted = FAMILIES.iter().chain(&gpu_metrics::FAMILIES).map(|family| family.name);
        assert_eq!(shown, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page(String::new());
        page.sample("x", &[("model", "a\\b\"c\nd")], 1.5);
        assert_eq!(page.0, "x{model=\"a\\\\b\\\"c\\nd\"} 1.5\n");
    }
}

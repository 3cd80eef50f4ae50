//! Requests in flight: listed, cancelled, let go on without their client; lanes, and what is counted.

use std::{fs, io::Write as _, process::Command, sync::Arc, time::Duration};

use slotd::{
    proxy::{Flights, Gate, Stage},
    spec::requests::{Lane, OnClientGone},
    supervisor::StateView,
};

use crate::{
    client::chat,
    world::{World, limits, soon},
};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const LAST: &str = "data: {\"choices\":[],\"timings\":{\"cache_n\":2,\"prompt_n\":5,\"prompt_ms\":10.0,\
                    \"predicted_n\":3,\"predicted_ms\":20.0}}\n\ndata: [DONE]\n\n";

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    soon(what, async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Waits until the only request is where it should be; returns its id.
async fn at(flights: &Flights, stage: Stage) -> u64 {
    until(stage.as_str(), || flights.list().first().is_some_and(|one| one.stage == stage)).await;
    flights.list()[0].id
}

async fn gone(flights: &Flights) {
    until("an empty list", || flights.list().is_empty()).await;
}

#[tokio::test]
async fn a_request_is_listed_from_its_load_to_its_last_token() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    let headers = "user-agent: test/1\r\nx-request-id: mine\r\nx-slotd-lane: batch\r\n";
    client.post_with("/v1/chat/completions", headers, chat("chat", true).as_bytes()).await;
    let waiter = world.demanded().await;
    at(&world.flights, Stage::Loading).await;
    let (engine, gate) = world.make_ready("chat", 1, (1, 4));
    let mut first = world.client().await;
    first.post(chat("chat", false)).await;
    let (mut busy, _) = engine.request().await;
    world.answer(waiter, Ok(()));
    at(&world.flights, Stage::Queued).await;
    let shown = world.flights.list();
    let one = &shown[0];
    assert_eq!((one.slot.as_str(), one.lane), ("chat", Lane::Batch));
    assert_eq!((one.agent.as_deref(), one.request_id.as_deref()), (Some("test/1"), Some("mine")));
    assert!(one.peer.starts_with("127.0.0.1:"), "{}", one.peer);
    until("the queue", || gate.waiting() == 1).await;
    busy.answer("200 OK", "{}").await;
    first.answer().await;
    let mut line = busy;
    line.request().await;
    at(&world.flights, Stage::Waiting).await;
    line.begin_stream().await;
    line.chunk([EVENT, EVENT].concat()).await;
    at(&world.flights, Stage::Streaming).await;
    assert_eq!(world.flights.list()[0].tokens, 2);
    line.chunk(LAST).await;
    line.end_stream().await;
    assert!(client.answer().await.is_whole);
    gone(&world.flights).await;
}

#[tokio::test]
async fn a_cancelled_stream_ends_with_an_error_event_and_its_engine_is_told() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    let head = client.head().await;
    let id = at(&world.flights, Stage::Streaming).await;
    assert!(!world.flights.cancel(id + 1));
    assert!(world.flights.cancel(id));
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    assert_eq!(answer.last_event_error()["code"], "request_cancelled");
    line.hung_up().await;
    gone(&world.flights).await;
    assert!(!world.flights.cancel(id));
    assert_eq!((gate.in_flight(), gate.record().failed_in_row()), (0, 0), "no fault of the engine");
}

#[tokio::test]
async fn a_cancelled_request_gets_a_status_that_no_client_tries_again_on() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    let id = at(&world.flights, Stage::Waiting).await;
    assert!(world.flights.cancel(id));
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 499);
    assert_eq!(answer.head.header("x-should-retry"), Some("false"));
    assert_eq!(answer.error()["code"], "request_cancelled");
    line.hung_up().await;
}

#[tokio::test]
async fn a_held_stream_that_is_cancelled_leaves_the_slots_queue() {
    let mut limits = limits();
    limits.quiet = Duration::from_millis(10);
    let mut world = World::start(limits).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let waiter = world.demanded().await;
    let head = client.head().await;
    let id = at(&world.flights, Stage::Loading).await;
    assert!(world.flights.cancel(id));
    assert_eq!(client.rest(head).await.last_event_error()["code"], "request_cancelled");
    assert_eq!(world.left().await, waiter);
}

/// A slot whose engine is to end what it has begun.
async fn draining() -> (World, crate::engine::Engine, Arc<Gate>) {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| profile.requests.on_client_gone = OnClientGone::Drain);
    let (engine, gate) = world.make_ready("chat", 1, (1, 16));
    (world, engine, gate)
}

#[tokio::test]
async fn an_engine_that_is_to_drain_ends_its_stream_for_nobody_and_is_used_again() {
    let (world, engine, gate) = draining().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    client.head().await;
    drop(client);
    until("the client's leaving", || {
        world.flights.list().first().is_some_and(|one| one.is_abandoned)
    })
    .await;
    assert_eq!(gate.in_flight(), 1, "the engine still works on it");
    for _ in 0..50 {
        line.chunk(EVENT).await;
    }
    line.chunk(LAST).await;
    line.end_stream().await;
    gone(&world.flights).await;
    assert_eq!(gate.in_flight(), 0);
    let mut next = world.client().await;
    next.post(chat("chat", false)).await;
    line.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(next.answer().await.text(), "{}", "on the same connection");
}

#[tokio::test]
async fn an_engine_that_is_to_drain_is_let_go_on_before_its_first_byte_too() {
    let (world, engine, gate) = draining().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    drop(client);
    until("the client's leaving", || {
        world.flights.list().first().is_some_and(|one| one.is_abandoned)
    })
    .await;
    line.answer("200 OK", "{}").await;
    gone(&world.flights).await;
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn a_drained_exchange_can_be_cancelled_and_ends_with_its_slot() {
    let (world, engine, gate) = draining().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    client.head().await;
    let id = at(&world.flights, Stage::Streaming).await;
    drop(client);
    until("the client's leaving", || {
        world.flights.list().first().is_some_and(|one| one.is_abandoned)
    })
    .await;
    assert!(world.flights.cancel(id));
    line.hung_up().await;
    gone(&world.flights).await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    client.head().await;
    at(&world.flights, Stage::Streaming).await;
    drop(client);
    gate.cut();
    line.hung_up().await;
    gone(&world.flights).await;
}

#[tokio::test]
async fn the_interactive_lane_goes_before_the_batch_lane() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let (engine, gate) = world.make_ready("chat", 1, (1, 16));
    let mut first = world.client().await;
    first.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    let mut clients = Vec::new();
    for (index, lane) in ["batch", "interactive"].into_iter().enumerate() {
        let mut client = world.client().await;
        let headers = format!("x-slotd-lane: {lane}\r\nx-request-id: {lane}\r\n");
        let body = chat("chat", false);
        client.post_with("/v1/chat/completions", &headers, body.as_bytes()).await;
        until("the queue", || gate.waiting() == index + 1).await;
        clients.push(client);
    }
    line.answer("200 OK", "{}").await;
    for wanted in ["interactive", "batch"] {
        let request = line.request().await;
        assert_eq!(request.header("x-request-id"), Some(wanted));
        line.answer("200 OK", "{}").await;
    }
    for mut client in clients {
        assert_eq!(client.answer().await.head.status, 200);
    }
}

#[tokio::test]
async fn a_lane_that_is_none_is_refused() {
    let (world, _engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let body = chat("chat", false);
    client.post_with("/v1/chat/completions", "x-slotd-lane: fast\r\n", body.as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.error()["code"].as_str()), (400, Some("unknown_lane")));
}

#[tokio::test]
async fn a_slots_own_queue_timeout_goes_before_the_daemons() {
    let mut world = World::start(limits()).await;
    let short = Some(Duration::from_millis(20));
    world.make_slot("chat", |profile| profile.requests.queue_timeout = short);
    let answer = world.client().await.ask(chat("chat", false)).await;
    assert_eq!((answer.head.status, answer.error()["code"].as_str()), (503, Some("slot_loading")));
}

#[tokio::test]
async fn an_answer_says_how_long_its_request_waited_and_the_trace_goes_on() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736";
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    let headers = format!("traceparent: {TRACE}-00f067aa0ba902b7-01\r\n");
    let body = chat("chat", false);
    client.post_with("/v1/chat/completions", &headers, body.as_bytes()).await;
    let waiter = world.demanded().await;
    let has_waited = || world.flights.list().first().is_some_and(|one| one.age.as_millis() > 3);
    until("some time", has_waited).await;
    let (engine, _gate) = world.make_ready("chat", 1, (1, 4));
    world.answer(waiter, Ok(()));
    let (mut line, request) = engine.request().await;
    let parent = request.header("traceparent").unwrap().to_owned();
    assert!(parent.starts_with(TRACE) && !parent.contains("00f067aa0ba902b7"), "{parent}");
    line.answer("200 OK", "{}").await;
    let answer = client.answer().await;
    let cold: u64 = answer.head.header("x-slotd-cold-start-ms").unwrap().parse().unwrap();
    assert!(cold >= 1, "{cold}");
    assert_eq!(answer.head.header("x-slotd-queue-ms"), None);
    assert_eq!(answer.head.header("traceparent"), Some(parent.as_str()));
}

#[tokio::test]
async fn metrics_count_requests_tokens_and_times_and_promtool_finds_no_fault() {
    let (mut world, engine, _gate) = World::ready().await;
    world.set_state("other", StateView::Offline);
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk([EVENT, EVENT].concat()).await;
    line.chunk(LAST).await;
    line.end_stream().await;
    assert!(client.answer().await.is_whole);
    gone(&world.flights).await;
    let asked = tokio::join!(client.get("/metrics"), async {
        let request = line.request().await;
        assert!(request.head.starts_with("GET /metrics "), "{}", request.head);
        let page = "llamacpp:tokens_predicted_total 44\nllamacpp:requests_processing 0\n";
        line.answer("200 OK", page).await;
    });
    let page = asked.0.text().to_owned();
    for line in [
        "slotd_requests_total{slot=\"chat\",outcome=\"answered\"} 1",
        "slotd_requests_total{slot=\"other\",outcome=\"answered\"} 0",
        "slotd_prompt_tokens_total{slot=\"chat\"} 7",
        "slotd_generation_tokens_total{slot=\"chat\"} 3",
        "slotd_generation_seconds_total{slot=\"chat\"} 0.02",
        "slotd_time_to_first_token_seconds_count{slot=\"chat\"} 1",
        "slotd_e2e_request_latency_seconds_bucket{slot=\"chat\",le=\"+Inf\"} 1",
        "slotd_cold_start_seconds_count{slot=\"chat\"} 0",
        "slotd_num_requests_running{slot=\"chat\"} 0",
        "slotd_slot_state{slot=\"chat\",state=\"ready\"} 1",
        "slotd_engine_generation_tokens_total{slot=\"chat\"} 44",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} is missing in\n{page}");
    }
    check_form(&page);
    check_with_promtool(&page);
}

/// Every sample belongs to a family that was told with its help and type, each family once.
fn check_form(page: &str) {
    let (mut family, mut told) = (String::new(), Vec::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            rest.split(' ').next().unwrap().clone_into(&mut family);
            assert!(!told.contains(&family), "{family} is there twice");
            assert!(page.contains(&format!("# HELP {family} ")), "{family} has no help");
            assert_eq!(rest.ends_with(" counter"), family.ends_with("_total"), "{rest}");
            told.push(family.clone());
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|base| *base == family)
                .unwrap_or(name);
            assert_eq!(base, family, "{line}");
            assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
        }
    }
}

/// `promtool check metrics`, where there is one: `SLOTD_TEST_PROMTOOL`, else the one on the path.
fn check_with_promtool(page: &str) {
    let program = std::env::var("SLOTD_TEST_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.txt");
    fs::File::create(&path).unwrap().write_all(page.as_bytes()).unwrap();
    let input = fs::File::open(&path).unwrap();
    let Ok(checked) = Command::new(program).args(["check", "metrics"]).stdin(input).output() else {
        // `check_form` has looked at the page.
        return;
    };
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");
}

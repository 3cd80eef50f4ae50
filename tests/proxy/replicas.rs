//! Several slots behind one name.

use serde_json::json;
use slotd::{
    proxy::Blame,
    spec::Monotime,
    supervisor::{Refusal, StateView},
};
use tokio::task::JoinSet;

use crate::{
    client::{Answer, Client, chat},
    engine::{Engine, Line},
    world::{World, limits},
};

/// Lets an engine serve one request, on a connection it has not seen yet.
async fn serve(engine: &Engine) -> Line {
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    line
}

fn slot(answer: &Answer) -> &str {
    answer.head.header("x-slotd-slot").unwrap()
}

fn long_chat(turns: &[&str]) -> String {
    let messages: Vec<_> = turns
        .iter()
        .map(|name| json!({"role": "user", "content": format!("{name} {}", "word ".repeat(100))}))
        .collect();
    json!({"messages": messages, "model": "pool"}).to_string()
}

async fn ask(client: &mut Client, body: &str, engine: &Engine) -> (Answer, Line) {
    client.post(body).await;
    let line = serve(engine).await;
    (client.answer().await, line)
}

#[tokio::test]
async fn requests_go_to_the_less_busy_of_two() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let ((a, gate_a), (b, gate_b)) =
        (world.make_ready("a", 1, (4, 4)), world.make_ready("b", 1, (4, 4)));
    let mut lines = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        for _ in 0..2 {
            let mut client = world.client().await;
            client.post(chat("pool", false)).await;
            clients.push(client);
            // Whichever it was, the next one goes to the other.
            tokio::select! {
                taken = a.request() => lines.push(taken),
                taken = b.request() => lines.push(taken),
            }
        }
        assert_eq!(gate_a.in_flight(), gate_b.in_flight());
    }
    assert_eq!(gate_a.in_flight(), 3);
}

#[tokio::test]
async fn a_chat_goes_on_where_it_began_while_there_is_a_seat() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let ((a, gate_a), (b, gate_b)) =
        (world.make_ready("a", 1, (1, 4)), world.make_ready("b", 1, (1, 4)));
    let mut client = world.client().await;
    client.post(long_chat(&["first"])).await;
    // The first turn falls to either.
    let (mut line, is_a) = tokio::select! {
        (line, _) = a.request() => (line, true),
        (line, _) = b.request() => (line, false),
    };
    line.answer("200 OK", "{}").await;
    client.answer().await;
    let (name, other_name) = if is_a { ("a", "b") } else { ("b", "a") };
    let mut turns = vec!["first"];
    for turn in ["second", "third", "fourth"] {
        turns.push(turn);
        client.post(long_chat(&turns)).await;
        line.request().await;
        line.answer("200 OK", "{}").await;
        assert_eq!(slot(&client.answer().await), name);
    }
    // Its seat is taken: better another engine than a queue.
    turns.push("fifth");
    client.post(long_chat(&turns)).await;
    line.request().await;
    let gate = if is_a { &gate_a } else { &gate_b };
    assert_eq!(gate.in_flight(), 1);
    let mut second = world.client().await;
    let other = if is_a { &b } else { &a };
    let (answer, _line) = ask(&mut second, &long_chat(&turns), other).await;
    assert_eq!(slot(&answer), other_name);
}

#[tokio::test]
async fn a_request_whose_engine_died_unheard_goes_to_another_slot() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let (a, gate_a) = world.make_ready("a", 1, (4, 4));
    let mut client = world.client().await;
    client.post(chat("pool", false)).await;
    let (line, _) = a.request().await;
    let (b, _gate_b) = world.make_ready("b", 1, (4, 4));
    drop((line, a));
    world.set_state("a", StateView::Reaping { pid: 1 });
    gate_a.mark_dead(Blame::Request);
    let _line = serve(&b).await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, slot(&answer)), (200, "b"));
}

#[tokio::test]
async fn a_request_that_engines_of_two_slots_died_of_is_given_to_no_third() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let (a, gate_a) = world.make_ready("a", 1, (4, 4));
    let mut client = world.client().await;
    client.post(chat("pool", false)).await;
    let (line, _) = a.request().await;
    let (b, gate_b) = world.make_ready("b", 1, (4, 4));
    drop((line, a));
    world.set_state("a", StateView::Reaping { pid: 1 });
    gate_a.mark_dead(Blame::Request);
    drop(b.request().await);
    gate_b.mark_dead(Blame::Request);
    assert_eq!(client.answer().await.head.status, 502);
    let answer = client.ask(chat("pool", false)).await;
    assert_eq!(answer.head.status, 422);
}

#[tokio::test]
async fn an_engine_that_is_stopped_before_it_answers_hands_over_to_another_slot() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let (a, gate_a) = world.make_ready("a", 1, (4, 4));
    let mut client = world.client().await;
    client.post(chat("pool", false)).await;
    let _line = a.request().await;
    let (b, _gate_b) = world.make_ready("b", 1, (4, 4));
    gate_a.cut();
    let _line = serve(&b).await;
    assert_eq!(slot(&client.answer().await), "b");
}

#[tokio::test]
async fn a_full_route_has_one_more_slot_loaded_and_waits_at_the_ones_there_are() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let (a, _gate) = world.make_ready("a", 1, (1, 4));
    let mut first = world.client().await;
    first.post(chat("pool", false)).await;
    let (mut line, _) = a.request().await;
    let mut second = world.client().await;
    second.post(chat("pool", false)).await;
    let (asked, _) = world.demand().await;
    assert_eq!(asked, "b");
    world.left().await;
    line.answer("200 OK", "{}").await;
    line.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(slot(&second.answer().await), "a");
}

#[tokio::test]
async fn of_slots_on_their_way_the_first_to_be_ready_serves() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    let starting = StateView::Starting {
        pid: None,
        percent: None,
        attempt: 1,
        give_up_at: Monotime::default(),
    };
    world.set_state("a", starting.clone());
    world.set_state("b", starting);
    let mut client = world.client().await;
    client.post(chat("pool", false)).await;
    let (first, (second, waiter)) = (world.demand().await, world.demand().await);
    assert_eq!((first.0.as_str(), second.as_str()), ("a", "b"));
    let (b, _gate) = world.make_ready("b", 1, (1, 4));
    world.answer(waiter, Ok(()));
    let _line = serve(&b).await;
    assert_eq!(slot(&client.answer().await), "b");
    assert_eq!(world.left().await, first.1);
}

#[tokio::test]
async fn a_failed_slot_is_asked_last_and_the_nearest_ones_reason_is_told() {
    let mut world = World::start(limits()).await;
    world.make_pool(&["a", "b"]);
    world.set_state("a", StateView::Failed);
    let mut client = world.client().await;
    client.post(chat("pool", false)).await;
    let (asked, waiter) = world.demand().await;
    assert_eq!(asked, "b");
    world.answer(waiter, Err(Refusal::QueueFull { waiting: 7 }));
    let (asked, waiter) = world.demand().await;
    assert_eq!(asked, "a");
    world.answer(waiter, Err(Refusal::SlotGone));
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 429);
    assert!(answer.error()["message"].as_str().unwrap().contains("`b`"), "{}", answer.text());
}

#[tokio::test]
async fn a_ready_stand_in_gets_all_requests_of_its_slot_until_it_goes() {
    async fn by(client: &mut Client, name: &str) -> String {
        client.post(chat(name, false)).await;
        let answer = client.answer().await;
        assert_eq!(answer.head.status, 200);
        slot(&answer).to_owned()
    }
    let mut world = World::start(limits()).await;
    let mut engines = JoinSet::new();
    engines.spawn(world.make_ready("chat", 1, (4, 4)).0.answer_all(|_| ()));
    let starting = StateView::Starting {
        pid: None,
        percent: None,
        attempt: 1,
        give_up_at: Monotime::default(),
    };
    world.set_state("chat~new", starting);
    let mut client = world.client().await;
    assert_eq!(by(&mut client, "chat").await, "chat", "the other is not ready");

    engines.spawn(world.make_ready("chat~new", 1, (4, 4)).0.answer_all(|_| ()));
    for state in [StateView::Ready { pid: 1 }, StateView::Draining { pid: 1 }, StateView::Offline] {
        world.set_state("chat", state);
        assert_eq!(by(&mut client, "chat").await, "chat~new");
    }

    engines.spawn(world.make_ready("chat", 2, (4, 4)).0.answer_all(|_| ()));
    world.set_state("chat~new", StateView::Draining { pid: 1 });
    assert_eq!(by(&mut client, "chat").await, "chat");
    assert_eq!(by(&mut client, "chat~new").await, "chat", "its name leads to its slot");
}

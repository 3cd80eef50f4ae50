//! Who is let in, in which order, and what an end means to those inside.

use super::*;
use crate::proxy::Uses;

fn gate(parallel: u32, queue_limit: u32) -> Arc<Gate> {
    let endpoint = Endpoint::Unix("/nowhere.sock".into());
    Gate::new(
        "chat".parse().unwrap(),
        Generation(1),
        (endpoint, None),
        (parallel, queue_limit),
        &Arc::default(),
    )
}

fn request() -> Fingerprint {
    Fingerprint::of(b"{}")
}

async fn lease(gate: &Arc<Gate>, patience: Duration) -> Result<Lease, GateRefusal> {
    gate.lease(request(), (Lane::Interactive, patience)).await
}

#[tokio::test]
async fn a_full_gate_queues_then_refuses_then_times_out() {
    let gate = gate(1, 1);
    let patience = Duration::from_millis(20);
    let first = lease(&gate, patience).await.unwrap();
    let (second, third) = tokio::join!(lease(&gate, patience), lease(&gate, patience));
    assert_eq!(second.unwrap_err(), GateRefusal::TimedOut);
    assert_eq!(third.unwrap_err(), GateRefusal::Full { waiting: 1 });
    assert_eq!(gate.waiting(), 0);
    drop(first);
    assert!(lease(&gate, patience).await.is_ok(), "the turn came back");
}

#[tokio::test]
async fn a_cut_gate_is_drained_whoever_still_holds_a_seat() {
    let gate = gate(1, 1);
    let _stalled = lease(&gate, Duration::from_secs(1)).await.unwrap();
    tokio::join!(gate.drained(), async { gate.cut() });
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_told_from_what_earlier_requests_took() {
    let gate = gate(2, 4);
    assert_eq!(gate.expected_wait(), None);
    let mut first = lease(&gate, Duration::from_secs(1)).await.unwrap();
    tokio::time::advance(Duration::from_secs(8)).await;
    first.note_answer();
    assert_eq!(gate.expected_wait(), Some(Duration::from_secs(4)), "two seats share the queue");
}

#[tokio::test]
async fn seats_are_given_in_the_order_of_asking() {
    let gate = gate(1, 8);
    let first = lease(&gate, Duration::from_secs(1)).await.unwrap();
    let order = Mutex::new(Vec::new());
    let ask = async |number: u32| {
        let leased = lease(&gate, Duration::from_mins(1)).await.unwrap();
        order.lock().unwrap().push(number);
        drop(leased);
    };
    tokio::join!(ask(1), ask(2), ask(3), async { drop(first) });
    assert_eq!(order.into_inner().unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn those_who_wait_at_a_dead_engine_are_sent_away() {
    let gate = gate(1, 8);
    let _busy = lease(&gate, Duration::from_secs(1)).await.unwrap();
    let (waited, ()) = tokio::join!(lease(&gate, Duration::from_mins(1)), async {
        gate.cut();
        gate.mark_dead(Blame::Nobody);
    });
    assert_eq!(waited.unwrap_err(), GateRefusal::Closed);
    assert_eq!(gate.ending(), Some(Ending::Cut), "the first reason stays");
}

#[tokio::test]
async fn an_end_that_is_not_told_yet_is_no_drain_and_its_requests_are_suspects_once_it_is() {
    let gate = gate(2, 8);
    let held = lease(&gate, Duration::from_secs(1)).await.unwrap();
    gate.mark_ended();
    drop(held);
    let waited = lease(&gate, Duration::from_secs(1)).await;
    assert_eq!(waited.unwrap_err(), GateRefusal::Closed);
    assert!(timeout(Duration::from_millis(20), gate.drained()).await.is_err(), "not told");
    gate.mark_dead(Blame::Request);
    gate.drained().await;
    let engine = "other".parse().unwrap();
    gate.suspects.note(&engine, Generation(1), [request()]);
    assert!(gate.is_guilty(request()), "the first death counts");
}

#[tokio::test]
async fn a_closed_gate_is_drained_by_its_last_lease() {
    let gate = gate(2, 1);
    let leased = lease(&gate, Duration::from_secs(1)).await.unwrap();
    gate.close();
    assert_eq!(lease(&gate, Duration::from_secs(1)).await.unwrap_err(), GateRefusal::Closed);
    assert_eq!(gate.in_flight(), 1);
    tokio::join!(gate.drained(), async { drop(leased) });
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_without_a_byte_is_noted_unless_the_gate_is_closed() {
    let gate = gate(2, 1);
    let first = lease(&gate, Duration::from_secs(1)).await.unwrap();
    let mut second = lease(&gate, Duration::from_secs(1)).await.unwrap();
    drop(first);
    assert_eq!(gate.record().given_up_in_row(), 1);
    second.note_failure();
    drop(second);
    assert_eq!((gate.record().given_up_in_row(), gate.record().failed_in_row()), (1, 1));
    let mut last = lease(&gate, Duration::from_secs(1)).await.unwrap();
    gate.close();
    last.note_failure();
    assert_eq!(gate.record().failed_in_row(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_nobody_has_asked_yet_is_as_old_as_the_last_use_of_its_slot() {
    let uses = Uses::new(|| 3_600_000);
    let gate = gate(1, 1);
    uses.recall(gate.slot(), (1, 0));
    gate.count_in(uses.of(gate.slot()));
    assert_eq!(gate.unused_for(), Duration::ZERO, "it may have been loaded for a request");
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(gate.unused_for(), Duration::from_hours(1));
    let mut lent = lease(&gate, Duration::from_secs(1)).await.unwrap();
    lent.note_answer();
    drop(lent);
    assert_eq!(gate.unused_for(), Duration::ZERO);
    assert_eq!(uses.all()[gate.slot()], (2, 3_600_000));
    // What was not answered is no use: the client tries it again.
    drop(lease(&gate, Duration::from_secs(1)).await.unwrap());
    assert_eq!(uses.all()[gate.slot()].0, 2);
}

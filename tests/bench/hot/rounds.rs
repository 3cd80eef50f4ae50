//! Rounds over all targets, in a rotated order, and what came of them.

use std::collections::BTreeMap;

use super::{
    Programs, sys, table,
    target::{Kind, LOAD_CORE, Origin},
    visit::{Visit, long_life, visit},
};

/// What all rounds found, round by round.
pub(crate) type Found = Vec<BTreeMap<Kind, Visit>>;

/// Measures every target once a round, and prints tables.
#[expect(clippy::print_stdout, reason = "the report, and how far it is")]
pub(crate) async fn rounds(programs: &Programs, count: usize, with_peers: bool) {
    sys::move_to_core(LOAD_CORE);
    let kinds = Kind::found(with_peers);
    let mut found = Found::new();
    for round in 0..count {
        let mut order = kinds.clone();
        let by = round % kinds.len();
        order.rotate_left(by);
        if round % 2 == 1 {
            order.reverse();
        }
        let mut visits = BTreeMap::new();
        for kind in order {
            let origin = Origin::start(programs, LOAD_CORE);
            let one = visit(kind, programs, &origin).await;
            eprintln!(
                "round {} of {count}: {}: {:.0} requests/s, {:.1} µs of CPU each",
                round + 1,
                kind.name(),
                one.many.per_second,
                one.cpu_us
            );
            visits.insert(kind, one);
        }
        found.push(visits);
    }
    let origin = Origin::start(programs, LOAD_CORE);
    let life = long_life(programs, &origin).await;
    println!("{}", table::report(&kinds, &found, life));
}

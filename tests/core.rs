//! The core under test: random events against a model, days of a simulated box, named scenarios.

// Not every program that clippy looks at is built for tests; this one is.
#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a model names the few events and commands that a rule is about"
)]
mod sim;
#[cfg(test)]
#[path = "fuzz/replay.rs"]
mod replay;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner};
use sim::{
    cells::{self, Counts},
    model::Fall,
    strategy::{self, Player},
    world::World,
};
use slotd::spec::death::Verdict;

/// How many runs; `PROPTEST_CASES` sets another number.
const RUNS: u32 = 3000;
/// The same runs each time, unless `PROPTEST_RNG_SEED` sets others.
const RUNS_SEED: u64 = 20_260_102;

#[test]
fn no_sequence_of_events_breaks_a_promise_and_every_cell_is_reached() {
    let plain = Config::default();
    let is_set = |name| std::env::var_os(name).is_some();
    let config = Config {
        cases: if is_set("PROPTEST_CASES") { plain.cases } else { RUNS },
        rng_seed: match plain.rng_seed {
            RngSeed::Random => RngSeed::Fixed(RUNS_SEED),
            fixed @ RngSeed::Fixed(_) => fixed,
        },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/core.proptest-regressions",
        ))),
        ..plain
    };
    let seen = RefCell::new((Counts::new(), 0_usize));
    let falls = RefCell::new(BTreeMap::<Fall, u64>::new());
    let rollbacks = RefCell::new(0_u64);
    let outcome = TestRunner::new(config).run(&strategy::script(), |script| {
        let (result, checker) = Player::play(&script);
        let mut seen = seen.borrow_mut();
        for (cell, count) in &checker.cells {
            *seen.0.entry(*cell).or_default() += count;
        }
        seen.1 += checker.events();
        for (fall, count) in &checker.falls {
            *falls.borrow_mut().entry(*fall).or_default() += count;
        }
        *rollbacks.borrow_mut() += checker.rollbacks;
        result.map_err(|fault| {
            TestCaseError::fail(format!("{fault}\nthe last steps:\n{}", checker.last_steps(12)))
        })
    });
    if let Err(fault) = outcome {
        panic!("{fault}");
    }
    let (counts, events) = seen.into_inner();
    println!("events: {events}");
    cells::print(&counts);
    println!("edits undone: {}; falls: {falls:?}", rollbacks.borrow());
    assert!(rollbacks.into_inner() > 100, "hardly an edit was undone");
    let falls = falls.into_inner();
    assert!(falls.values().all(|count| *count >= 10), "the ladder was hardly used: {falls:?}");
    let falls: BTreeSet<Fall> = falls.into_keys().collect();
    assert_eq!(falls, BTreeSet::from(Fall::ALL), "the ladder was not used");
    assert_eq!(cells::faults(&counts), Vec::<String>::new(), "the table of cells has holes");
}

/// Days that are lived through each time; `SLOTD_SIM_SEED` sets another one.
const DAYS: [u64; 4] = [1, 2, 3, 5];

#[test]
fn a_day_of_a_box_keeps_every_promise() {
    let chosen = std::env::var("SLOTD_SIM_SEED").ok();
    let seeds = match &chosen {
        Some(seed) => vec![seed.parse().expect("SLOTD_SIM_SEED is a number")],
        None => DAYS.to_vec(),
    };
    let (mut verdicts, mut states) = (BTreeSet::new(), BTreeSet::new());
    let (mut falls, mut undone) = (BTreeSet::new(), 0);
    for seed in seeds {
        let mut world = World::new(seed);
        if let Err(fault) = world.live() {
            let steps = world.checker.last_steps(30);
            panic!("SLOTD_SIM_SEED={seed}: {fault}\nthe last steps:\n{steps}");
        }
        let (events, cells) = (world.checker.events(), world.checker.cells.len());
        println!("seed {seed}: {events} events, {cells} cells, {}", world.figures);
        println!("  falls on the ladder {:?}", world.checker.falls);
        println!("  edits undone {}", world.checker.rollbacks);
        undone += world.checker.rollbacks;
        falls.extend(world.checker.falls.keys().copied());
        verdicts.append(&mut world.checker.verdicts);
        states.append(&mut world.checker.states);
    }
    println!("verdicts: {verdicts:?}\nstates: {states:?}");
    if chosen.is_none() {
        // Quiet days prove nothing.
        assert_eq!(verdicts, BTreeSet::from(Verdict::ALL));
        assert_eq!(states, BTreeSet::from(cells::STATES));
        assert_eq!(falls, BTreeSet::from(Fall::ALL));
        assert!(undone > 0, "no edit was undone");
    }
}

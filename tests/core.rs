//! The core under test: random events against a model, days of a simulated box, named scenarios.

mod sim;

use std::cell::RefCell;

use proptest::test_runner::{
    Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner,
};
use sim::{
    cells::{self, Counts},
    strategy::{self, Player},
};

/// How many runs; `PROPTEST_CASES` sets another number.
const RUNS: u32 = 2000;
/// The same runs each time, unless `PROPTEST_RNG_SEED` sets others.
const RUNS_SEED: u64 = 20_260_101;

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
    let outcome = TestRunner::new(config).run(&strategy::script(), |script| {
        let (result, checker) = Player::play(&script);
        let mut seen = seen.borrow_mut();
        for (cell, count) in &checker.cells {
            *seen.0.entry(*cell).or_default() += count;
        }
        seen.1 += checker.events();
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
    assert_eq!(cells::faults(&counts), Vec::<String>::new(), "the table of cells has holes");
}

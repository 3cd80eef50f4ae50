//! What came of it, as a table and as a line for each request.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, rc::Rc, time::Duration};

use super::{
    LIMIT_MIB, MODELS,
    side::{Outcome, Side},
    trace::Ask,
};

/// Prints the table.
pub(crate) fn print(sides: &[Rc<Side>; 2], asks: &[Ask], most: u32) {
    println!("| | slotd | router, `--models-max {most}` |\n|---|---|---|");
    let row = |name: &str, of: &dyn Fn(&Side) -> String| {
        println!("| {name} | {} | {} |", of(&sides[0]), of(&sides[1]));
    };
    row("requests", &|_| asks.len().to_string());
    row("failed", &|side| failed(side).count().to_string());
    row("waited for the first token or the whole answer, p50", &|side| wait(side, 50));
    row("p95", &|side| wait(side, 95));
    row("longest", &|side| wait(side, 100));
    row("all waits together", &|side| {
        let waits = side.outcomes.borrow().iter().map(|one| one.wait).sum::<Duration>();
        seconds(waits)
    });
    row("loads done", &|side| loads(side).to_string());
    row("requests waited for a model that was not there", &|side| {
        let samples = side.samples.borrow();
        format!("{:.0} s, in {:.0} s of the time", samples.request_s, samples.wall_s)
    });
    row("processes killed for want of memory", &|side| side.samples.borrow().oom_kills.to_string());
    row("most memory of the box that cannot be had back", &|side| {
        mib(side.samples.borrow().most_own)
    });
    let (samples, events) = (sides[0].samples.borrow(), sides[0].events.borrow());
    println!("\nslotd, {} looks at its ledger:", samples.looks);
    println!(
        "- most promised {} of {LIMIT_MIB} MiB, above that {} times",
        mib(samples.most_promised),
        samples.over
    );
    println!(
        "- {} evictions ({} of engines that worked, {} before their time), {} restores, {:.0} s of requests in line for memory",
        events.evictions, events.turns, events.early, events.restores, samples.queued_s
    );
    println!("- deaths: {:?}", events.deaths);
    for side in sides {
        let mut why: BTreeMap<String, u32> = BTreeMap::new();
        for fault in failed(side) {
            *why.entry(fault).or_default() += 1;
        }
        println!("- failures of {}: {why:?}", side.name);
        println!("- p50 and p95 of {} by model: {}", side.name, by_model(side, asks));
    }
}

/// Writes a line about each request, and what happened when.
pub(crate) fn keep(sides: &[Rc<Side>; 2], asks: &[Ask], dir: &Path) {
    for (side, name) in sides.iter().zip(["slotd", "router"]) {
        let mut text = "at_ms,model,kind,wait_ms,total_ms,fault\n".to_owned();
        let mut outcomes = side.outcomes.borrow().clone();
        outcomes.sort_by_key(|one| one.index);
        for one in outcomes {
            let ask = &asks[one.index];
            let fault = one.fault.unwrap_or_default().replace([',', '\n'], " ");
            let (at, wait, total) =
                (ask.at.as_millis(), one.wait.as_millis(), one.total.as_millis());
            let model = MODELS[ask.model].name;
            writeln!(text, "{at},{model},{:?},{wait},{total},{fault}", ask.kind).unwrap();
        }
        fs::write(dir.join(format!("{name}.csv")), text).unwrap();
    }
    fs::write(dir.join("events"), sides[0].events.borrow().lines.join("\n")).unwrap();
}

/// Loads as slotd's watches told them, or as the router's log does.
fn loads(side: &Side) -> u32 {
    if side.control.is_some() {
        return side.events.borrow().loads;
    }
    let log = fs::read_to_string(&side.log).unwrap();
    let spawned = log.lines().filter(|line| line.contains("spawning server instance with name="));
    u32::try_from(spawned.count()).unwrap()
}

fn failed(side: &Side) -> impl Iterator<Item = String> {
    let outcomes = side.outcomes.borrow();
    let faults: Vec<String> = outcomes.iter().filter_map(|one| one.fault.clone()).collect();
    faults.into_iter()
}

fn by_model(side: &Side, asks: &[Ask]) -> String {
    let outcomes = side.outcomes.borrow();
    let of = |(index, model): (usize, &super::Model)| {
        let waits = sorted(outcomes.iter().filter(|one| asks[one.index].model == index));
        format!("{} {} / {} ({})", model.name, at(&waits, 50), at(&waits, 95), waits.len())
    };
    MODELS.iter().enumerate().map(of).collect::<Vec<_>>().join(", ")
}

/// Of those that were answered.
fn wait(side: &Side, percent: usize) -> String {
    at(&sorted(side.outcomes.borrow().iter()), percent)
}

fn sorted<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Vec<Duration> {
    let answered = outcomes.filter(|one| one.fault.is_none());
    let mut waits: Vec<Duration> = answered.map(|one| one.wait).collect();
    waits.sort_unstable();
    waits
}

fn at(sorted: &[Duration], percent: usize) -> String {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().map_or("–".into(), seconds)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

//! Tables of what was found: medians of ratios within a round, with their least and most.

use std::fmt::Write as _;

use super::{rounds::Found, target::Kind, visit::Visit};

/// More foreign load than this in most visits makes a run noisy.
const NOISY: f64 = 0.3;

type Figure = fn(&Visit) -> f64;

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn of(found: &Found, kind: Kind, figure: Figure) -> f64 {
    median(found.iter().filter_map(|round| round.get(&kind)).map(figure).collect())
}

/// A ratio within each round: median, least, most.
fn ratio(
    found: &Found,
    (one, of_one): (Kind, Figure),
    (other, of_other): (Kind, Figure),
) -> [f64; 3] {
    let ratios = found
        .iter()
        .filter_map(|round| Some(of_one(round.get(&one)?) / of_other(round.get(&other)?)));
    spread(ratios.collect())
}

fn spread(values: Vec<f64>) -> [f64; 3] {
    let values = sorted(values);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    [at(values.len() / 2), at(0), at(values.len().saturating_sub(1))]
}

fn told([median, least, most]: [f64; 3]) -> String {
    if median.is_nan() {
        return "–".to_owned();
    }
    format!("{median:.2} ({least:.2}–{most:.2})")
}

/// Everything, as Markdown.
pub(crate) fn report(kinds: &[Kind], found: &Found, life: (u64, f64, f64)) -> String {
    let mut text = String::new();
    figures(&mut text, kinds, found);
    ratios(&mut text, kinds, found);
    goals(&mut text, kinds, found, life);
    weather(&mut text, found);
    text
}

fn figures(text: &mut String, kinds: &[Kind], found: &Found) {
    text.push_str(
        "\n| target | requests/s at 1 | at 16 | at 64 | CPU µs/request | p50 µs at 1 | p99 µs at 1 | 4-event stream p50 µs | 32 KiB prompts/s | CPU µs/event | hop p50 µs | idle MiB | MiB at 2000 streams | errors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for kind in kinds {
        let of = |figure: Figure| of(found, *kind, figure);
        let errors: u64 = found.iter().filter_map(|round| round.get(kind)).map(|v| v.errors).sum();
        writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.0} | {:.1} | {:.1} | {errors} |",
            kind.name(),
            of(|v| v.one.per_second),
            of(|v| v.sixteen.per_second),
            of(|v| v.many.per_second),
            of(|v| v.cpu_us),
            of(|v| v.one.p50_us),
            of(|v| v.one.p99_us),
            of(|v| v.short_us),
            of(|v| v.big.per_second),
            of(|v| v.event_cpu_us),
            of(|v| v.hop_us),
            of(|v| v.idle_mib),
            of(|v| v.streams_mib),
        )
        .unwrap();
    }
}

fn ratios(text: &mut String, kinds: &[Kind], found: &Found) {
    let has_peers = kinds.contains(&Kind::Haproxy);
    let base = if has_peers { Kind::Haproxy } else { Kind::Relay };
    writeln!(
        text,
        "\n| target, as a ratio to {} | requests/s at 64 | CPU/request | p50 at 1 | 32 KiB prompts/s | CPU/event |\n|---|---|---|---|---|---|",
        base.name()
    )
    .unwrap();
    for kind in kinds {
        let by = |figure: Figure| told(ratio(found, (*kind, figure), (base, figure)));
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            kind.name(),
            by(|v| v.many.per_second),
            by(|v| v.cpu_us),
            by(|v| v.one.p50_us),
            by(|v| v.big.per_second),
            by(|v| v.event_cpu_us),
        )
        .unwrap();
    }
}

/// One goal: whether it is the least or the most that is wanted.
enum Wanted {
    Least(f64),
    Most(f64),
}

fn goals(
    text: &mut String,
    kinds: &[Kind],
    found: &Found,
    (requests, young, old): (u64, f64, f64),
) {
    use Kind::{Direct, Haproxy, HaproxyModel, LlamaSwap, Nginx, Relay, Slotd, SlotdUnix};
    use Wanted::{Least, Most};
    let many: Figure = |v| v.many.per_second;
    let big: Figure = |v| v.big.per_second;
    let added = |kind: Kind| -> Vec<f64> {
        let rounds = found.iter();
        rounds
            .filter_map(|round| Some(round.get(&kind)?.one.p50_us - round.get(&Direct)?.one.p50_us))
            .collect()
    };
    let added_ratio =
        added(Slotd).into_iter().zip(added(Nginx)).map(|(ours, theirs)| ours / theirs).collect();
    let alone = |figure: Figure| {
        spread(found.iter().filter_map(|round| round.get(&Slotd)).map(figure).collect())
    };
    let rows = [
        ("requests/s at 64, to HAProxy", Least(1.0), ratio(found, (Slotd, many), (Haproxy, many))),
        (
            "requests/s at 64, Unix-socket engine, to HAProxy",
            Least(1.2),
            ratio(found, (SlotdUnix, many), (Haproxy, many)),
        ),
        (
            "CPU per request, to the l4 relay",
            Most(1.4),
            ratio(found, (Slotd, |v| v.cpu_us), (Relay, |v| v.cpu_us)),
        ),
        ("added p50 at 1, to nginx's", Most(1.0), spread(added_ratio)),
        ("4-event stream p50, ms", Most(0.2), alone(|v| v.short_us / 1e3)),
        (
            "CPU per event at 2000 streams, to HAProxy",
            Most(1.05),
            ratio(found, (Slotd, |v| v.event_cpu_us), (Haproxy, |v| v.event_cpu_us)),
        ),
        ("MiB with 2000 streams", Most(40.0), alone(|v| v.streams_mib)),
        ("MiB idle", Most(8.0), alone(|v| v.idle_mib)),
        (
            "32 KiB prompts/s, to HAProxy reading `model`",
            Least(1.5),
            ratio(found, (Slotd, big), (HaproxyModel, big)),
        ),
        (
            "requests/s at 64, to llama-swap",
            Least(10.0),
            ratio(found, (Slotd, many), (LlamaSwap, many)),
        ),
        ("MiB after 100,000 requests", Most(30.0), [old, young, old]),
    ];
    text.push_str("\n| goal | wanted | measured | |\n|---|---|---|---|\n");
    for (name, wanted, measured) in rows {
        let (wanted, holds) = match wanted {
            Least(least) => (format!("≥ {least}"), measured[0] >= least),
            Most(most) => (format!("≤ {most}"), measured[0] <= most),
        };
        let holds = match (measured[0].is_nan(), holds) {
            (true, _) => "not measured",
            (false, true) => "holds",
            (false, false) => "**does not hold**",
        };
        writeln!(text, "| {name} | {wanted} | {} | {holds} |", told(measured)).unwrap();
    }
    writeln!(
        text,
        "\n{} rounds of {} targets; {requests} requests in the long life.",
        found.len(),
        kinds.len()
    )
    .unwrap();
}

fn weather(text: &mut String, found: &Found) {
    let all = || found.iter().flat_map(|round| round.values());
    let (foreign, steal) =
        (spread(all().map(|v| v.foreign).collect()), spread(all().map(|v| v.steal).collect()));
    let noisy = all().filter(|v| v.foreign > NOISY).count() * 2 > all().count();
    writeln!(
        text,
        "Foreign CPU: {} cores, steal {}.{}",
        told(foreign),
        told(steal),
        if noisy { " **Noisy**: read ratios only." } else { "" }
    )
    .unwrap();
}

//! Figures as people read them, beside those of the last time.

use serde::Serialize;

use crate::{
    cli::{
        table::{Cell, Column, Keep, render},
        text::{Paint, Tone, counted, utc},
    },
    store::{BenchRecord, Measure, Spread},
};

const COLUMNS: [Column; 7] = [
    Column { title: "", keep: Keep::Always },
    Column { title: "MEDIAN", keep: Keep::Always },
    Column { title: "MIN", keep: Keep::Always },
    Column { title: "MAX", keep: Keep::Always },
    Column { title: "SPREAD", keep: Keep::Always },
    Column { title: "LAST TIME", keep: Keep::Always },
    Column { title: "CHANGE", keep: Keep::Always },
];

/// What has become of one figure since the last bench.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    measure: Measure,
    /// By how much the median is more than it was; negative where it is less.
    percent: f64,
    /// Whether no run of the one reached any of the other: less may be noise.
    is_beyond_spread: bool,
}

/// Compares the figures that both have.
pub(super) fn changes(record: &BenchRecord, last: Option<&BenchRecord>) -> Vec<Change> {
    let Some(last) = last else { return Vec::new() };
    let change = |(measure, now): (&Measure, &Spread)| {
        let before = last.figures.get(measure).filter(|before| before.median > 0.0)?;
        Some(Change {
            measure: *measure,
            percent: (now.median / before.median - 1.0) * 100.0,
            is_beyond_spread: now.is_apart_from(before),
        })
    };
    record.figures.iter().filter_map(change).collect()
}

pub(super) fn shown(record: &BenchRecord, last: Option<&BenchRecord>, paint: Paint) -> String {
    let changes = changes(record, last);
    let rows: Vec<_> = record
        .figures
        .iter()
        .map(|(measure, spread)| {
            let before = last.and_then(|last| last.figures.get(measure));
            let change = changes.iter().find(|change| change.measure == *measure);
            row((*measure, spread), before, change)
        })
        .collect();
    let mut text = format!("{}\n\n", heading(record));
    if last.is_some() {
        text.push_str(&render(&COLUMNS, &rows, None, paint));
    } else {
        let [name, median, min, max, spread, ..] = COLUMNS;
        let rows: Vec<_> = rows.iter().filter_map(|row| row.first_chunk::<5>().cloned()).collect();
        text.push_str(&render(&[name, median, min, max, spread], &rows, None, paint));
    }
    text.push('\n');
    for line in remarks(record, last, &changes) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn heading(record: &BenchRecord) -> String {
    let load = &record.load;
    let model = record.model.as_deref().unwrap_or("its model");
    let runs = record.figures.values().next().map_or(0, |spread| spread.runs.len());
    let answers = match load.generated_tokens {
        0 => "tokens an input".to_owned(),
        generated => format!("tokens in, {generated} out"),
    };
    format!(
        "{}: {model} on {}, {} {answers}, {} at a time, {}",
        record.slot,
        record.engine,
        load.prompt_tokens,
        load.concurrency,
        counted(runs, "run")
    )
}

fn row(
    (measure, spread): (Measure, &Spread),
    before: Option<&Spread>,
    change: Option<&Change>,
) -> [Cell; COLUMNS.len()] {
    let whole = spread.max - spread.min;
    let width = if spread.median > 0.0 { whole / spread.median * 100.0 } else { 0.0 };
    let tone = match change {
        Some(change) if !change.is_beyond_spread => Tone::Quiet,
        Some(change) if (change.percent > 0.0) == is_better_high(measure) => Tone::Good,
        Some(_) => Tone::Bad,
        None => Tone::Plain,
    };
    let percent = change.map(|change| format!("{:+.1} %", change.percent));
    [
        Cell::from(name(measure).to_owned()),
        Cell::from(figure(spread.median)),
        Cell::from(figure(spread.min)),
        Cell::from(figure(spread.max)),
        Cell::from(format!("{width:.1} %")),
        Cell::from(before.map(|before| figure(before.median))),
        Cell { tone, ..Cell::from(percent) },
    ]
}

/// What has to be known of the figures.
fn remarks(record: &BenchRecord, last: Option<&BenchRecord>, changes: &[Change]) -> Vec<String> {
    let mut lines = Vec::new();
    let speeds = if record.by_engine { "the engine's own" } else { "seen from outside" };
    lines.push(format!("Speeds are {speeds}; the wait is what a client sees."));
    if record.others > 0 {
        let others = counted(usize::try_from(record.others).unwrap_or(usize::MAX), "request");
        lines.push(format!("The engine was busy with {others} of others when it began."));
    }
    let Some(last) = last else {
        lines.push("There is no earlier bench of this work to compare with.".to_owned());
        return lines;
    };
    let beyond = |wanted: bool| {
        let found = changes.iter().filter(|change| {
            let is_better = (change.percent > 0.0) == is_better_high(change.measure);
            change.is_beyond_spread && is_better == wanted
        });
        found.map(|change| word(change.measure)).collect::<Vec<_>>().join(", ")
    };
    let since = utc(last.at_unix_ms);
    let verdicts = [("better", beyond(true)), ("worse", beyond(false))];
    if verdicts.iter().all(|(_, words)| words.is_empty()) {
        lines.push(format!("Since {since}: no change beyond the spread of the runs."));
    }
    for (verdict, words) in verdicts.iter().filter(|(_, words)| !words.is_empty()) {
        lines.push(format!("Since {since}: {verdict} beyond the spread of the runs: {words}."));
    }
    let differing = [
        ("Program", record.program.clone(), last.program.clone()),
        ("CPU cores", record.cores.map(|it| it.to_string()), last.cores.map(|it| it.to_string())),
        ("Rung", record.rung.clone(), last.rung.clone()),
    ];
    for (what, now, before) in differing {
        if now != before {
            let shown = |it: Option<String>| it.unwrap_or_else(|| "none".to_owned());
            lines.push(format!("{what}: {} then, {} now.", shown(before), shown(now)));
        }
    }
    lines
}

/// One line a bench, the oldest first.
pub(super) fn history(records: &[&BenchRecord]) -> String {
    const COLUMNS: [Column; 7] = [
        Column { title: "WHEN", keep: Keep::Always },
        Column { title: "ENGINE", keep: Keep::Always },
        Column { title: "IN", keep: Keep::Always },
        Column { title: "OUT", keep: Keep::Always },
        Column { title: "AT ONCE", keep: Keep::Always },
        Column { title: "WAIT ms", keep: Keep::Always },
        Column { title: "TOKENS/S IN, OUT", keep: Keep::Always },
    ];
    let rows: Vec<_> = records
        .iter()
        .map(|record| {
            let load = &record.load;
            let of = |wanted: [Measure; 2]| {
                wanted.iter().find_map(|measure| record.figures.get(measure))
            };
            let wait = of([Measure::FirstTokenMs, Measure::AnswerMs]);
            let read = of([Measure::PromptTokensPerSecond, Measure::InputTokensPerSecond]);
            let written = record.figures.get(&Measure::GeneratedTokensPerSecond);
            let speeds = [read, written].into_iter().flatten().map(|it| figure(it.median));
            [
                Cell::from(utc(record.at_unix_ms)),
                Cell::from(record.engine.clone()),
                Cell::from(load.prompt_tokens.to_string()),
                Cell::from(load.generated_tokens.to_string()),
                Cell::from(load.concurrency.to_string()),
                Cell::from(wait.map(|wait| figure(wait.median))),
                Cell::from(speeds.collect::<Vec<_>>().join(", ")),
            ]
        })
        .collect();
    render(&COLUMNS, &rows, None, Paint::Never)
}

fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::FirstTokenMs => "first token, ms",
        Measure::PromptTokensPerSecond => "prompt, tokens/s",
        Measure::GeneratedTokensPerSecond => "answer, tokens/s",
        Measure::AnswerMs => "vector, ms",
        Measure::InputsPerSecond => "inputs/s",
        Measure::InputTokensPerSecond => "tokens/s",
    }
}

/// The same within a sentence.
fn word(measure: Measure) -> &'static str {
    match measure {
        Measure::FirstTokenMs => "first token",
        Measure::PromptTokensPerSecond => "prompt",
        Measure::GeneratedTokensPerSecond => "answer",
        Measure::AnswerMs => "vector",
        Measure::InputsPerSecond => "inputs",
        Measure::InputTokensPerSecond => "tokens",
    }
}

fn is_better_high(measure: Measure) -> bool {
    match measure {
        Measure::FirstTokenMs | Measure::AnswerMs => false,
        Measure::PromptTokensPerSecond
        | Measure::GeneratedTokensPerSecond
        | Measure::InputsPerSecond
        | Measure::InputTokensPerSecond => true,
    }
}

/// Three digits that count, as far as they go.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::store::bench_record;

    fn record(speed: f64) -> BenchRecord {
        let spread = |of: f64| Spread::of(vec![of, of * 1.02, of * 0.99]).unwrap();
        BenchRecord {
            model: Some("org/repo:Q4_1".to_owned()),
            engine: "llama-server".to_owned(),
            program: Some("/usr/bin/llama-server".to_owned()),
            cores: Some(2),
            figures: [
                (Measure::FirstTokenMs, spread(512_000.0 / speed)),
                (Measure::PromptTokensPerSecond, spread(speed)),
                (Measure::GeneratedTokensPerSecond, spread(speed / 2.7)),
            ]
            .into(),
            ..bench_record("chat", 1_795_251_612_345)
        }
    }

    #[test]
    fn figures_stand_beside_those_of_the_last_time() {
        assert_snapshot!(shown(&record(503.0), None, Paint::Never), @r"
        chat: org/repo:Q4_1 on llama-server, 512 tokens in, 128 out, 1 at a time, 3 runs

                          MEDIAN  MIN   MAX   SPREAD
        first token, ms   1018    1008  1038  3.0 %
        prompt, tokens/s  503     498   513   3.0 %
        answer, tokens/s  186     184   190   3.0 %

        Speeds are the engine's own; the wait is what a client sees.
        There is no earlier bench of this work to compare with.
        ");
        let slower = BenchRecord { cores: Some(1), others: 2, ..record(250.0) };
        assert_snapshot!(shown(&slower, Some(&record(503.0)), Paint::Never), @r"
        chat: org/repo:Q4_1 on llama-server, 512 tokens in, 128 out, 1 at a time, 3 runs

                          MEDIAN  MIN   MAX   SPREAD  LAST TIME  CHANGE
        first token, ms   2048    2028  2089  3.0 %   1018       +101.2 %
        prompt, tokens/s  250     248   255   3.0 %   503        -50.3 %
        answer, tokens/s  92.6    91.7  94.4  3.0 %   186        -50.3 %

        Speeds are the engine's own; the wait is what a client sees.
        The engine was busy with 2 requests of others when it began.
        Since 2026-11-21 09:00:12 UTC: worse beyond the spread of the runs: first token, prompt, answer.
        CPU cores: 2 then, 1 now.
        ");
        let same = record(505.0);
        assert_snapshot!(shown(&same, Some(&record(503.0)), Paint::Never), @r"
        chat: org/repo:Q4_1 on llama-server, 512 tokens in, 128 out, 1 at a time, 3 runs

                          MEDIAN  MIN   MAX   SPREAD  LAST TIME  CHANGE
        first token, ms   1014    1004  1034  3.0 %   1018       -0.4 %
        prompt, tokens/s  505     500   515   3.0 %   503        +0.4 %
        answer, tokens/s  187     185   191   3.0 %   186        +0.4 %

        Speeds are the engine's own; the wait is what a client sees.
        Since 2026-11-21 09:00:12 UTC: no change beyond the spread of the runs.
        ");
        assert_snapshot!(history(&[&record(503.0), &slower]), @r"
        WHEN                     ENGINE        IN   OUT  AT ONCE  WAIT ms  TOKENS/S IN, OUT
        2026-11-21 09:00:12 UTC  llama-server  512  128  1        1018     503, 186
        2026-11-21 09:00:12 UTC  llama-server  512  128  1        2048     250, 92.6
        ");
    }
}

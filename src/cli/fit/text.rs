//! The same for people.

use std::fmt::Write as _;

use super::answer::{Answer, Fits, RungObject};
use crate::{
    cli::{
        table::{Cell, Column, Keep, render},
        text::{Paint, Tone},
    },
    spec::{Bytes, SlotName, memory::Basis},
};

const RUNGS: [Column; 4] = [
    Column { title: "RUNG", keep: Keep::Always },
    Column { title: "RAM", keep: Keep::Always },
    Column { title: "GPU", keep: Keep::Always },
    Column { title: "FITS", keep: Keep::Always },
];

pub(super) fn shown(answer: &Answer) -> String {
    let mut text = String::new();
    let name = answer.slot.as_ref().map(ToString::to_string);
    let model = answer.model.clone().unwrap_or_else(|| "no model".to_owned());
    let heading = match name {
        Some(slot) => format!("{slot}: {model} on {}", answer.engine),
        None => format!("{model} on {}", answer.engine),
    };
    let mut line = |words: String| writeln!(text, "{words}").is_ok();
    line(heading);
    line(basis(answer.basis).to_owned());
    if !matches!(answer.basis, Basis::Unknown | Basis::Measured | Basis::Profile) {
        for part in parts(answer) {
            line(part);
        }
    }
    if let Some(measured) = answer.measured_bytes {
        line(format!("  {:14}{:>10}", "it took before", measured.to_string()));
    }
    line(String::new());
    let rows: Vec<[Cell; 4]> = answer.rungs.iter().map(row).collect();
    text.push_str(&render(&RUNGS, &rows, None, Paint::for_stdout()));
    text.push('\n');
    text.push_str(&free(answer));
    if let Some(unmet) = &answer.skipped {
        let line = format!("it is skipped on this machine: {unmet}\n");
        text.push_str(&line);
    }
    text
}

fn parts(answer: &Answer) -> Vec<String> {
    let host = &answer.host;
    let on_gpu = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
    let gpu = answer.gpu.as_ref();
    let lines = [
        ("weights", host.weights_bytes, gpu.map(|gpu| gpu.weights_bytes)),
        ("cache", host.cache_bytes, gpu.map(|gpu| gpu.cache_bytes)),
        ("kept prompts", host.prompts_bytes, None),
        ("computing", host.compute_bytes, gpu.map(|gpu| gpu.compute_bytes_each)),
        ("the rest", host.rest_bytes, gpu.map(|gpu| gpu.context_bytes_each)),
        ("sum", host.sum_bytes, gpu.map(|gpu| gpu.sum_bytes)),
    ];
    let heading = gpu.map(|_| format!("  {:14}{:>10}{:>10}", "", "RAM", "GPU"));
    let lines = lines.into_iter().filter(|(_, host, gpu)| host.0 > 0 || gpu.is_some()).map(
        |(name, bytes, gpu)| {
            let line = format!("  {name:14}{:>10}{:>10}", bytes.to_string(), on_gpu(gpu));
            line.trim_end().to_owned()
        },
    );
    heading.into_iter().chain(lines).collect()
}

fn basis(basis: Basis) -> &'static str {
    match basis {
        Basis::Unknown => "nothing is known of what it takes: it is measured while it runs",
        Basis::Files => "by the size of its file alone:",
        Basis::Header => "by the header of its file, once its caches are full:",
        Basis::Measured => "by the most it took before:",
        Basis::Profile => "as its profile says (`memory`, `gpu_memory`)",
    }
}

fn row(rung: &RungObject) -> [Cell; 4] {
    let known = rung.host_bytes.0 > 0;
    let (word, tone) = match rung.fits {
        Fits::Yes => ("yes", Tone::Good),
        Fits::No => ("no", Tone::Bad),
        Fits::Unknown => ("not known", Tone::Quiet),
    };
    [
        Cell::from(rung.name.clone()),
        Cell::from(known.then(|| rung.host_bytes.to_string())),
        Cell::from(rung.gpu_bytes.map(|bytes| bytes.to_string())),
        Cell { tone, ..Cell::from(word.to_owned()) },
    ]
}

fn free(answer: &Answer) -> String {
    let (Some(free), Some(total)) = (answer.free_bytes, answer.total_bytes) else {
        return "how much memory can be had is not known\n".to_owned();
    };
    // What engines may have of it is what counts, where that is less.
    let limit = answer.limit_bytes.filter(|limit| *limit < total);
    let all = match limit {
        Some(limit) => format!("the {limit} that engines may take (`memory_limit`)"),
        None => total.to_string(),
    };
    let mut text = format!("{free} of {all} can be had");
    if answer.rungs.first().is_some_and(|rung| rung.fits == Fits::No) {
        let end = match answer.rungs.iter().find(|rung| rung.fits == Fits::Yes) {
            Some(rung) => format!("; the rung `{}` fits", rung.name),
            None => format!("; {}", none_fits(answer, free, limit.unwrap_or(total))),
        };
        text.push_str(&end);
    }
    if !answer.would_make_room.is_empty() {
        let going = joined(&answer.would_make_room);
        let words = format!("; unloading {going} would make room for the first");
        text.push_str(&words);
    }
    let pinned = match answer.pinned.as_slice() {
        [] => String::new(),
        [one] => format!("; `{one}` is pinned: unpinned, it could make room"),
        more => format!("; {} are pinned: unpinned, they could make room", joined(more)),
    };
    text.push_str(&pinned);
    text.push('\n');
    for (index, gpu) in answer.gpus.iter().enumerate() {
        let room = match (gpu.free_bytes, gpu.total_bytes) {
            (Some(free), Some(total)) => format!("{free} of {total} can be had"),
            _ => "says nothing".to_owned(),
        };
        let line = format!("GPU {index}, {}: {room}\n", gpu.name);
        text.push_str(&line);
    }
    text
}

/// Says that no rung fits, and whether that can change.
fn none_fits(answer: &Answer, free: Bytes, most: Bytes) -> String {
    let first = answer.rungs.first();
    let is_enough = first.is_some_and(|rung| rung.host_bytes <= free && rung.gpu_bytes.is_none());
    match &answer.refused {
        // It is not memory that is short.
        Some(refused) if is_enough => refused.clone(),
        _ if answer.rungs.iter().all(|rung| rung.host_bytes > most) => {
            "no rung fits, whoever goes".to_owned()
        }
        Some(_) => "no rung fits, even if all that may go were gone".to_owned(),
        None => "no rung fits".to_owned(),
    }
}

fn joined(slots: &[SlotName]) -> String {
    slots.iter().map(|slot| format!("`{slot}`")).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::{
        cli::fit::answer::{GpuObject, GpuRoom, HostObject},
        engine::{EngineKind, GpuParts, HostParts},
    };

    fn mebibytes(count: u64) -> Bytes {
        Bytes(count << 20)
    }

    fn rung(name: &str, host: u64, gpu: Option<u64>, fits: Fits) -> RungObject {
        let gpu_bytes = gpu.map(mebibytes);
        RungObject { name: name.to_owned(), host_bytes: mebibytes(host), gpu_bytes, fits }
    }

    fn answer() -> Answer {
        let host = HostParts {
            weights: mebibytes(92),
            cache: mebibytes(180),
            prompts: mebibytes(180),
            compute: mebibytes(24),
            rest: mebibytes(40),
        };
        Answer {
            slot: Some("chat".parse().unwrap()),
            model: Some("/models/SmolLM2.gguf".to_owned()),
            engine: EngineKind::LlamaServer,
            basis: Basis::Header,
            host: HostObject::of(&host),
            gpu: None,
            measured_bytes: None,
            free_bytes: Some(mebibytes(480)),
            total_bytes: Some(mebibytes(24_000)),
            gpus: Vec::new(),
            rungs: vec![
                rung("as written", 516, None, Fits::No),
                rung("q8_0 cache", 420, None, Fits::Yes),
            ],
            would_make_room: vec!["embed".parse().unwrap()],
            limit_bytes: None,
            refused: None,
            pinned: Vec::new(),
            skipped: None,
        }
    }

    #[test]
    fn a_slot_that_does_not_fit_is_told_with_the_rung_that_does_and_with_what_would_go() {
        assert_snapshot!(shown(&answer()), @r"
        chat: /models/SmolLM2.gguf on llama-server
        by the header of its file, once its caches are full:
          weights           92 MiB
          cache            180 MiB
          kept prompts     180 MiB
          computing         24 MiB
          the rest          40 MiB
          sum              516 MiB

        RUNG        RAM      GPU  FITS
        as written  516 MiB  -    no
        q8_0 cache  420 MiB  -    yes

        480 MiB of 23 GiB can be had; the rung `q8_0 cache` fits; unloading `embed` would make room for the first
        ");
    }

    #[test]
    fn what_it_took_before_stands_below_the_sum() {
        let measured_bytes = Some(mebibytes(430));
        let shown = shown(&Answer { measured_bytes, ..answer() });
        assert!(
            shown.contains("sum              516 MiB\n  it took before   430 MiB\n"),
            "{shown}"
        );
        let measured = shown_of_a_command(measured_bytes);
        assert!(measured.contains("it took before:\n  it took before   430 MiB\n"), "{measured}");
    }

    fn shown_of_a_command(measured_bytes: Option<Bytes>) -> String {
        let engine = EngineKind::Command;
        shown(&Answer { measured_bytes, engine, basis: Basis::Measured, ..answer() })
    }

    fn last_lines(answer: &Answer) -> String {
        shown(answer).rsplit_once("\n\n").unwrap().1.to_owned()
    }

    /// It said `23 GiB` where engines might have 420 MiB of them, and nothing of what can never fit.
    #[test]
    fn what_engines_may_take_counts_and_whether_anybody_could_help() {
        let short = |host: u64| Answer {
            rungs: vec![rung("as written", host, None, Fits::No)],
            free_bytes: Some(mebibytes(100)),
            limit_bytes: Some(mebibytes(420)),
            would_make_room: Vec::new(),
            ..answer()
        };
        let refused = Some("300 MiB of memory cannot be had".to_owned());
        let held = Answer { refused, ..short(300) };
        assert_snapshot!(last_lines(&held), @"100 MiB of the 420 MiB that engines may take (`memory_limit`) can be had; no rung fits, even if all that may go were gone");
        let pinned = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        assert_snapshot!(last_lines(&Answer { pinned: pinned(&["chat"]), ..held }), @"100 MiB of the 420 MiB that engines may take (`memory_limit`) can be had; no rung fits, even if all that may go were gone; `chat` is pinned: unpinned, it could make room");
        let two = Answer { pinned: pinned(&["chat", "embed"]), ..short(300) };
        assert_snapshot!(last_lines(&two), @"100 MiB of the 420 MiB that engines may take (`memory_limit`) can be had; no rung fits; `chat` and `embed` are pinned: unpinned, they could make room");
        assert_snapshot!(last_lines(&short(2048)), @"100 MiB of the 420 MiB that engines may take (`memory_limit`) can be had; no rung fits, whoever goes");
        let places = "as many slots are loaded as may be, and none of them may go".to_owned();
        assert_snapshot!(last_lines(&Answer { refused: Some(places), ..short(90) }), @"100 MiB of the 420 MiB that engines may take (`memory_limit`) can be had; as many slots are loaded as may be, and none of them may go");
        let roomy = Answer { limit_bytes: Some(mebibytes(30_000)), ..short(300) };
        assert_snapshot!(last_lines(&roomy), @"100 MiB of 23 GiB can be had; no rung fits");
    }

    /// It spoke of memory alone.
    #[test]
    fn what_is_meant_for_another_machine_says_so() {
        let skipped = Some("its profile needs `gpus` = 1, and 0 are there".to_owned());
        let told = last_lines(&Answer { skipped, ..answer() });
        assert!(
            told.ends_with(
                "\nit is skipped on this machine: its profile needs `gpus` = 1, and 0 are there\n"
            ),
            "{told}"
        );
    }

    #[test]
    fn two_pools_stand_side_by_side() {
        let gpu = GpuParts {
            weights: mebibytes(4200),
            cache: mebibytes(1024),
            compute: mebibytes(300),
            context: mebibytes(512),
        };
        let rungs = vec![rung("as written", 700, Some(6036), Fits::Unknown)];
        let room = |name: &str, free: Option<Bytes>| GpuRoom {
            name: name.to_owned(),
            free_bytes: free,
            total_bytes: free.map(|_| mebibytes(24_576)),
        };
        let answer = Answer {
            slot: None,
            gpus: vec![room("RTX 4090", Some(mebibytes(20_000))), room("RTX 3090", None)],
            gpu: Some(GpuObject::of(&gpu)),
            rungs,
            would_make_room: Vec::new(),
            ..answer()
        };
        assert_snapshot!(shown(&answer), @r"
        /models/SmolLM2.gguf on llama-server
        by the header of its file, once its caches are full:
                               RAM       GPU
          weights           92 MiB   4.1 GiB
          cache            180 MiB   1.0 GiB
          kept prompts     180 MiB
          computing         24 MiB   300 MiB
          the rest          40 MiB   512 MiB
          sum              516 MiB   5.8 GiB

        RUNG        RAM      GPU      FITS
        as written  700 MiB  5.8 GiB  not known

        480 MiB of 23 GiB can be had
        GPU 0, RTX 4090: 19 GiB of 24 GiB can be had
        GPU 1, RTX 3090: says nothing
        ");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let unknown = Answer {
            basis: Basis::Unknown,
            rungs: vec![rung("as written", 0, None, Fits::Unknown)],
            would_make_room: Vec::new(),
            ..answer()
        };
        assert_snapshot!(shown(&unknown), @r"
        chat: /models/SmolLM2.gguf on llama-server
        nothing is known of what it takes: it is measured while it runs

        RUNG        RAM  GPU  FITS
        as written  -    -    not known

        480 MiB of 23 GiB can be had
        ");
    }
}

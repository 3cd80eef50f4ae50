//! `slotd ps`: one line a slot.

use clap::Args;

use super::{
    client::Client,
    exit::Exit,
    failure::Failure,
    out,
    table::{Cell, Column, Keep, render},
    text::{Paint, Tone, brief, cut},
};
use crate::admin::SlotObject;

/// Options of `slotd ps`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Print a JSON array with every key of every slot
    #[arg(long)]
    json: bool,
}

/// The columns, and which go first where the line is too short.
const COLUMNS: [Column; 13] = [
    Column { title: "SLOT", keep: Keep::Always },
    Column { title: "STATE", keep: Keep::Always },
    Column { title: "ENGINE", keep: Keep::DropAt(3) },
    Column { title: "MODEL", keep: Keep::CutTo(14) },
    Column { title: "PID", keep: Keep::DropAt(5) },
    Column { title: "MEM", keep: Keep::DropAt(4) },
    Column { title: "REQ", keep: Keep::DropAt(1) },
    Column { title: "WAIT", keep: Keep::DropAt(2) },
    Column { title: "RUNG", keep: Keep::DropAt(8) },
    Column { title: "PROFILE", keep: Keep::DropAt(9) },
    Column { title: "RESTARTS", keep: Keep::DropAt(6) },
    Column { title: "VERDICT", keep: Keep::DropAt(7) },
    Column { title: "SINCE", keep: Keep::Always },
];

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    if options.json {
        out::json(&client.raw_slots().await?)?;
        return Ok(Exit::Success);
    }
    let slots = client.slots().await?;
    if slots.is_empty() {
        out::note("there are no slots yet: `slotd status` says where profiles are read\n");
    }
    let width = out::is_terminal().then(out::width).flatten();
    out::print(table(&slots, width, Paint::for_stdout()))?;
    Ok(Exit::Success)
}

fn table(slots: &[SlotObject], width: Option<usize>, paint: Paint) -> String {
    let rows: Vec<_> = slots.iter().map(row).collect();
    let mut text = render(&COLUMNS, &rows, width, paint);
    let mut notes = slots.iter().filter_map(note).peekable();
    if notes.peek().is_some() {
        text.push('\n');
    }
    for note in notes {
        text.push_str(&width.map_or_else(|| note.clone(), |width| cut(&note, width)));
        text.push('\n');
    }
    text
}

/// What a slot that is not loaded waits for, or is skipped for.
fn note(slot: &SlotObject) -> Option<String> {
    let name = &slot.slot;
    let skipped = slot.skipped.as_ref();
    let skipped = skipped.map(|unmet| format!("{name}: it is skipped on this machine: {unmet}"));
    skipped.or_else(|| Some(format!("{name}: {}", slot.waits_for.as_ref()?)))
}

fn row(slot: &SlotObject) -> [Cell; COLUMNS.len()] {
    let number = |value: u64| Cell { is_empty: value == 0, ..Cell::from(value.to_string()) };
    [
        Cell::from(slot.slot.to_string()),
        Cell { tone: Tone::of_state(&slot.state), ..Cell::from(state(slot)) },
        Cell::from(slot.engine.clone()),
        Cell::from(slot.model.as_deref().map(short_model)),
        Cell::from(slot.pid.map(|pid| pid.to_string())),
        Cell::from(slot.rss_bytes.map(|rss| rss.to_string())),
        Cell::from(slot.in_flight.map(|requests| requests.to_string())),
        number(u64::try_from(slot.waiting).unwrap_or(u64::MAX)),
        Cell::from(lowered(slot)),
        Cell::from(slot.rejected_edit.as_ref().map(|_| "previous".to_owned())),
        number(u64::from(slot.restarts)),
        Cell::from(slot.verdict.map(|verdict| verdict.to_string())),
        Cell::from(brief(slot.since_ms)),
    ]
}

/// The state with the one figure that tells how it goes on, and whether it stays.
fn state(slot: &SlotObject) -> String {
    let pin = if slot.pinned { " pinned" } else { "" };
    let stands_in = slot.stands_in_for.as_ref().map(|slot| format!(", stands in for {slot}"));
    figure(slot) + pin + &stands_in.unwrap_or_default()
}

fn figure(slot: &SlotObject) -> String {
    if slot.asleep == Some(true) {
        return format!("{} asleep", slot.state);
    }
    if slot.skipped.is_some() {
        return format!("{} skipped", slot.state);
    }
    match (slot.percent, slot.retry_in_ms) {
        (Some(percent), _) => format!("{} {percent}%", slot.state),
        (None, Some(retry_in)) => format!("{} {}", slot.state, brief(retry_in)),
        (None, None) => slot.state.clone(),
    }
}

/// Which rung it is, of how many; the first one is no news.
fn lowered(slot: &SlotObject) -> Option<String> {
    let rung = slot.rung.as_ref().filter(|rung| rung.index > 0)?;
    let of = if rung.of > 0 { rung.of.to_string() } else { "?".to_owned() };
    Some(format!("{}/{of}", rung.index + 1))
}

/// A file's name says enough; a repository needs both its parts.
fn short_model(typed: &str) -> String {
    match typed.rsplit_once('/') {
        Some((_, name)) if name.to_ascii_lowercase().ends_with(".gguf") => name.to_owned(),
        _ => typed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::cli::example;

    #[test]
    fn a_wide_table_shows_everything() {
        assert_snapshot!(table(&example::slots(), None, Paint::Never), @r"
        SLOT         STATE         ENGINE        MODEL                                             PID   MEM      REQ  WAIT  RUNG  PROFILE  RESTARTS  VERDICT    SINCE
        chat         ready         llama-server  SmolLM2-135M-Instruct.Q4_1.gguf                   4242  276 MiB  1    0     -     -        0         -          12m
        coder-large  starting 42%  llama-server  bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M  4250  276 MiB  0    5     2/4   -        0         -          3.1s
        embed        backoff 9.4s  candle        SmolLM2-135M-Instruct.Q4_1.gguf                   -     -        -    0     -     -        2         crash      900ms
        vision       failed        llama-server  small.gguf                                        -     -        -    0     -     -        0         bad-model  2h 5m
        small        offline       auto          small.gguf                                        -     -        -    0     -     -        0         -          3d 4h
        ");
    }

    #[test]
    fn a_slot_that_is_pinned_says_so() {
        let pinned = SlotObject { pinned: true, ..example::ready() };
        let shown = table(&[pinned], Some(80), Paint::Never);
        assert!(shown.contains("ready pinned"), "{shown}");
    }

    #[test]
    fn a_terminal_of_80_columns_is_enough() {
        let shown = table(&example::slots(), Some(80), Paint::Never);
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert_snapshot!(shown, @r"
        SLOT         STATE         MODEL           RUNG  RESTARTS  VERDICT    SINCE
        chat         ready         SmolLM2-135M-…  -     0         -          12m
        coder-large  starting 42%  bartowski/Qwe…  2/4   0         -          3.1s
        embed        backoff 9.4s  SmolLM2-135M-…  -     2         crash      900ms
        vision       failed        small.gguf      -     0         bad-model  2h 5m
        small        offline       small.gguf      -     0         -          3d 4h
        ");
    }

    #[test]
    fn what_has_no_news_gives_way_first() {
        let slots = &example::slots()[..1];
        assert_snapshot!(table(slots, Some(80), Paint::Never), @r"
        SLOT  STATE  ENGINE        MODEL                       PID   MEM      REQ  SINCE
        chat  ready  llama-server  SmolLM2-135M-Instruct.Q4_…  4242  276 MiB  1    12m
        ");
    }

    #[test]
    fn one_that_waits_for_memory_says_so() {
        assert_snapshot!(table(&[example::queued()], None, Paint::Never), @r"
        SLOT   STATE   ENGINE        MODEL                            PID  MEM  REQ  WAIT  RUNG  PROFILE  RESTARTS  VERDICT  SINCE
        coder  queued  llama-server  SmolLM2-135M-Instruct.Q4_1.gguf  -    -    -    2     -     -        0         -        4.2s

        coder: it needs 20 GiB of memory, and 6.5 GiB can be had; it waits for chat
        ");
        let narrow = table(&[example::queued()], Some(60), Paint::Never);
        assert!(
            narrow.ends_with("\ncoder: it needs 20 GiB of memory, and 6.5 GiB can be had; i…\n")
        );
    }

    /// It was offline like any other.
    #[test]
    fn one_that_needs_another_machine_says_so() {
        let waits = Some("it is skipped on this machine: its profile needs more".to_owned());
        let queued =
            SlotObject { state: "queued".to_owned(), waits_for: waits, ..example::skipped() };
        assert_snapshot!(table(&[example::skipped(), queued], Some(100), Paint::Never), @r"
        SLOT       STATE            ENGINE  MODEL       PID  MEM  RUNG  PROFILE  RESTARTS  VERDICT  SINCE
        elsewhere  offline skipped  auto    small.gguf  -    -    -     -        0         -        3d 4h
        elsewhere  queued skipped   auto    small.gguf  -    -    -     -        0         -        3d 4h

        elsewhere: it is skipped on this machine: its profile needs `gpus` = 1, and 0 are there
        elsewhere: it is skipped on this machine: its profile needs `gpus` = 1, and 0 are there
        ");
    }

    #[test]
    fn colours_do_not_move_the_columns() {
        let plain = table(&example::slots(), Some(100), Paint::Never);
        let coloured = table(&example::slots(), Some(100), Paint::Always);
        assert!(coloured.contains("\x1b[31mfailed"));
        let mut stripped = coloured;
        for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
    }
}

//! `slotd models`: a line a model.

use super::{inventory, note_faults};
use crate::{
    cli::{
        client::Client,
        exit::Exit,
        failure::Failure,
        out,
        table::{Cell, Column, Keep, render},
        text::{Paint, Tone},
    },
    models::inventory::{Entry, Inventory, Wholeness},
};

const COLUMNS: [Column; 10] = [
    Column { title: "MODEL", keep: Keep::CutTo(24) },
    Column { title: "KIND", keep: Keep::Always },
    Column { title: "SIZE", keep: Keep::Always },
    Column { title: "STATE", keep: Keep::Always },
    Column { title: "SLOTS", keep: Keep::DropAt(6) },
    Column { title: "ARCH", keep: Keep::DropAt(3) },
    Column { title: "QUANT", keep: Keep::DropAt(5) },
    Column { title: "PARAMS", keep: Keep::DropAt(4) },
    Column { title: "REVISION", keep: Keep::DropAt(1) },
    Column { title: "SOURCE", keep: Keep::DropAt(2) },
];

pub(super) async fn run(json: bool, client: &Client) -> Result<Exit, Failure> {
    let found = inventory(client).await?;
    if json {
        out::json(&found)?;
        return Ok(Exit::Success);
    }
    note_faults(&found);
    if found.models.is_empty() {
        let looked: Vec<_> = found.stores.iter().map(|it| it.path.display().to_string()).collect();
        let looked =
            if looked.is_empty() { "no folder is there".to_owned() } else { looked.join(", ") };
        out::note(&format!("there are no models on disk (looked at: {looked})\n"));
        return Ok(Exit::Success);
    }
    let width = out::is_terminal().then(out::width).flatten();
    out::print(shown(&found, width, Paint::for_stdout()))?;
    Ok(Exit::Success)
}

fn shown(found: &Inventory, width: Option<usize>, paint: Paint) -> String {
    let rows: Vec<_> = found.models.iter().map(row).collect();
    let table = render(&COLUMNS, &rows, width, paint);
    let unused = match found.unused_bytes.0 {
        0 => String::new(),
        _ => format!(", {} of it in no model (`slotd models clean --dry-run`)", found.unused_bytes),
    };
    format!("{table}{} models, {} on disk{unused}\n", found.models.len(), found.size_bytes)
}

fn row(model: &Entry) -> [Cell; COLUMNS.len()] {
    let revision = model
        .refs
        .first()
        .cloned()
        .or_else(|| model.revision.as_ref().map(|commit| commit.chars().take(8).collect()));
    let tone = match model.state {
        Wholeness::Whole => Tone::Plain,
        Wholeness::Incomplete | Wholeness::Damaged | Wholeness::Unreadable => Tone::Bad,
    };
    [
        Cell::from(model.model.clone()),
        Cell::from(model.kind.as_str().to_owned()),
        Cell::from(model.size_bytes.to_string()),
        Cell { tone, ..Cell::from(state(model)) },
        Cell::from(slots(model)),
        Cell::from(model.architecture.clone()),
        Cell::from(model.quantisation.clone()),
        Cell::from(model.parameters.map(count)),
        Cell::from(revision),
        Cell::from(model.source.as_str().to_owned()),
    ]
}

fn state(model: &Entry) -> String {
    match model.missing_bytes.filter(|bytes| bytes.0 > 0) {
        Some(bytes) => format!("{} ({bytes} missing)", model.state.as_str()),
        None => model.state.as_str().to_owned(),
    }
}

fn slots(model: &Entry) -> Option<String> {
    if model.slots.is_empty() {
        return None;
    }
    let names: Vec<_> = model.slots.iter().map(ToString::to_string).collect();
    let loaded = if model.is_loaded { " (loaded)" } else { "" };
    Some(format!("{}{loaded}", names.join(",")))
}

/// `134.5M`, `7.2B`.
fn count(parameters: u64) -> String {
    let scaled = |scale: u64, unit| {
        let tenths = parameters / (scale / 10);
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    };
    match parameters {
        0..1_000_000 => scaled(1_000, "K"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "M"),
        _ => scaled(1_000_000_000, "B"),
    }
}

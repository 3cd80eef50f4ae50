//! `slotd requests`: one line a request in flight.

use clap::Args;

use super::{
    client::Client,
    exit::Exit,
    failure::Failure,
    out,
    table::{Cell, Column, Keep, render},
    text::{Paint, brief},
};
use crate::admin::RequestObject;

/// Options of `slotd requests`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Print a JSON array with every key of every request
    #[arg(long)]
    json: bool,
}

/// The columns, and which go first where the line is too short.
const COLUMNS: [Column; 9] = [
    Column { title: "ID", keep: Keep::Always },
    Column { title: "SLOT", keep: Keep::Always },
    Column { title: "STATE", keep: Keep::Always },
    Column { title: "AGE", keep: Keep::Always },
    Column { title: "TOKENS", keep: Keep::DropAt(4) },
    Column { title: "LANE", keep: Keep::DropAt(1) },
    Column { title: "KEY", keep: Keep::DropAt(3) },
    Column { title: "CLIENT", keep: Keep::DropAt(2) },
    Column { title: "AGENT", keep: Keep::CutTo(10) },
];

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    if options.json {
        out::json(&client.raw_requests().await?)?;
        return Ok(Exit::Success);
    }
    let requests = client.requests().await?;
    if requests.is_empty() {
        out::note("no request is in flight\n");
    }
    let width = out::is_terminal().then(out::width).flatten();
    out::print(table(&requests, width, Paint::for_stdout()))?;
    Ok(Exit::Success)
}

fn table(requests: &[RequestObject], width: Option<usize>, paint: Paint) -> String {
    let rows: Vec<_> = requests.iter().map(row).collect();
    render(&COLUMNS, &rows, width, paint)
}

fn row(request: &RequestObject) -> [Cell; COLUMNS.len()] {
    let state = if request.is_abandoned {
        format!("{} (client gone)", request.state)
    } else {
        request.state.clone()
    };
    [
        Cell::from(request.id.to_string()),
        Cell::from(request.slot.to_string()),
        Cell::from(state),
        Cell::from(brief(request.age_ms)),
        Cell { is_empty: request.tokens == 0, ..Cell::from(request.tokens.to_string()) },
        Cell { is_empty: request.lane == "interactive", ..Cell::from(request.lane.clone()) },
        Cell::from(request.key.clone()),
        Cell::from(request.client.clone()),
        Cell::from(request.agent.clone()),
    ]
}

//! `slotd logs`: what a slot's engines wrote.

use std::mem;

use clap::Args;
use serde::Serialize;

use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::spec::SlotName;

/// Options of `slotd logs`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Go on with what its engines write, also the next ones
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100)]
    lines: usize,
    /// Print one JSON object a line: `slot` and `line`
    #[arg(long)]
    json: bool,
}

/// A line of a log, as `--json` tells it.
#[derive(Serialize)]
struct Line<'a> {
    slot: &'a SlotName,
    line: &'a str,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let mut response = client.logs(&options.slot, options.lines, options.follow).await?;
    let (mut is_empty, mut unfinished) = (true, Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|error| client.failure(error))? {
        is_empty = false;
        if options.json {
            unfinished.extend_from_slice(&chunk);
            out::exact(as_json(&options.slot, &whole_lines(&mut unfinished))?)?;
        } else {
            out::exact(&chunk)?;
        }
    }
    out::exact(as_json(&options.slot, &unfinished)?)?;
    if is_empty && options.lines > 0 {
        out::note(&format!("slotd: `{}` has not written anything yet\n", options.slot));
    }
    Ok(Exit::Success)
}

/// Takes the lines that have come to their end; the rest waits for more.
fn whole_lines(text: &mut Vec<u8>) -> Vec<u8> {
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let rest = text.split_off(end);
    mem::replace(text, rest)
}

/// One object a line. What is no UTF-8 is replaced: JSON has no bytes.
fn as_json(slot: &SlotName, text: &[u8]) -> Result<String, Failure> {
    let mut json = String::new();
    for line in String::from_utf8_lossy(text).lines() {
        json += &serde_json::to_string(&Line { slot, line }).map_err(Failure::Encode)?;
        json.push('\n');
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_in_two_pieces_is_one_object() {
        let slot: SlotName = "chat".parse().unwrap();
        let mut text = b"one\ntw".to_vec();
        let first = as_json(&slot, &whole_lines(&mut text)).unwrap();
        assert_eq!(first, "{\"slot\":\"chat\",\"line\":\"one\"}\n");
        text.extend_from_slice(b"o \xff\n");
        let second = as_json(&slot, &whole_lines(&mut text)).unwrap();
        assert_eq!(second, "{\"slot\":\"chat\",\"line\":\"two \u{fffd}\"}\n");
        assert!(text.is_empty());
    }
}

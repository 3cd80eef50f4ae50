//! `make deaths`: dies in every way that this machine has, and checks each verdict.
//!
//! Arguments: the slotd program, llama-server, a model. Runs a real daemon with the real llama-server
//! and the real worker, prints a Markdown table, and fails if a verdict is wrong.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::string_slice,
    reason = "a list of cases is long, and a corpus that cannot be made ends with the place where it broke"
)]

mod cases;
mod daemon;
mod deed;

use std::{env, fs, os::unix::net::UnixListener, process::ExitCode};

use serde_json::Value;

use cases::{Case, Setting};
use daemon::Daemon;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut given = env::args_os().skip(1).map(|path| fs::canonicalize(path).unwrap());
    let (slotd, llama) = (given.next().unwrap(), given.next().unwrap());
    let daemon = Daemon::start(&slotd, &llama).await;
    let setting = Setting::make(&daemon, slotd, llama, given.next().unwrap());
    println!("| # | death | expected | verdict | confidence | what it rests on |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let (mut count, mut wrong) = (0, 0);
    for case in cases::all(&setting) {
        let row = die(&daemon, &setting, &case).await;
        count += 1;
        let mark = if case.expected.split(" or ").any(|right| right == row.verdict) {
            ""
        } else {
            " **wrong**"
        };
        wrong += u32::from(!mark.is_empty());
        let Row { verdict, confidence, reason } = row;
        let (name, expected) = (&case.name, case.expected);
        println!("| {count} | {name} | {expected} | {verdict}{mark} | {confidence} | {reason} |");
    }
    println!("\n{count} cases, {wrong} verdicts wrong.");
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Row {
    verdict: String,
    confidence: String,
    reason: String,
}

/// Lets one slot die once, and reads what slotd made of it.
async fn die(daemon: &Daemon, setting: &Setting, case: &Case) -> Row {
    let slot = "victim";
    let (before, _) = deaths(&daemon_slot(daemon, slot, &case.profile).await);
    if case.expected == "alive" {
        // What an engine left that had this very address.
        let socket = format!("state/run/engines/{slot}.g{}.sock", before + 1);
        drop(UnixListener::bind(daemon.path(&socket)).unwrap());
    }
    daemon.order(slot, "load").await;
    deed::perform(daemon, setting, slot, &case.act).await;
    let is_over = |view: &Value| {
        let (count, last) = deaths(view);
        let is_told = last.is_some_and(|death| {
            death["verdict"] != "stopped-by-us"
                && (death["pid"].is_null() || !death["evidence"].is_null())
        });
        count > before && is_told || case.expected == "alive" && view["state"] == "ready"
    };
    let Some(view) = daemon.until(slot, is_over).await else {
        return Row { verdict: "none".into(), confidence: "-".into(), reason: "it lives".into() };
    };
    let row = match deaths(&view) {
        (count, Some(death)) if count > before => Row {
            verdict: text(&death["verdict"]),
            confidence: text(&death["confidence"]),
            reason: shown(&text(&death["reason"]), setting),
        },
        _ => Row { verdict: "alive".into(), confidence: "-".into(), reason: "ready".into() },
    };
    daemon.order(slot, "unload").await;
    let is_down = |view: &Value| matches!(view["state"].as_str(), Some("offline" | "failed"));
    daemon.until(slot, is_down).await.unwrap();
    row
}

/// Writes the profile and waits until the slot has it and rests.
async fn daemon_slot(daemon: &Daemon, slot: &str, profile: &str) -> Value {
    // Each case has a name of its own, by which its profile is known.
    let name = format!(
        "case-{:016x}",
        profile
            .bytes()
            .fold(7_u64, |hash, byte| { hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte) })
    );
    daemon.write_profile(slot, &format!("aliases = [\"{name}\"]\n{profile}"));
    let is_taken = |view: &Value| view["aliases"][0] == name.as_str();
    daemon.until(slot, is_taken).await.unwrap()
}

fn deaths(view: &Value) -> (u64, Option<&Value>) {
    let all = view["deaths"].as_array();
    let last = all.and_then(|all| all.last());
    // History is bounded: the generation counts.
    (last.and_then(|death| death["generation"].as_u64()).unwrap_or(0), last)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Takes out what is of this machine and what would break the table.
fn shown(reason: &str, setting: &Setting) -> String {
    let reason = reason.replace(setting.folder.to_str().unwrap(), "DIR/").replace('|', "\\|");
    // Where the engine was built.
    let reason = match reason.split_once("/ggml/src/") {
        Some((before, rest)) => {
            let from = before.rfind('`').map_or(0, |at| at + 1);
            format!("{}…/ggml/src/{rest}", &before[..from])
        }
        None => reason,
    };
    let short: String = reason.chars().take(220).collect();
    if short.len() < reason.len() { format!("{short}…") } else { reason }
}

//! `slotd status`: how one slot is and why, or how the daemon is.

use clap::Args;
use serde_json::json;

use super::{
    advice::next_step,
    client::Client,
    exit::Exit,
    failure::Failure,
    gpus, out,
    text::{Paint, Tone, brief, counted, utc},
};
use crate::{
    admin::{DaemonObject, DeathObject, PressureObject, RejectedObject, SlotObject, StorageObject},
    spec::{
        SlotName,
        death::{Evidence, ExitStatus, KernelLog, Verdict},
    },
};

/// How many lines of the log are shown.
const LOG_LINES: usize = 10;
/// How many of the dead engine's last lines are shown; JSON has all that were kept.
const LAST_WORDS: usize = 5;

/// What goes without while the disk is nearly full.
const HELD_BACK: &str = "not written while the disk is nearly full: peaks, uses and deaths are kept in memory alone, benches are not kept, engine logs are cut at 1 MiB";

/// Options of `slotd status`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot; the daemon itself without one
    slot: Option<SlotName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    match &options.slot {
        Some(slot) => of_slot(slot, options, client).await?,
        None => of_daemon(options, client).await?,
    }
    Ok(Exit::Success)
}

async fn of_slot(slot: &SlotName, options: &Options, client: &Client) -> Result<(), Failure> {
    let shown = client.slot(slot).await?;
    if options.json {
        return out::json(&shown);
    }
    let log = client.last_lines(slot, LOG_LINES).await?;
    out::print(slot_text(&shown, &log, Paint::for_stdout()))
}

async fn of_daemon(options: &Options, client: &Client) -> Result<(), Failure> {
    let daemon = client.daemon().await?;
    if options.json {
        let slots = client.raw_slots().await?;
        return out::json(&json!({ "daemon": daemon, "slots": slots }));
    }
    let slots = client.slots().await?;
    out::print(daemon_text(&daemon, &slots, Paint::for_stdout()))
}

fn slot_text(slot: &SlotObject, log: &[String], paint: Paint) -> String {
    let mut text = Text::default();
    let state = paint.apply(Tone::of_state(&slot.state), &slot.state);
    text.line(&format!("{}: {state} for {}", slot.slot, brief(slot.since_ms)));
    text.field("model", slot.model.clone());
    text.field("engine", Some(engine(slot)));
    text.field("address", slot.url.clone());
    text.field("offline", slot.absence.clone());
    text.field("stands in", slot.stands_in_for.as_ref().map(|other| format!("for {other}")));
    text.field("queued", slot.waits_for.clone().filter(|_| slot.skipped.is_none()));
    text.field("skipped", slot.skipped.clone());
    text.field("made room", slot.displaced_by.as_ref().map(|other| format!("for {other}")));
    text.field(
        "made room",
        slot.unloaded_for.as_ref().map(|source| format!("the machine ran short of {source}")),
    );
    text.field("kept out", slot.kept_out.clone());
    text.field("by order", by_order(slot));
    text.field("asleep", slot.asleep.filter(|asleep| *asleep).map(|_| "yes".to_owned()));
    text.field("process", slot.pid.map(|pid| process(slot, pid)));
    text.field("cores", cores(slot));
    text.field("loading", loading(slot));
    text.field("requests", requests(slot));
    text.field(
        "names",
        Some([&slot.aliases[..], &slot.routes].concat().join(", "))
            .filter(|names| !names.is_empty()),
    );
    text.field("profile", Some(slot.source.display().to_string()));
    text.field("edit", slot.rejected_edit.as_ref().map(rejected));
    text.field("loads in", slot.expected_load_ms.map(|ms| format!("about {}", brief(ms))));
    text.field("rung", rung(slot));
    text.field("restarts", (slot.restarts > 0).then(|| slot.restarts.to_string()));
    if let Some(death) = slot.deaths.last() {
        text.line("");
        text.death(death);
    }
    if !log.is_empty() {
        text.line("");
        text.line(&format!("log, last {}:", counted(log.len(), "line")));
        text.quote(log);
    }
    text.line("");
    text.line(&format!("next: {}", next_step(slot)));
    text.0
}

fn engine(slot: &SlotObject) -> String {
    match &slot.program {
        Some(program) => format!("{} ({program})", slot.engine),
        None => slot.engine.clone(),
    }
}

fn process(slot: &SlotObject, pid: u32) -> String {
    let memory = slot.rss_bytes.map(|rss| format!(", {rss}")).unwrap_or_default();
    format!("pid {pid}, generation {}{memory}", slot.generation)
}

/// How many of the machine's cores it computes with, where that is known.
fn cores(slot: &SlotObject) -> Option<String> {
    let cores = slot.cores.filter(|cores| *cores > 0)?;
    Some(format!(
        "computes on {}",
        counted(usize::try_from(cores).unwrap_or(usize::MAX), "CPU core")
    ))
}

fn loading(slot: &SlotObject) -> Option<String> {
    let attempt = slot.attempt?;
    let percent = slot.percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
    let expected =
        slot.expected_load_ms.map(|ms| format!(" of about {}", brief(ms))).unwrap_or_default();
    let elapsed = brief(slot.elapsed_ms.unwrap_or(0));
    Some(format!("attempt {attempt}{percent}, {elapsed}{expected}"))
}

fn requests(slot: &SlotObject) -> Option<String> {
    let at_most = slot.parallel.map(|parallel| format!(" of {parallel}")).unwrap_or_default();
    match (slot.in_flight, slot.waiting) {
        (None, 0) => None,
        (None, waiting) => Some(format!("{waiting} waiting")),
        (Some(running), waiting) => Some(format!("{running}{at_most} running, {waiting} waiting")),
    }
}

/// What a person has ordered of its stay.
fn by_order(slot: &SlotObject) -> Option<String> {
    let pinned = if slot.pinned { "pinned" } else { "not pinned" };
    let said = slot.ordered.iter().map(|what| match what.as_str() {
        "pinned" => pinned.to_owned(),
        _ => format!("priority {}", slot.priority),
    });
    let said: Vec<_> = said.collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// The rung, where there is more than one.
fn rung(slot: &SlotObject) -> Option<String> {
    let rung = slot.rung.as_ref().filter(|rung| rung.index > 0 || rung.of > 1)?;
    let of = if rung.of > 0 { format!(" of {}", rung.of) } else { String::new() };
    Some(format!("{}{of}, {}", rung.index + 1, rung.name))
}

/// What became of the file's last edit.
pub(super) fn rejected(edit: &RejectedObject) -> String {
    let when = if edit.at_unix_ms > 0 { utc(edit.at_unix_ms) } else { "just now".to_owned() };
    format!(
        "runs its previous profile; the edit of {when} failed: {} ({})",
        edit.reason, edit.verdict
    )
}

fn daemon_text(daemon: &DaemonObject, slots: &[SlotObject], paint: Paint) -> String {
    let mut text = Text::default();
    let DaemonObject { version, pid, uptime_ms, .. } = daemon;
    text.line(&format!("slotd {version}, pid {pid}, up {}", brief(*uptime_ms)));
    text.field("endpoint", Some(format!("http://{}", daemon.listen)));
    text.field("ollama", daemon.ollama_listen.as_ref().map(|at| format!("http://{at}")));
    text.field("control", Some(daemon.control.display().to_string()));
    text.field("state", Some(daemon.state_dir.display().to_string()));
    for directory in &daemon.profile_dirs {
        text.field("profiles", Some(directory.display().to_string()));
    }
    let ready = slots.iter().filter(|slot| slot.state == "ready").count();
    text.field("slots", Some(format!("{}, {ready} of them ready", slots.len())));
    let used: u32 = slots.iter().filter_map(|slot| slot.cores).sum();
    let cores = (daemon.cores > 0).then(|| format!("{used} of {} in use by engines", daemon.cores));
    text.field("cores", cores);
    for gpu in &daemon.gpus {
        text.field(&format!("gpu {}", gpu.index), Some(gpus::line(gpu)));
    }
    text.field("pressure", daemon.pressure.as_ref().and_then(pressure));
    text.field("history", daemon.holds_history_back().then(|| HELD_BACK.to_owned()));
    text.line("");
    let of_gpus = daemon.gpus.iter().filter_map(|gpu| gpus::ailment(gpu, paint));
    let ailing = slots.iter().filter_map(|slot| ailment(slot, paint));
    let short = daemon.pressure.as_ref().and_then(|pressure| strain(pressure, paint));
    let ailing: Vec<_> = ailing.chain(of_gpus).chain(short).collect();
    if ailing.is_empty() && daemon.faults.is_empty() && daemon.storage.is_empty() {
        text.line(&format!("health: {}", paint.apply(Tone::Good, "all is well")));
        return text.0;
    }
    text.line("health:");
    for line in &ailing {
        text.line(&format!("  - {line}"));
    }
    for storage in &daemon.storage {
        let StorageObject { place, path, reason, since_unix_ms, costs } = storage;
        let (path, since) = (path.display(), utc(*since_unix_ms));
        let what = paint.apply(Tone::Wary, "takes no writes");
        text.line(&format!("  - {path} ({place}) {what} since {since}: {reason}; {costs}"));
    }
    for fault in &daemon.faults {
        let shown = fault.text.replace('\n', "\n  ");
        let what =
            if daemon.is_of_rules(fault) { "rules not applied" } else { "profile not applied" };
        text.line(&format!("  - {}: {shown}", paint.apply(Tone::Bad, what)));
    }
    text.0
}

/// What the machine is short of; nothing where there is enough of everything.
fn pressure(pressure: &PressureObject) -> Option<String> {
    let short = pressure.sources.iter().filter(|(_, level)| *level != "normal");
    let short: Vec<_> = short.map(|(source, level)| format!("{source} {level}")).collect();
    let throttle = pressure.throttle;
    (!short.is_empty()).then(|| format!("{}; throttle {throttle}", short.join(", ")))
}

/// What the machine has next to nothing left of; nothing for one that gets by.
fn strain(pressure: &PressureObject, paint: Paint) -> Option<String> {
    let critical = pressure.sources.iter().filter(|(_, level)| *level == "critical");
    let sources: Vec<_> = critical.map(|(source, _)| source.as_str()).collect();
    let (what, throttle) = (paint.apply(Tone::Bad, "next to nothing is left"), pressure.throttle);
    (!sources.is_empty()).then(|| {
        let sources = sources.join(", ");
        format!("{what} of {sources}: clients that can wait are asked to hold back (throttle {throttle})")
    })
}

/// What is wrong with a slot; nothing for one that is well, on its way, or at rest.
fn ailment(slot: &SlotObject, paint: Paint) -> Option<String> {
    let name = &slot.slot;
    if let Some(unmet) = &slot.skipped {
        let what = paint.apply(Tone::Wary, "is skipped on this machine");
        return Some(format!("{name} {what}: {unmet}"));
    }
    if slot.too_large {
        let what = paint.apply(Tone::Bad, "can never be loaded here");
        return Some(format!("{name} {what}; `slotd status {name}` says why"));
    }
    let what = match slot.state.as_str() {
        "failed" => "has failed",
        "backoff" => "waits to start again",
        "unready" => "runs and is not ready",
        _ => {
            let edit = slot.rejected_edit.as_ref()?;
            let (slot, verdict) = (&slot.slot, edit.verdict);
            let what = paint.apply(Tone::Wary, "runs its previous profile");
            return Some(format!(
                "{slot} {what}: its edit failed ({verdict}); `slotd status {slot}` says why"
            ));
        }
    };
    let verdict = slot.verdict.map(|verdict| format!(" ({verdict})")).unwrap_or_default();
    let what = paint.apply(Tone::of_state(&slot.state), what);
    Some(format!("{} {what}{verdict}; `slotd status {}` says why", slot.slot, slot.slot))
}

/// Lines that are being put together.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn field(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.line(&format!("  {name:<10}{value}"));
        }
    }

    fn quote<'a>(&mut self, lines: impl IntoIterator<Item = &'a String>) {
        for line in lines {
            self.line(format!("  | {line}").trim_end());
        }
    }

    fn death(&mut self, death: &DeathObject) {
        let pid = death.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        self.line(&format!(
            "last death: {} ({}), {} (generation {}{pid}, after {})",
            death.verdict,
            death.confidence,
            utc(death.at_unix_ms),
            death.generation,
            brief(death.ran_for_ms),
        ));
        self.field("reason", Some(death.reason.clone()));
        // What was asked for needs no proof.
        if let Some(evidence) = &death.evidence
            && death.verdict != Verdict::StoppedByUs
        {
            self.field("evidence", Some(summary(evidence)));
            let skipped = evidence.last_lines.len().saturating_sub(LAST_WORDS);
            self.quote(evidence.last_lines.iter().skip(skipped));
        }
    }
}

fn summary(evidence: &Evidence) -> String {
    let status = match evidence.status {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
        ExitStatus::Unknown => "wait status unknown".to_owned(),
    };
    let oom = match evidence.oom_kills {
        None => "no OOM counter".to_owned(),
        Some(0) => "no OOM kill".to_owned(),
        Some(kills) => counted(usize::try_from(kills).unwrap_or(usize::MAX), "OOM kill"),
    };
    let log = match &evidence.log {
        Some(finding) => format!("its log says `{}`", finding.line),
        None => "nothing known in its log".to_owned(),
    };
    let kernel = match &evidence.kernel_log {
        KernelLog::Unreadable => "",
        KernelLog::Silent => "; the kernel's log is silent",
        KernelLog::OomKill { .. } => "; the kernel's log names an OOM kill",
        KernelLog::Fault { .. } => "; the kernel's log names a fault",
    };
    format!("{status}; {oom}; {log}{kernel}")
}

#[cfg(test)]
mod tests;

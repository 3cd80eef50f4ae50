//! `slotd why`: one death as a story: what happened, how we know, what slotd did, what you can do.

mod evidence;
#[cfg(test)]
mod tests;

use clap::Args;
use serde::Serialize;

use super::{
    advice::{after_rejection, next_step, remedy},
    client::Client,
    exit::Exit,
    failure::Failure,
    out,
    status::rejected,
    text::{Paint, Tone, brief, counted, utc},
};
use crate::{
    admin::{DeathObject, RuleActObject, SlotObject},
    spec::{
        SlotName,
        death::{Phase, Verdict},
    },
};

/// How many deaths before the one that is told are listed.
const EARLIER: usize = 5;
/// How many of the engine's last lines are shown; JSON has all that were kept.
const LAST_WORDS: usize = 8;

/// Options of `slotd why`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The story of the last death that slotd did not cause itself.
#[derive(Debug, Serialize)]
struct Story<'a> {
    slot: &'a SlotName,
    state: &'a str,
    /// One sentence an element; empty without a death, as are the next two.
    what_happened: Vec<String>,
    how_we_know: Vec<String>,
    what_slotd_did: Vec<String>,
    what_you_can_do: Vec<String>,
    death: Option<&'a DeathObject>,
    /// Newest first, our own stops among them.
    earlier: Vec<&'a DeathObject>,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let slot = client.slot(&options.slot).await?;
    let story = Story::of(&slot);
    if options.json {
        out::json(&story)?;
    } else {
        out::print(story.text(Paint::for_stdout()))?;
    }
    Ok(Exit::Success)
}

impl<'a> Story<'a> {
    fn of(slot: &'a SlotObject) -> Self {
        let mut deaths = slot.deaths.iter().rev();
        let death = deaths.find(|death| death.verdict != Verdict::StoppedByUs);
        let mut story = Self {
            slot: &slot.slot,
            state: &slot.state,
            what_happened: Vec::new(),
            how_we_know: Vec::new(),
            what_slotd_did: Vec::new(),
            what_you_can_do: Vec::new(),
            death,
            earlier: deaths.take(EARLIER).collect(),
        };
        let Some(death) = death else {
            story.what_happened.extend(outside(slot).or_else(|| waiting(slot)));
            story.what_slotd_did.extend(made_way(slot));
            story.what_slotd_did.extend(by_rule(slot));
            story.earlier = slot.deaths.iter().rev().take(EARLIER).collect();
            story.what_you_can_do.push(next_step(slot));
            return story;
        };
        story.what_happened = happened(death);
        story.how_we_know = evidence::told(death);
        story.what_slotd_did = did(slot, death);
        story.what_slotd_did.extend(waiting(slot));
        story.what_slotd_did.extend(made_way(slot));
        story.what_slotd_did.extend(by_rule(slot));
        story.what_you_can_do.extend(remedy(slot, death));
        match slot.state.as_str() {
            "ready" if slot.rejected_edit.is_some() => {
                story.what_you_can_do = vec![after_rejection(slot)];
            }
            "ready" => {}
            "failed" => story.what_you_can_do.push(format!("then `slotd load {}`", slot.slot)),
            _ => story.what_you_can_do.push(next_step(slot)),
        }
        story
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        let state = paint.apply(Tone::of_state(self.state), self.state);
        match self.death {
            None if self.what_happened.is_empty() => write_line(
                &mut text,
                &format!("{}: {state}; no engine of it has died by itself", self.slot),
            ),
            None => write_line(&mut text, &format!("{}: {state}", self.slot)),
            Some(death) => {
                let verdict = format!("{} ({})", death.verdict, death.confidence);
                let verdict = paint.apply(Tone::Bad, &verdict);
                let at = utc(death.at_unix_ms);
                write_line(&mut text, &format!("{}: {state}; {verdict}, {at}", self.slot));
            }
        }
        section(&mut text, "what happened", &self.what_happened);
        section(&mut text, "how we know", &self.how_we_know);
        self.last_words(&mut text);
        section(&mut text, "what slotd did", &self.what_slotd_did);
        section(&mut text, "what you can do", &self.what_you_can_do);
        let earlier: Vec<_> = self.earlier.iter().map(|death| in_short(death)).collect();
        section(&mut text, "before that", &earlier);
        text
    }

    fn last_words(&self, text: &mut String) {
        let evidence = self.death.and_then(|death| death.evidence.as_ref());
        let lines = evidence.map_or(&[][..], |evidence| &evidence.last_lines);
        if lines.is_empty() {
            return;
        }
        write_line(text, "  - its last words:");
        for line in lines.iter().skip(lines.len().saturating_sub(LAST_WORDS)) {
            write_line(text, format!("    | {line}").trim_end());
        }
    }
}

/// Says what a slot in line waits for, or that it can never come up here.
fn waiting(slot: &SlotObject) -> Option<String> {
    if let (Some(source), Some(kept_out)) = (&slot.unloaded_for, &slot.kept_out) {
        return Some(format!(
            "it was unloaded because the machine ran short of {source}; {kept_out}"
        ));
    }
    if let Some(unmet) = &slot.skipped {
        return Some(format!("it is skipped on this machine: {unmet}"));
    }
    let waits_for = slot.waits_for.as_ref()?;
    if slot.too_large {
        return Some(format!("it does not fit: {waits_for}"));
    }
    Some(format!("it waits for memory: {waits_for}; {} in line", brief(slot.since_ms)))
}

/// Says that it was unloaded, or put on a lower rung, for want of memory.
fn made_way(slot: &SlotObject) -> Option<String> {
    let went = if slot.state == "ready" { "put it on a lower rung" } else { "unloaded it" };
    if let Some(other) = &slot.displaced_by {
        return Some(format!("it {went} to make room for {other}"));
    }
    // What is kept out is told as what happened.
    let source = slot.unloaded_for.as_ref().filter(|_| slot.kept_out.is_none())?;
    Some(format!("it {went} because of pressure: the machine ran short of {source}"))
}

/// Says what a rule asked for last; whether that was done, its state tells.
fn by_rule(slot: &SlotObject) -> Option<String> {
    let RuleActObject { rule, when, order, at_unix_ms } = slot.rule.as_ref()?;
    Some(format!("the rule `{rule}` ({when}) asked for `{order}` at {}", utc(*at_unix_ms)))
}

/// What there is to tell of an engine that somebody else runs.
fn outside(slot: &SlotObject) -> Option<String> {
    let url = slot.url.as_deref()?;
    Some(match (&slot.absence, slot.state.as_str()) {
        (Some(absence), _) => {
            format!("{absence}, for {}; somebody else runs this engine", brief(slot.since_ms))
        }
        (None, "offline") => {
            format!("it was unloaded: slotd sends nothing to {url} and does not look there")
        }
        (None, state) => format!("somebody else runs this engine at {url}; it is {state}"),
    })
}

fn happened(death: &DeathObject) -> Vec<String> {
    let what = match death.verdict {
        Verdict::StoppedByUs => "slotd stopped it",
        Verdict::KilledByOther => "somebody else ended it, by a signal",
        Verdict::OomHost => "there was not enough memory of the host for it",
        Verdict::OomDevice => "there was not enough memory of the device for it",
        Verdict::Crash => "it crashed",
        Verdict::StartTimeout => "it was not ready in time",
        Verdict::Hung => "it hung, and slotd replaced it",
        Verdict::Poisoned => "it failed every request, and slotd replaced it",
        Verdict::BadConfig => "it refused its arguments",
        Verdict::MissingFile => "a file that it needs is not there",
        Verdict::ModelNotFetched => "its model has to be fetched",
        Verdict::BadModel => "it cannot load the model file",
        Verdict::PortBusy => "its address was taken",
        Verdict::UnexpectedExit => "it ended by itself",
        Verdict::SpawnFailed => "its program could not be started",
    };
    let when = match (death.pid, death.phase) {
        (None, _) => "found before the start".to_owned(),
        (Some(pid), Phase::Starting) => {
            format!("while loading, after {}; pid {pid}", brief(death.ran_for_ms))
        }
        (Some(pid), Phase::Serving) => {
            format!("while serving, after {}; pid {pid}", brief(death.ran_for_ms))
        }
    };
    let mut lines = vec![format!("{what} ({when}, generation {})", death.generation)];
    // Otherwise each part of the sentence comes again as evidence.
    if death.evidence.is_none() || death.verdict.is_ours() {
        lines.push(death.reason.clone());
    }
    lines
}

fn did(slot: &SlotObject, death: &DeathObject) -> Vec<String> {
    let since = brief(slot.since_ms);
    let mut lines = Vec::new();
    if slot.generation > death.generation {
        let starts = slot.generation.0 - death.generation.0;
        let starts = counted(usize::try_from(starts).unwrap_or(usize::MAX), "start");
        lines.push(format!("{starts} since; the last is generation {}", slot.generation));
    }
    lines.push(match slot.state.as_str() {
        "ready" if slot.rejected_edit.is_some() => format!("it serves, for {since}"),
        "ready" => format!("it serves again, for {since}"),
        "starting" => format!("it starts the engine again, for {since}"),
        "backoff" => format!(
            "it waits before the next start ({} in a row): {} left",
            counted(usize::try_from(slot.tally).unwrap_or(usize::MAX), "death"),
            brief(slot.retry_in_ms.unwrap_or(0))
        ),
        "failed" if death.verdict.needs_person() => {
            "it does not try again: unchanged, it could only fail again".to_owned()
        }
        "failed" => format!(
            "it gave up after {} in a row",
            counted(usize::try_from(slot.tally).unwrap_or(usize::MAX), "death")
        ),
        "offline" if slot.skipped.is_some() => "it left the slot at rest".to_owned(),
        "offline" => "it left the slot at rest; requests load it".to_owned(),
        other => format!("the slot is {other}, for {since}"),
    });
    if let Some(edit) = &slot.rejected_edit {
        lines.push(format!("the slot {}", rejected(edit)));
    }
    lines
}

fn in_short(death: &DeathObject) -> String {
    let DeathObject { verdict, confidence, generation, .. } = death;
    format!("{}  {verdict} ({confidence}), generation {generation}", utc(death.at_unix_ms))
}

fn section(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    write_line(text, "");
    write_line(text, title);
    for line in lines {
        write_line(text, &format!("  - {line}"));
    }
}

fn write_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

//! `slotd models use`: a slot goes over to another revision of its model.
//!
//! What is chosen stands in the profile, one word of it changed: so it is seen, kept and undone as any
//! other edit. The daemon does what it does with edits: the old engine ends its requests, the new one
//! loads, and where it does not become ready the old one is started again. Those that come meanwhile go to
//! an engine that was started beside the old one before, where there is one, and wait otherwise.

use std::{collections::BTreeSet, fs, time::Duration};

use clap::Args;
use tokio::time::timeout;

use super::{inventory, stand_in};
use crate::{
    admin::SlotObject,
    cli::{
        client::{Changes, Client},
        exit::Exit,
        failure::Failure,
        out,
        progress::Progress,
        text::brief,
    },
    config::{replace_file, with_model},
    models::{
        inventory::{Entry, Inventory, Source, Wholeness},
        is_commit,
        pull::Reference,
        usual_model,
    },
    spec::SlotName,
};

/// How long the daemon may take to see the file.
const SEEN: Duration = Duration::from_secs(10);
/// The least that a commit is shortened to.
const SHORTEST: usize = 4;

/// Options of `slotd models use`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// A branch, a tag, a commit or its beginning; it must be on this machine
    revision: String,
    /// Start no engine beside the present one: requests wait while the slot loads
    #[arg(long)]
    no_stand_in: bool,
    /// Print the slot as JSON in the end
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let Options { slot, revision, no_stand_in, json } = options;
    client.beside_daemon("`slotd models use`")?;
    let mut changes = client.watch(slot).await?;
    let before = changes.next().await?;
    let wanted = wanted(&before, revision, &inventory(client).await?)?;
    let typed = wanted.to_string();
    if before.model.as_deref() == Some(&typed) {
        return told(&before, *json, &format!("{slot}: {}\n", already(&before, &wanted)));
    }
    let file = &before.source;
    let unread = |error| refused(format!("`{}` cannot be changed here: {error}", file.display()));
    let text = fs::read_to_string(file).map_err(unread)?;
    let edited = with_model(&text, &typed).ok_or_else(|| {
        refused(format!("`{}` has no `model` that could be changed", file.display()))
    })?;
    let beside = if *no_stand_in { None } else { stand_in::open(client, &before, &typed).await? };
    // Whoever has changed it meanwhile is not to lose that.
    if beside.is_some() && fs::read_to_string(file).map_err(unread)? != text {
        let message = format!("`{}` was edited meanwhile and is left as it is", file.display());
        return Err(refused(message));
    }
    // Its engine may have been replaced while the other was started.
    let before = client.slot(slot).await?;
    replace_file(file, &edited).map_err(unread)?;
    let followed = follow(&mut changes, &before, &typed).await;
    // The slot itself serves, or is not going to.
    drop(beside);
    let Some((now, outcome)) = followed? else {
        return Err(refused(format!(
            "`{}` says `{typed}`, and the daemon does not say that it has read it; `slotd status` may",
            file.display()
        )));
    };
    match outcome {
        Outcome::Serves => {
            let after = now.loads_ms.last().map(|ms| format!(" after {}", brief(*ms)));
            let after = after.unwrap_or_default();
            told(&now, *json, &format!("{slot}: serves `{typed}`{after}\n"))
        }
        Outcome::Rests => {
            told(&now, *json, &format!("{slot}: uses `{typed}` from its next load on\n"))
        }
        Outcome::Failed(reason) => {
            // Else the next restart would try it once more.
            let undone = if fs::read_to_string(file).is_ok_and(|text| text == edited) {
                replace_file(file, &text).map_err(unread)?;
                "the profile is as it was"
            } else {
                "the profile was edited meanwhile and is left as it is"
            };
            let model = before.model.as_deref().unwrap_or_default();
            Err(refused(format!("{slot}: stays at `{model}`: {reason}; {undone}")))
        }
    }
}

/// Says that nothing changes. What a branch or tag names may have changed since the engine was started.
fn already(slot: &SlotObject, wanted: &Reference) -> String {
    let is_fixed = wanted.revision.as_deref().is_some_and(is_commit);
    if is_fixed || slot.pid.is_none() {
        return format!("uses `{wanted}` already");
    }
    let name = &slot.slot;
    format!(
        "uses `{wanted}` already; if a pull brought a newer one since it was loaded, `slotd restart {name}` takes that"
    )
}

/// What came of it.
enum Outcome {
    Serves,
    /// It is not loaded.
    Rests,
    Failed(String),
}

/// Finds what the profile is to say.
fn wanted(slot: &SlotObject, revision: &str, known: &Inventory) -> Result<Reference, Failure> {
    let name = &slot.slot;
    let now = slot.model.as_deref().and_then(|model| model.parse::<Reference>().ok());
    let now = now.filter(|_| slot.url.is_none()).ok_or_else(|| {
        refused(format!("the model of `{name}` is no repository of the hub: it has no revisions"))
    })?;
    let asked = format!("{}@{revision}", now.repo);
    let asked: Reference = asked.parse().map_err(|fault| refused(format!("{fault}")))?;
    let of_repo = known.models.iter().filter(|entry| is_of(entry, &now));
    let is_meant = |entry: &&Entry| {
        let commit = entry.revision.as_deref().unwrap_or_default();
        let is_beginning = revision.len() >= SHORTEST && commit.starts_with(revision);
        entry.refs.iter().any(|name| name == revision) || is_beginning
    };
    let found = usual(of_repo.clone().filter(is_meant).collect(), now.quant.as_deref());
    let commits: BTreeSet<&str> =
        found.iter().filter_map(|entry| entry.revision.as_deref()).collect();
    let is_name = found.iter().any(|entry| entry.refs.iter().any(|name| name == revision));
    let revision = match commits.iter().copied().collect::<Vec<_>>().as_slice() {
        // A name goes along with what it names.
        [_] | [] if is_name => asked.revision.clone(),
        [commit] => Some((*commit).to_owned()),
        [] => None,
        [_, _, ..] => {
            let commits = commits.into_iter().collect::<Vec<_>>().join("`, `");
            return Err(refused(format!("`{revision}` could be `{commits}`; say more of it")));
        }
    };
    let wanted = Reference { revision, ..now.clone() };
    if wanted.revision.is_none() {
        let fetched = Reference { revision: asked.revision, ..wanted };
        let there: BTreeSet<String> = of_repo.filter_map(shown).collect();
        let there = there.into_iter().collect::<Vec<_>>().join("`, `");
        return Err(refused(format!(
            "`{fetched}` is not on this machine, fetch it with `slotd pull {fetched}`; there are `{there}`"
        )));
    }
    match found.iter().find(|entry| entry.state != Wholeness::Whole) {
        Some(entry) => {
            let what = entry.gaps.first().map(ToString::to_string).unwrap_or_default();
            Err(refused(format!(
                "`{wanted}` is {}: {what}; fetch it with `slotd pull {wanted}`",
                entry.state.as_str()
            )))
        }
        None => Ok(wanted),
    }
}

/// Tells whether an entry is some revision of what a reference names.
fn is_of(entry: &Entry, reference: &Reference) -> bool {
    let name = entry.model.split_once('@').map_or(&*entry.model, |(name, _)| name);
    let (repo, quant) = name.split_once(':').map_or((name, None), |(repo, it)| (repo, Some(it)));
    let is_quant = match (&reference.quant, quant) {
        (Some(wanted), Some(quant)) => wanted.eq_ignore_ascii_case(quant),
        (Some(_) | None, _) => true,
    };
    entry.source == Source::Hub && repo == reference.repo && is_quant
}

/// Leaves of each revision what is used of it: the others may be incomplete.
fn usual<'a>(found: Vec<&'a Entry>, quant: Option<&str>) -> Vec<&'a Entry> {
    if quant.is_some() {
        return found;
    }
    let chosen_of = |one: &Entry| {
        let same = found.iter().filter(|other| other.revision == one.revision);
        usual_model(&same.filter_map(|other| inside(other)).collect::<Vec<_>>())
    };
    let is_used = |one: &&Entry| chosen_of(one).is_none_or(|chosen| inside(one) == Some(chosen));
    found.iter().copied().filter(is_used).collect()
}

/// The file's path inside its repository.
fn inside(entry: &Entry) -> Option<&str> {
    let before = format!("/snapshots/{}/", entry.revision.as_deref()?);
    entry.path.to_str()?.split_once(&*before).map(|(_, inside)| inside)
}

/// How people call a revision: by its branch or tag, else by its commit.
fn shown(entry: &Entry) -> Option<String> {
    entry.refs.first().or(entry.revision.as_ref()).cloned()
}

/// Waits for what comes of the edit; nothing where the daemon does not take it up.
async fn follow(
    changes: &mut Changes,
    before: &SlotObject,
    typed: &str,
) -> Result<Option<(SlotObject, Outcome)>, Failure> {
    let mut progress = Progress::new(before);
    let mut now = before.clone();
    loop {
        let is_seen = now.model != before.model;
        now = if is_seen {
            changes.next().await?
        } else {
            match timeout(SEEN, changes.next()).await {
                Ok(change) => change?,
                Err(_) => return Ok(None),
            }
        };
        let outcome = judge(before, &now, typed);
        if outcome.is_none() {
            progress.show(&now, Duration::ZERO);
            continue;
        }
        progress.clear();
        return Ok(outcome.map(|outcome| (now, outcome)));
    }
}

fn judge(before: &SlotObject, now: &SlotObject, typed: &str) -> Option<Outcome> {
    let is_new = now.generation > before.generation;
    let edit = now.rejected_edit.as_ref();
    if let Some(edit) = edit.filter(|edit| Some(*edit) != before.rejected_edit.as_ref()) {
        // Said once the old one is back, or has failed too.
        let is_over = ["ready", "failed", "offline"].contains(&&*now.state);
        return is_over.then(|| Outcome::Failed(edit.reason.clone()));
    }
    if now.model.as_deref() != Some(typed) {
        return None;
    }
    match now.state.as_str() {
        "ready" if is_new => Some(Outcome::Serves),
        "failed" if is_new => Some(Outcome::Failed(now.reason.clone().unwrap_or_default())),
        "offline" | "failed" if !is_new => Some(Outcome::Rests),
        _ => None,
    }
}

fn told(slot: &SlotObject, json: bool, sentence: &str) -> Result<Exit, Failure> {
    if json {
        out::json(slot)?;
    } else {
        out::print(sentence)?;
    }
    Ok(Exit::Success)
}

pub(super) fn refused(message: String) -> Failure {
    Failure::Outcome { message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::example;

    fn entry(model: &str, commit: &str, refs: &[&str], state: Wholeness) -> Entry {
        let refs: Vec<_> = refs.iter().map(|name| (*name).to_owned()).collect();
        serde_json::from_value(serde_json::json!({
            "model": model, "source": "hub", "format": "gguf", "kind": "chat",
            "architecture": null, "quantisation": null, "parameters": null,
            "context_length": null, "size_bytes": 1, "files": 1, "revision": commit, "refs": refs,
            "path": "/x", "state": state, "gaps": [], "missing_bytes": null, "slots": [],
            "is_loaded": false,
        }))
        .unwrap()
    }

    fn asked(revision: &str) -> Result<String, String> {
        let slot = SlotObject { model: Some("o/r:Q4@v1".to_owned()), ..example::ready() };
        let whole = Wholeness::Whole;
        let models = vec![
            entry("o/r:Q4", "aaaa1111", &["main", "v1"], whole),
            entry("o/r:Q8", "aaaa2222", &[], whole),
            entry("o/r:Q4@bbbb2222", "bbbb2222", &[], whole),
            entry("o/r:Q4", "bbbb3333", &["v3"], Wholeness::Incomplete),
            entry("o/other:Q4", "cccc1111", &["v9"], whole),
        ];
        let known = Inventory { models, ..Inventory::default() };
        wanted(&slot, revision, &known).map(|it| it.to_string()).map_err(|it| it.to_string())
    }

    #[test]
    fn a_revision_is_named_by_its_branch_or_by_its_commit() {
        assert_eq!(asked("main"), Ok("o/r:Q4@main".to_owned()));
        assert_eq!(asked("bbbb2"), Ok("o/r:Q4@bbbb2222".to_owned()));
        assert_eq!(asked("aaaa"), Ok("o/r:Q4@aaaa1111".to_owned()), "the other is another file");
    }

    #[test]
    fn an_incomplete_quantisation_that_is_not_used_is_in_nobodys_way() {
        let at = |quant: &str, state| {
            let mut entry = entry(&format!("o/r:{quant}"), "aaaa1111", &["v2"], state);
            entry.path = format!("/hub/models--o--r/snapshots/aaaa1111/m-{quant}.gguf").into();
            entry
        };
        let asked = |q4, q8| {
            let slot = SlotObject { model: Some("o/r".to_owned()), ..example::ready() };
            let models = vec![at("Q8_0", q8), at("Q4_K_M", q4)];
            let known = Inventory { models, ..Inventory::default() };
            wanted(&slot, "v2", &known).map(|it| it.to_string()).map_err(|it| it.to_string())
        };
        let (whole, incomplete) = (Wholeness::Whole, Wholeness::Incomplete);
        assert_eq!(asked(whole, incomplete), Ok("o/r@v2".to_owned()));
        assert!(asked(incomplete, whole).unwrap_err().contains("is incomplete"));
    }

    #[test]
    fn a_branch_that_moved_is_taken_by_a_restart() {
        let running = example::ready();
        let said = |revision: &str, slot: &SlotObject| {
            already(slot, &format!("o/r:Q4@{revision}").parse().unwrap())
        };
        insta::assert_snapshot!(said("main", &running), @"uses `o/r:Q4@main` already; if a pull brought a newer one since it was loaded, `slotd restart chat` takes that");
        let down = SlotObject { pid: None, ..running.clone() };
        insta::assert_snapshot!(said("main", &down), @"uses `o/r:Q4@main` already");
        let commit = "a".repeat(40);
        assert_eq!(said(&commit, &running), format!("uses `o/r:Q4@{commit}` already"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_what_can_be_done() {
        insta::assert_snapshot!(asked("v9").unwrap_err(), @"`o/r:Q4@v9` is not on this machine, fetch it with `slotd pull o/r:Q4@v9`; there are `bbbb2222`, `main`, `v3`");
        insta::assert_snapshot!(asked("bbbb").unwrap_err(), @"`bbbb` could be `bbbb2222`, `bbbb3333`; say more of it");
        insta::assert_snapshot!(asked("v3").unwrap_err(), @"`o/r:Q4@v3` is incomplete: ; fetch it with `slotd pull o/r:Q4@v3`");
        assert!(asked("../x").unwrap_err().contains("names no model"));
    }
}

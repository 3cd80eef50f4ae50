//! `slotd plan`: what an edit of profiles would do, before it is made.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{
    client::Client,
    exit::Exit,
    failure::{Failure, listed},
    out,
    text::{brief, counted},
};
use crate::{
    admin::{Action, OtherObject, PlanObject, PlanRequest, PlannedObject},
    config::{
        Context, Fault, Loaded,
        daemon::{Flags, Settings},
        validate,
    },
    spec::{SlotName, difference::Difference},
};

/// Options of `slotd plan`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// A profile, or a directory that stands for all of them; the daemon's own without it
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the profiles were compared with.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Compared {
    /// With what the daemon runs.
    Daemon,
    /// With nothing: no daemon answers.
    Nothing,
}

/// What would happen.
#[derive(Debug, Serialize)]
struct Plan {
    compared_with: Compared,
    slots: Vec<Line>,
    /// Every fault of a file that would be refused.
    faults: Vec<Fault>,
}

/// What would happen to one slot.
#[derive(Debug, Serialize)]
struct Line {
    slot: String,
    action: Action,
    differences: Vec<Difference>,
    in_flight: Option<u32>,
    /// For a person: what comes with it.
    notes: Vec<String>,
}

/// Which slots go when no file is of them.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Scope {
    /// None: single files were looked at.
    Files,
    /// Those whose profile lies in one of these.
    Within(Vec<PathBuf>),
    /// All: the directory stands for all that there are.
    All,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    if options.path.is_none() {
        client.beside_daemon("`slotd plan` without a path")?;
    }
    let daemon = match client.daemon().await {
        Ok(daemon) => Some(daemon),
        Err(Failure::NoDaemon { .. }) => None,
        Err(failure) => return Err(failure),
    };
    let settings = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
    let context = settings.as_ref().map_or_else(|_| Context::default(), Settings::context);
    let own = match (&daemon, settings) {
        (Some(daemon), _) => daemon.profile_dirs.clone(),
        (None, Ok(settings)) => settings.profile_dirs,
        (None, Err(faults)) if options.path.is_none() => return Err(Failure::Settings(faults)),
        (None, Err(_)) => Vec::new(),
    };
    let (paths, scope) = match &options.path {
        None => (own.clone(), Scope::All),
        Some(path) => (vec![path.clone()], scope(path, &own)),
    };
    let loaded = validate(&paths, &context);
    let planned = match daemon {
        Some(_) => Some(client.plan(&request(&loaded)).await?),
        None => None,
    };
    let plan = Plan::of(loaded, planned, &scope);
    if options.json {
        out::json(&plan)?;
    } else {
        if plan.compared_with == Compared::Nothing {
            let socket = client.socket().display();
            out::note(&format!("no daemon answers at {socket}: compared with nothing\n"));
        }
        out::print(plan.text())?;
    }
    Ok(if plan.faults.is_empty() { Exit::Success } else { Exit::Faults })
}

fn request(loaded: &Loaded) -> PlanRequest {
    let profiles = loaded.profiles.iter();
    PlanRequest {
        profiles: profiles.map(|(name, profile)| (name.clone(), (**profile).clone())).collect(),
    }
}

/// One of several directories stands for its own slots alone.
fn scope(path: &Path, own: &[PathBuf]) -> Scope {
    if !path.is_dir() {
        return Scope::Files;
    }
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_own = own.iter().any(|directory| whole(directory) == whole(path));
    if is_own { Scope::Within(vec![whole(path), path.to_owned()]) } else { Scope::All }
}

impl Scope {
    fn holds(&self, source: &Path) -> bool {
        match self {
            Self::Files => false,
            Self::All => true,
            Self::Within(directories) => source.parent().is_some_and(|parent| {
                let whole = parent.canonicalize();
                directories
                    .iter()
                    .any(|own| own == parent || whole.as_ref().is_ok_and(|whole| whole == own))
            }),
        }
    }
}

impl Plan {
    fn of(loaded: Loaded, planned: Option<PlanObject>, scope: &Scope) -> Self {
        let refused: BTreeSet<String> =
            loaded.faults.iter().filter_map(|fault| slot_of(fault.file.as_deref()?)).collect();
        let compared_with = if planned.is_some() { Compared::Daemon } else { Compared::Nothing };
        let PlanObject { slots, others } = planned.unwrap_or_else(|| PlanObject {
            slots: loaded.profiles.values().map(|profile| PlannedObject::new(profile)).collect(),
            others: Vec::new(),
        });
        let mut lines: BTreeMap<String, Line> = slots.iter().map(Line::of).collect();
        let there: BTreeSet<String> = others.iter().map(|other| other.slot.to_string()).collect();
        for other in &others {
            let is_unreadable = loaded.faults.iter().any(|fault| {
                fault.file.is_some() && fault.file.as_deref() == other.source.parent()
            });
            let is_refused = refused.contains(other.slot.as_str()) || is_unreadable;
            if !is_refused && scope.holds(&other.source) {
                let (name, line) = Line::removed(other);
                lines.insert(name, line);
            }
        }
        for name in refused {
            let is_there = there.contains(&name);
            lines.insert(name.clone(), Line::refused(name, is_there));
        }
        Self { compared_with, slots: lines.into_values().collect(), faults: loaded.faults }
    }

    fn text(&self) -> String {
        let widest = |of: fn(&Line) -> usize| self.slots.iter().map(of).max().unwrap_or(0);
        let (name, action) = (widest(|line| line.slot.len()), widest(|line| line.word().len()));
        let mut text = String::new();
        for line in &self.slots {
            let what = line.what().join("; ");
            let shown = format!("{:name$}  {:action$}  {what}", line.slot, line.word());
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        if self.slots.is_empty() {
            text.push_str("there are no profiles\n");
        }
        if !self.faults.is_empty() {
            text.push('\n');
            text.push_str(&listed(&self.faults));
            text.push('\n');
        }
        text
    }
}

impl Line {
    fn of(planned: &PlannedObject) -> (String, Self) {
        let PlannedObject { slot, action, differences, in_flight, .. } = planned;
        let notes = match action {
            _ if planned.has_failed => vec![format!(
                "this edit has failed, the previous profile runs; `slotd restart {slot}` tries it again"
            )],
            Action::New if planned.autostart => vec!["loaded at once".to_owned()],
            Action::New => vec!["loaded by the first request".to_owned()],
            Action::Restart => drains(*in_flight, planned.stop_timeout_ms).into_iter().collect(),
            Action::Update => match planned.state.as_deref() {
                Some("offline" | "failed" | "backoff") => vec!["no engine runs".to_owned()],
                Some(_) | None => vec!["the engine runs on".to_owned()],
            },
            Action::Nothing | Action::Removed | Action::Refused => Vec::new(),
        };
        let line = Self {
            slot: slot.to_string(),
            action: *action,
            differences: differences.clone(),
            in_flight: *in_flight,
            notes,
        };
        (line.slot.clone(), line)
    }

    fn removed(other: &OtherObject) -> (String, Self) {
        let line = Self {
            slot: other.slot.to_string(),
            action: Action::Removed,
            differences: Vec::new(),
            in_flight: other.in_flight,
            notes: drains(other.in_flight, other.stop_timeout_ms).into_iter().collect(),
        };
        (line.slot.clone(), line)
    }

    fn refused(slot: String, is_there: bool) -> Self {
        let stays = "the profile in force stays".to_owned();
        let notes = if is_there { vec![stays] } else { Vec::new() };
        Self { slot, action: Action::Refused, differences: Vec::new(), in_flight: None, notes }
    }

    fn word(&self) -> &'static str {
        match self.action {
            Action::Nothing => "nothing",
            Action::Update => "update",
            Action::Restart if self.in_flight.unwrap_or(0) > 0 => "drain, restart",
            Action::Restart => "restart",
            Action::New => "new",
            Action::Removed if self.in_flight.unwrap_or(0) > 0 => "drain, removed",
            Action::Removed => "removed",
            Action::Refused => "refused",
        }
    }

    fn what(&self) -> Vec<String> {
        let shown = self.differences.iter().filter(|_| self.action != Action::Nothing).map(told);
        shown.chain(self.notes.iter().cloned()).collect()
    }
}

fn told(difference: &Difference) -> String {
    match (&difference.before, &difference.after) {
        (Some(before), Some(after)) => format!("{}: {before} -> {after}", difference.key),
        _ => format!("{} changed", difference.key),
    }
}

fn drains(in_flight: Option<u32>, at_most_ms: u64) -> Option<String> {
    let count = in_flight.filter(|count| *count > 0)?;
    let requests = counted(usize::try_from(count).unwrap_or(usize::MAX), "request");
    Some(format!("{requests} in flight, given {} to end", brief(at_most_ms)))
}

/// The slot that a file is of.
fn slot_of(file: &Path) -> Option<String> {
    let stem = file.file_name()?.to_str()?.strip_suffix(".toml")?;
    stem.parse::<SlotName>().ok().map(|name| name.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use insta::assert_snapshot;

    use super::*;

    fn written(files: &[(&str, &str)]) -> (tempfile::TempDir, Loaded) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let loaded = validate(&[dir.path().to_owned()], &Context::default());
        (dir, loaded)
    }

    fn text(plan: &Plan, dir: &tempfile::TempDir) -> String {
        plan.text().replace(&format!("{}/", dir.path().display()), "")
    }

    fn planned(loaded: &Loaded, slot: &str, action: Action) -> PlannedObject {
        let state = Some("ready".to_owned());
        PlannedObject { action, state, ..PlannedObject::new(&loaded.profiles[slot]) }
    }

    fn difference(key: &str, values: Option<(&str, &str)>) -> Difference {
        let (before, after) =
            values.map(|(before, after)| (before.to_owned(), after.to_owned())).unzip();
        Difference { key: key.to_owned(), before, after, restarts: true }
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let model = "model = \"org/repo\"\n";
        let names = ["busy", "chat", "embed", "failed", "same", "vision"];
        let files: Vec<_> = names.iter().map(|name| format!("{name}.toml")).collect();
        let mut written_files: Vec<_> = files.iter().map(|file| (file.as_str(), model)).collect();
        written_files.push(("broken.toml", "model = \"org/repo\"\ncontxt = 1\nparallel = \"4\"\n"));
        written_files.push(("fresh.toml", "modl = 1\n"));
        let (dir, loaded) = written(&written_files);
        let context = difference("context", Some(("default", "8192")));
        let slots = vec![
            PlannedObject {
                differences: vec![context.clone(), difference("env.HF_TOKEN", None)],
                in_flight: Some(2),
                ..planned(&loaded, "busy", Action::Restart)
            },
            PlannedObject {
                differences: vec![context.clone()],
                in_flight: Some(0),
                ..planned(&loaded, "chat", Action::Restart)
            },
            PlannedObject {
                differences: vec![difference("aliases", Some(("[]", "[\"text-embed\"]")))],
                ..planned(&loaded, "embed", Action::Update)
            },
            PlannedObject {
                differences: vec![context],
                has_failed: true,
                ..planned(&loaded, "failed", Action::Nothing)
            },
            planned(&loaded, "same", Action::Nothing),
            PlannedObject::new(&loaded.profiles["vision"]),
        ];
        let other = |slot: &str, in_flight| OtherObject {
            slot: slot.parse().unwrap(),
            source: dir.path().join(format!("{slot}.toml")),
            in_flight,
            stop_timeout_ms: 10_000,
        };
        let others = vec![other("broken", Some(1)), other("gone", Some(1)), other("old", None)];
        let plan = Plan::of(loaded, Some(PlanObject { slots, others }), &Scope::All);
        assert_snapshot!(text(&plan, &dir), @r#"
        broken  refused         the profile in force stays
        busy    drain, restart  context: default -> 8192; env.HF_TOKEN changed; 2 requests in flight, given 10s to end
        chat    restart         context: default -> 8192
        embed   update          aliases: [] -> ["text-embed"]; the engine runs on
        failed  nothing         this edit has failed, the previous profile runs; `slotd restart failed` tries it again
        fresh   refused
        gone    drain, removed  1 request in flight, given 10s to end
        old     removed
        same    nothing
        vision  new             loaded by the first request

        broken.toml:2:1: contxt: unknown key
          hint: did you mean `context`?
        broken.toml:3:12: parallel: expected a whole number in 1..=256, found a string
          hint: leave the quotes out: `parallel = 4`
        fresh.toml: model: missing, a profile names its model
          hint: add `model = "FILE.gguf"` or `model = "org/repo:QUANT"`
        fresh.toml:1:1: modl: unknown key
          hint: did you mean `model`?
        "#);
    }

    #[test]
    fn without_a_daemon_every_profile_is_new() {
        let resident = "model = \"org/repo\"\nautostart = true\n";
        let (dir, loaded) = written(&[("a.toml", "model = \"org/repo\"\n"), ("b.toml", resident)]);
        let plan = Plan::of(loaded, None, &Scope::All);
        assert_eq!(plan.compared_with, Compared::Nothing);
        assert_snapshot!(text(&plan, &dir), @r"
        a  new  loaded by the first request
        b  new  loaded at once
        ");
    }

    #[test]
    fn a_single_file_takes_no_other_slot_away() {
        let (_dir, loaded) = written(&[("a.toml", "model = \"org/repo\"\n")]);
        let other = OtherObject {
            slot: "b".parse().unwrap(),
            source: "/profiles/b.toml".into(),
            in_flight: None,
            stop_timeout_ms: 0,
        };
        let planned = PlanObject { slots: Vec::new(), others: vec![other] };
        for (scope, count) in [
            (Scope::Files, 0),
            (Scope::All, 1),
            (Scope::Within(vec!["/profiles".into()]), 1),
            (Scope::Within(vec!["/elsewhere".into()]), 0),
        ] {
            let loaded = Loaded { contents: loaded.contents.clone(), ..Loaded::default() };
            let plan = Plan::of(loaded, Some(planned.clone()), &scope);
            assert_eq!(plan.slots.len(), count, "{scope:?}");
        }
    }
}

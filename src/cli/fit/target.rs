//! What is asked about: a slot's profile, or a model without one.

use std::{env, fs, io::ErrorKind, path::Path};

use super::{
    Options,
    sources::{Answering, Sources},
};
use crate::{
    admin::SlotObject,
    cli::{failure::Failure, out},
    config::{Fault, load, parse},
    engine::{EngineKind, Estimate},
    models::{Checked, Checks, Places},
    sensor,
    spec::{
        Endpoint, SlotName,
        ladder::{LadderChoice, Rung},
        memory::{MemoryReading, Need},
        profile::Profile,
    },
    store::{Peaks, read_peaks},
};

/// The name of a slot that is only asked about.
const NOBODY: &str = "fit";

/// What is asked about, with all that its need depends on.
#[derive(Debug)]
pub(super) struct Target {
    /// The slot, where it is one.
    pub(super) slot: Option<SlotName>,
    pub(super) profile: Profile,
    pub(super) checked: Checked,
    /// Best first.
    pub(super) rungs: Vec<Rung>,
    pub(super) has_gpu: bool,
    /// What engines took at most before, where a daemon has kept it.
    pub(super) peaks: Peaks,
    /// What the machine has less of than the profile asks for, one clause.
    pub(super) skipped: Option<String>,
}

impl Target {
    /// Sums each rung up.
    pub(super) fn estimates(&self) -> Vec<(String, Estimate)> {
        let Self { profile, checked, rungs, has_gpu, peaks, .. } = self;
        let estimates = rungs.iter().map(|rung| {
            let peak = checked.peak_key((profile, rung)).and_then(|key| peaks.of(&key));
            let estimate = checked.estimate((profile, rung), *has_gpu).corrected(peak);
            (rung.name().into_owned(), estimate)
        });
        estimates.collect()
    }

    /// Returns what is promised to each rung: what its profile says, else the sum.
    pub(super) fn needs(&self) -> Vec<Need> {
        let said = self.profile.residence.need();
        let estimates = self.estimates().into_iter();
        estimates.map(|(_, sum)| said.clone().unwrap_or_else(|| sum.need())).collect()
    }
}

/// Finds the model and its engine. Blocks on disks and on the engine's `--help`.
pub(super) fn find(
    options: &Options,
    sources: &Sources,
    memory: &MemoryReading,
) -> Result<Target, Failure> {
    let (slot, profile) = profile(options, sources)?;
    let known = slot.as_ref().and_then(|slot| sources.daemon.slot(slot));
    let skipped = if let Some(slot) = known {
        slot.skipped.clone()
    } else {
        let unmet = profile.residence.asks.unmet(memory, sensor::has_gpu());
        unmet.map(|unmet| unmet.clause())
    };
    let profile = changed(&profile, options);
    let own_program = env::current_exe().map_err(Failure::System)?;
    let checks = Checks::new(Places {
        llama_server: sources.llama_server.clone(),
        own_program,
        cache_dir: sources.cache_dir.clone(),
        hub_cache: sources.hub_cache.clone(),
        environment: env::vars_os().collect(),
    });
    // Nothing is started, and so no port is looked at.
    let nowhere = Endpoint::Unix("fit.sock".into());
    let checked = checks.run(&profile, &nowhere).map_err(|refused| {
        // Nothing of what is meant for another machine has to be on this one.
        let elsewhere =
            |unmet: &String| format!("`{}` is skipped on this machine: {unmet}", options.target);
        let message = skipped.as_ref().map_or(refused.reason, elsewhere);
        Failure::Refused { message }
    })?;
    if options.cache_type.is_some() && checked.kind != EngineKind::LlamaServer {
        let message = format!(
            "`--cache-type` is of llama-server only, and the engine of `{}` is {}",
            options.target, checked.kind
        );
        return Err(Failure::Refused { message });
    }
    let has_gpu = sensor::has_gpu() && checked.kind != EngineKind::Command;
    let rungs = checked.ladder(&profile, has_gpu);
    let peaks = read_peaks(&sources.state_dir);
    if fs::read_dir(&sources.state_dir).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied) {
        let folder = sources.state_dir.display();
        out::note(&format!("you may not read `{folder}`: what it took before is left out\n"));
    }
    Ok(Target { slot, profile, checked, rungs, has_gpu, peaks, skipped })
}

/// Finds the profile: of a slot of the daemon, of one in the caller's own folders, or of a model alone.
fn profile(options: &Options, sources: &Sources) -> Result<(Option<SlotName>, Profile), Failure> {
    let named = options.target.parse::<SlotName>().ok();
    if let Some(slot) = named.as_ref().and_then(|name| sources.daemon.slot(name)) {
        return Ok((Some(slot.slot.clone()), of_daemon(slot, sources)?));
    }
    let loaded = load(&sources.profile_dirs, &sources.context);
    if let Some((name, profile)) = named.and_then(|name| loaded.profiles.get_key_value(&name)) {
        if !matches!(sources.daemon, Answering::Nobody) {
            let source = profile.source.display();
            out::note(&format!("the daemon has no slot `{name}`; its profile is {source}\n"));
        }
        return Ok((Some(name.clone()), (**profile).clone()));
    }
    let here = env::current_dir().map_err(Failure::System)?;
    let text = format!("model = {:?}\nengine = {:?}\n", options.target, options.engine);
    let slot = NOBODY.parse().map_err(|_| Failure::Refused { message: NOBODY.to_owned() })?;
    let profile = parse(&text, (&slot, &here.join("fit.toml")), &sources.context);
    match profile {
        Ok(profile) => Ok((None, profile)),
        Err(faults) => {
            Err(Failure::Refused { message: refusal(&options.target, sources, &faults) })
        }
    }
}

/// Reads the profile of a slot where the daemon has it.
fn of_daemon(slot: &SlotObject, sources: &Sources) -> Result<Profile, Failure> {
    let (name, path) = (&slot.slot, &slot.source);
    let text = fs::read_to_string(path).map_err(|error| {
        if error.kind() == ErrorKind::PermissionDenied {
            return Failure::Unreadable { slot: name.clone(), path: path.clone() };
        }
        let path = path.display();
        let message = format!("the profile of `{name}` cannot be read at `{path}`: {error}");
        Failure::Refused { message }
    })?;
    parse(&text, (name, path), &sources.context).map_err(Failure::Settings)
}

/// A word that is neither: what it is not.
fn refusal(target: &str, sources: &Sources, faults: &[Fault]) -> String {
    let why = faults.first().map(|fault| format!(": {}", fault.message)).unwrap_or_default();
    let is_path = Path::new(target).components().count() > 1;
    if is_path {
        return format!("`{target}` is no model{why}");
    }
    let folders = sources.profile_dirs.iter().map(|folder| format!("`{}`", folder.display()));
    let folders = folders.collect::<Vec<_>>().join(", ");
    let slot = match (&sources.daemon, folders.as_str()) {
        (Answering::Nobody, folders) => format!("a slot in {folders}"),
        (_, "") => "a slot of the daemon".to_owned(),
        (_, folders) => format!("a slot of the daemon or in {folders}"),
    };
    format!("`{target}` is neither {slot} nor a model{why}")
}

fn changed(profile: &Profile, options: &Options) -> Profile {
    let rung = Rung {
        name: None,
        gpu_layers: options.gpu_layers,
        context: options.ctx,
        parallel: options.parallel,
        cache_type: options.cache_type.map(Into::into),
    };
    let changed = rung.apply(profile);
    let pinned = Rung { cache_type: rung.cache_type, ..Rung::default() };
    let ladder = match rung.cache_type {
        Some(_) => LadderChoice::Pinned(pinned),
        None => changed.ladder.clone(),
    };
    Profile { ladder, ..changed }
}

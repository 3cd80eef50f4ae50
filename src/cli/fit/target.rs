//! What is asked about: a slot's profile, or a model without one.

use std::{env, path::Path};

use super::Options;
use crate::{
    cli::failure::Failure,
    config::{
        daemon::{Flags, MemorySettings, Settings},
        load, parse,
    },
    engine::{EngineKind, Estimate},
    models::{Checked, Checks, Places, hub_cache_dir},
    sensor,
    spec::{
        Endpoint, SlotName,
        ladder::{LadderChoice, Rung},
        memory::Need,
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
    /// How memory is shared out, by the daemon's settings.
    pub(super) memory: MemorySettings,
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
pub(super) fn find(options: &Options) -> Result<Target, Failure> {
    let settings = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
    let settings = settings.map_err(Failure::Settings)?;
    let (slot, profile) = profile(options, &settings)?;
    let profile = changed(&profile, options);
    let own_program = env::current_exe().map_err(Failure::System)?;
    let checks = Checks::new(Places {
        llama_server: settings.llama_server.clone(),
        own_program,
        cache_dir: settings.cache_dir.clone(),
        hub_cache: hub_cache_dir(&|name| env::var_os(name)),
        environment: env::vars_os().collect(),
    });
    // Nothing is started, and so no port is looked at.
    let nowhere = Endpoint::Unix("fit.sock".into());
    let checked = checks
        .run(&profile, &nowhere)
        .map_err(|refused| Failure::Refused { message: refused.reason })?;
    let has_gpu = sensor::has_gpu() && checked.kind != EngineKind::Command;
    let rungs = checked.ladder(&profile, has_gpu);
    let peaks = read_peaks(&settings.state_dir);
    let memory = settings.memory.clone();
    Ok(Target { slot, profile, checked, rungs, has_gpu, peaks, memory })
}

fn profile(options: &Options, settings: &Settings) -> Result<(Option<SlotName>, Profile), Failure> {
    let loaded = load(&settings.profile_dirs, &settings.context());
    let named = options.target.parse::<SlotName>().ok();
    if let Some((name, profile)) = named.and_then(|name| loaded.profiles.get_key_value(&name)) {
        return Ok((Some(name.clone()), (**profile).clone()));
    }
    let here = env::current_dir().map_err(Failure::System)?;
    let text = format!("model = {:?}\nengine = {:?}\n", options.target, options.engine);
    let slot = NOBODY.parse().map_err(|_| Failure::Refused { message: NOBODY.to_owned() })?;
    let profile = parse(&text, (&slot, &here.join("fit.toml")), &settings.context());
    match profile {
        Ok(profile) => Ok((None, profile)),
        Err(faults) => {
            Err(Failure::Refused { message: refusal(&options.target, settings, &faults) })
        }
    }
}

/// A word that is neither: what it is not.
fn refusal(target: &str, settings: &Settings, faults: &[crate::config::Fault]) -> String {
    let folders: Vec<_> =
        settings.profile_dirs.iter().map(|folder| format!("`{}`", folder.display())).collect();
    let why = faults.first().map(|fault| format!(": {}", fault.message)).unwrap_or_default();
    let is_path = Path::new(target).components().count() > 1;
    if is_path {
        return format!("`{target}` is no model{why}");
    }
    format!("`{target}` is neither a slot in {} nor a model{why}", folders.join(", "))
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

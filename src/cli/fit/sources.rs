//! Where a slot's profile, models, engines and peaks are: where the daemon has them that answers, else where one
//! that is started here would.

use std::{env, path::PathBuf};

use crate::{
    admin::SlotObject,
    cli::{client::Client, failure::Failure, out},
    config::{
        Context,
        daemon::{Flags, MemorySettings, Settings},
    },
    models::hub_cache_dir,
    spec::SlotName,
};

/// What the meaning of a profile and the need of its engine depend on.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) context: Context,
    pub(super) llama_server: Option<PathBuf>,
    pub(super) cache_dir: PathBuf,
    pub(super) hub_cache: Option<PathBuf>,
    pub(super) state_dir: PathBuf,
    /// How memory is shared out; of a daemon's settings the limit alone.
    pub(super) memory: MemorySettings,
    /// The caller's own folders of profiles.
    pub(super) profile_dirs: Vec<PathBuf>,
    pub(super) daemon: Answering,
}

/// The daemon that answers, if one does.
#[derive(Debug)]
pub(super) enum Answering {
    /// None does.
    Nobody,
    /// One whose files are those of this machine, with its slots.
    Here(Vec<SlotObject>),
}

impl Sources {
    /// Asks the daemon.
    pub(super) async fn find(client: &Client) -> Result<Self, Failure> {
        let own = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
        let daemon = match client.daemon().await {
            Ok(daemon) => daemon,
            Err(failure @ (Failure::NoDaemon { .. } | Failure::Denied { .. })) => {
                if matches!(failure, Failure::Denied { .. }) {
                    out::note(&format!("{failure}; counted as without a daemon\n"));
                }
                return own.map(Self::of).map_err(Failure::Settings);
            }
            Err(failure) => return Err(failure),
        };
        let slots = client.slots().await?;
        let memory =
            MemorySettings { limit: daemon.memory_limit_bytes, ..MemorySettings::default() };
        let (state_dir, answering) = (daemon.state_dir, Answering::Here(slots));
        // An older daemon does not tell.
        let Some(places) = daemon.places else {
            let own = own.map(Self::of).map_err(Failure::Settings)?;
            return Ok(Self { state_dir, memory, daemon: answering, ..own });
        };
        Ok(Self {
            context: Context { model_dirs: places.model_dirs, home: places.home, rules: None },
            llama_server: places.llama_server,
            cache_dir: places.cache_dir,
            hub_cache: places.hub_cache,
            state_dir,
            memory,
            profile_dirs: own.map(|own| own.profile_dirs).unwrap_or_default(),
            daemon: answering,
        })
    }

    fn of(settings: Settings) -> Self {
        Self {
            context: settings.context(),
            llama_server: settings.llama_server,
            cache_dir: settings.cache_dir,
            hub_cache: hub_cache_dir(&|name| env::var_os(name)),
            state_dir: settings.state_dir,
            memory: settings.memory,
            profile_dirs: settings.profile_dirs,
            daemon: Answering::Nobody,
        }
    }
}

impl Answering {
    /// Returns the daemon's slots; none without one.
    pub(super) fn slots(&self) -> &[SlotObject] {
        match self {
            Self::Nobody => &[],
            Self::Here(slots) => slots,
        }
    }

    /// Finds a slot of the daemon.
    pub(super) fn slot(&self, name: &SlotName) -> Option<&SlotObject> {
        self.slots().iter().find(|slot| slot.slot == *name)
    }
}

//! Profiles on disk: read at start, read again when they change or on `SIGHUP`.
//!
//! A file with a fault keeps the profile that worked, and the fault is told once.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::{
    config::{self, Config, Fault},
    mailbox::Mailbox,
    spec::{SlotName, profile::Profile},
    supervisor::Event,
};

/// The profiles in force, and what is wrong with those that are not.
#[derive(Debug)]
pub(super) struct Profiles {
    dirs: Vec<PathBuf>,
    context: config::Context,
    in_force: BTreeMap<SlotName, Arc<Profile>>,
    faults: Arc<ArcSwap<Vec<Fault>>>,
}

impl Profiles {
    /// Prepares to read `dirs`; nothing is read yet.
    pub(super) fn new(dirs: Vec<PathBuf>, context: config::Context) -> Self {
        let faults = Arc::new(ArcSwap::from_pointee(Vec::new()));
        Self { dirs, context, in_force: BTreeMap::new(), faults }
    }

    /// Returns the faults in force, for the control API.
    pub(super) fn faults(&self) -> Arc<ArcSwap<Vec<Fault>>> {
        Arc::clone(&self.faults)
    }

    /// Reads the directories and tells the core, if anything changed.
    pub(super) async fn reload(&mut self, mailbox: &Mailbox) {
        let (dirs, context) = (self.dirs.clone(), self.context.clone());
        // Reading may hang on a dead mount: not on the driver's threads.
        let Ok(loaded) = spawn_blocking(move || Config::load(&dirs, &context)).await else {
            return;
        };
        let (profiles, faults) = config::merge(&self.in_force, loaded);
        self.tell_faults(faults);
        if profiles != self.in_force {
            info!(slots = profiles.len(), "profiles applied");
            self.in_force.clone_from(&profiles);
            mailbox.tell(Event::ProfilesChanged { profiles }).await;
        }
    }

    fn tell_faults(&self, faults: Vec<Fault>) {
        let known = self.faults.load();
        for fault in faults.iter().filter(|fault| !known.contains(fault)) {
            error!(fault = %fault, "profile not applied");
        }
        if faults.is_empty() && !known.is_empty() {
            info!("all profiles are valid again");
        }
        self.faults.store(Arc::new(faults));
    }
}

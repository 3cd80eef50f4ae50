//! Profiles on disk: read at start, read again when they change or on `SIGHUP`.
//!
//! A file with a fault keeps the profile that worked, and the fault is told once.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, info};

use super::stand_ins::{Asked, StandIns};
use crate::{
    config::{self, Context, Fault, Keeper},
    mailbox::Mailbox,
    spec::rule::Rule,
    supervisor::{Event, Snapshot},
};

/// The profiles in force, and what is wrong with those that are not.
#[derive(Debug)]
pub(super) struct Profiles {
    directories: Vec<PathBuf>,
    context: Context,
    keeper: Keeper,
    stand_ins: StandIns,
    /// The core has heard of profiles, be there none.
    is_told: bool,
    faults: Arc<ArcSwap<Vec<Fault>>>,
    rules: watch::Sender<Arc<[Rule]>>,
}

impl Profiles {
    /// Prepares to read `directories`; nothing is read yet. `logs` is where engines' logs are kept.
    pub(super) fn new(directories: Vec<PathBuf>, context: Context, logs: PathBuf) -> Self {
        let stand_ins = StandIns::new(logs);
        let faults = Arc::new(ArcSwap::from_pointee(Vec::new()));
        let (keeper, rules) = (Keeper::default(), watch::Sender::new(Arc::from([])));
        Self { directories, context, keeper, stand_ins, is_told: false, faults, rules }
    }

    /// Returns the rules in force.
    pub(super) fn rules(&self) -> watch::Receiver<Arc<[Rule]>> {
        self.rules.subscribe()
    }

    /// Takes what the file of rules says; one with a fault leaves them as they are.
    fn take_rules(&self, read: Option<Vec<Rule>>) {
        let Some(read) = read else { return };
        self.rules.send_if_modified(|rules| {
            let is_news = **rules != *read;
            if is_news {
                info!(rules = read.len(), "rules applied");
                *rules = read.into();
            }
            is_news
        });
    }

    /// Returns the faults in force, for the control API.
    pub(super) fn faults(&self) -> Arc<ArcSwap<Vec<Fault>>> {
        Arc::clone(&self.faults)
    }

    /// Tells whether every slot that should be there is.
    pub(super) fn are_all_in(&self, snapshot: &Snapshot) -> bool {
        self.keeper.profiles().keys().all(|slot| snapshot.slots.contains_key(slot))
    }

    /// Reads the directories and tells the core what is in force; returns how many slots that is.
    pub(super) async fn reload(&mut self, mailbox: &Mailbox) -> usize {
        let (directories, context) = (self.directories.clone(), self.context.clone());
        // Reading may hang on a dead mount: not on the driver's threads.
        let reading = spawn_blocking(move || config::load(&directories, &context));
        let Ok(mut loaded) = reading.await else { return self.keeper.profiles().len() };
        self.take_rules(loaded.rules.take());
        let before = self.keeper.profiles().clone();
        let had_faults = !self.keeper.faults().is_empty();
        for fault in self.keeper.apply(loaded) {
            if fault.file.is_some() && fault.file == self.context.rules {
                error!(%fault, "rules not applied");
            } else {
                error!(%fault, "profile not applied");
            }
        }
        if had_faults && self.keeper.faults().is_empty() {
            info!("all profiles and rules are valid again");
        }
        self.faults.store(Arc::new(self.keeper.faults().to_vec()));
        let profiles = self.keeper.profiles();
        if *profiles != before || !self.is_told {
            self.is_told = true;
            let slots = profiles.len();
            info!(slots, "profiles applied");
            self.tell(mailbox).await;
        }
        self.keeper.profiles().len()
    }

    /// Puts a slot beside another, as it is wished for.
    pub(super) async fn put_beside(&mut self, asked: Asked, mailbox: &Mailbox) {
        if let Some(made) = self.stand_ins.make(asked, self.keeper.profiles()) {
            self.tell(mailbox).await;
            made.tell();
        }
    }

    /// Waits until nobody holds on to one that stands in for another, or until there is a place for one, which it
    /// returns; [`Self::take_turn`] follows. Cancel-safe.
    pub(super) async fn stand_in_turn(&mut self) -> Option<Asked> {
        self.stand_ins.turn().await
    }

    /// Does what there was to wait for.
    pub(super) async fn take_turn(&mut self, turn: Option<Asked>, mailbox: &Mailbox) {
        match turn {
            Some(asked) => self.put_beside(asked, mailbox).await,
            None => self.tell(mailbox).await,
        }
    }

    /// Tells the core which slots there are to be.
    pub(super) async fn tell(&self, mailbox: &Mailbox) {
        let profiles = self.stand_ins.added_to(self.keeper.profiles().clone());
        mailbox.tell(Event::ProfilesChanged { profiles }).await;
    }
}

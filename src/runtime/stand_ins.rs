//! Slots that stand in for others while those go over to another revision of their model.
//!
//! To the core they are slots like any other, with a profile that no file has. Each is there for as long as
//! whoever asked for it holds on; nothing of it is remembered, and no next daemon has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::pending,
    path::PathBuf,
    sync::Arc,
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::{self, NoStandIn, StandIn},
    models::pull::Reference,
    spec::{
        SlotName,
        profile::{ModelSource, OnExit, Profile, Pull},
        residence::{Residence, WhenFull},
    },
};

/// How many wishes may wait.
const MOST_WISHES: usize = 16;

/// A wish for a slot beside another.
#[derive(Debug)]
pub(super) struct Asked {
    slot: SlotName,
    model: String,
    answer: oneshot::Sender<Result<StandIn, NoStandIn>>,
}

/// Those that are there.
#[derive(Debug)]
pub(super) struct StandIns {
    logs: PathBuf,
    profiles: BTreeMap<SlotName, Arc<Profile>>,
    /// What is waited for.
    turns: FuturesUnordered<BoxFuture<'static, Turn>>,
    /// Every one that there was in this life of the daemon.
    known: BTreeSet<SlotName>,
    /// Those whose place is being cleared: they are wished for, and not there yet.
    clearing: BTreeSet<SlotName>,
}

/// What may come about.
#[derive(Debug)]
enum Turn {
    /// Nobody holds on to this one.
    Ended(SlotName),
    /// There is a place for this one.
    Cleared(Asked),
}

/// Makes the way on which they are asked for.
pub(super) fn channel() -> (admin::StandIns, mpsc::Receiver<Asked>) {
    let (wishes, asked) = mpsc::channel(MOST_WISHES);
    let ask = move |slot, model| {
        let wishes = wishes.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            // Whoever takes wishes has ended where one cannot be sent, or is not answered.
            let sent = wishes.send(Asked { slot, model, answer }).await;
            sent.map_err(|_| NoStandIn::Ending)?;
            answered.await.map_err(|_| NoStandIn::Ending)?
        }
        .boxed()
    };
    (Arc::new(ask), asked)
}

impl StandIns {
    /// Begins without any. `logs` is where engines' logs are kept.
    pub(super) fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            profiles: BTreeMap::new(),
            turns: FuturesUnordered::new(),
            known: BTreeSet::new(),
            clearing: BTreeSet::new(),
        }
    }

    /// Adds them to the profiles on disk; those of slots that are gone go too.
    pub(super) fn added_to(
        &self,
        mut profiles: BTreeMap<SlotName, Arc<Profile>>,
    ) -> BTreeMap<SlotName, Arc<Profile>> {
        for (name, profile) in &self.profiles {
            if profiles.contains_key(&profile.slot) {
                profiles.insert(name.clone(), Arc::clone(profile));
            }
        }
        profiles
    }

    /// Makes one as it is wished for. Whoever asked is told by [`Made::tell`], once the core knows of it. The
    /// first of its name comes when [`Self::turn`] gives its wish back: what is in its place goes before.
    pub(super) fn make(
        &mut self,
        asked: Asked,
        profiles: &BTreeMap<SlotName, Arc<Profile>>,
    ) -> Option<Made> {
        let Asked { slot, model, answer } = asked;
        let profile = match self.profile(&slot, &model, profiles) {
            Ok(profile) => profile,
            Err(why) => {
                // Whoever asked may have left.
                drop(answer.send(Err(why)));
                return None;
            }
        };
        let name = slot.stand_in();
        if self.known.insert(name.clone()) {
            let (logs, asked) = (self.logs.join(name.as_str()), Asked { slot, model, answer });
            self.clearing.insert(name);
            self.turns.push(
                async {
                    forget(logs).await;
                    Turn::Cleared(asked)
                }
                .boxed(),
            );
            return None;
        }
        info!(slot = %name, model, "slot stands in");
        self.profiles.insert(name.clone(), Arc::new(profile));
        let (held, named) = (CancellationToken::new(), name.clone());
        let ended = held.clone().cancelled_owned();
        self.turns.push(ended.map(|()| Turn::Ended(named)).boxed());
        Some(Made { stand_in: StandIn { slot: name, stay: held.drop_guard() }, answer })
    }

    /// Waits until nobody holds on to one, and lets go of it, or until there is a place for one, and returns
    /// the wish for it. Cancel-safe.
    pub(super) async fn turn(&mut self) -> Option<Asked> {
        match self.turns.next().await {
            Some(Turn::Ended(name)) => {
                self.profiles.remove(&name);
                None
            }
            Some(Turn::Cleared(asked)) => {
                self.clearing.remove(&asked.slot.stand_in());
                Some(asked)
            }
            None => pending().await,
        }
    }

    /// Makes the profile of one out of that of its slot.
    fn profile(
        &self,
        slot: &SlotName,
        model: &str,
        profiles: &BTreeMap<SlotName, Arc<Profile>>,
    ) -> Result<Profile, NoStandIn> {
        let unfit = |why: &str| Err(NoStandIn::Unfit(format!("`{slot}` {why}")));
        let Some(profile) = profiles.get(slot) else { return unfit("has no profile of its own") };
        let model: Reference =
            model.parse().map_err(|fault| NoStandIn::BadModel(format!("{fault}")))?;
        if profile.is_external() {
            return unfit("has an engine that somebody else runs");
        }
        if !profile.stop_command.is_empty() {
            return unfit("has a `stop_command`, which could end both of two engines");
        }
        let name = slot.stand_in();
        if self.profiles.contains_key(&name) || self.clearing.contains(&name) {
            return unfit("goes over to another revision already");
        }
        let Reference { repo, quant, revision } = model;
        Ok(Profile {
            model: Some(ModelSource::Hub { repo, quant, revision }),
            autostart: false,
            essential: false,
            // Whether it starts is what is to be found out.
            max_restarts: 0,
            idle_timeout: None,
            on_exit: OnExit::Stop,
            pull: Pull::Never,
            residence: Residence {
                pinned: false,
                when_full: WhenFull::Refuse,
                ..profile.residence.clone()
            },
            ..(**profile).clone()
        })
    }
}

/// Takes away what an earlier daemon's one of that name has written: its generations begin again.
async fn forget(folder: PathBuf) {
    let removed = spawn_blocking(move || match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err((folder, error)),
        Ok(()) | Err(_) => Ok(()),
    });
    if let Ok(Err((path, error))) = removed.await {
        warn!(path = %path.display(), %error, "logs of an earlier engine not removed");
    }
}

/// One that whoever asked for it has yet to hear of.
#[derive(Debug)]
pub(super) struct Made {
    stand_in: StandIn,
    answer: oneshot::Sender<Result<StandIn, NoStandIn>>,
}

impl Made {
    /// Hands it out. One who has left lets go of it with that.
    pub(super) fn tell(self) {
        drop(self.answer.send(Ok(self.stand_in)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_the_disk_while_logs_of_an_earlier_engine_go() {
        let dir = tempfile::tempdir().unwrap();
        let slot: SlotName = "chat".parse().unwrap();
        let logs = dir.path().join(slot.stand_in().as_str());
        fs::create_dir(&logs).unwrap();
        let profile: Profile = serde_json::from_value(json!({
            "slot": slot, "source": "slot.toml", "engine": "Auto", "args": [], "env": {},
            "aliases": [], "capabilities": [], "autostart": false, "essential": false,
            "max_restarts": 3,
            "start_timeout": { "secs": 60, "nanos": 0 }, "stop_timeout": { "secs": 9, "nanos": 0 },
        }))
        .unwrap();
        let profiles = BTreeMap::from([(slot.clone(), Arc::new(profile))]);
        let mut stand_ins = StandIns::new(dir.path().to_path_buf());
        let wish = || {
            let (answer, answered) = oneshot::channel();
            (Asked { slot: slot.clone(), model: "org/repo@new".to_owned(), answer }, answered)
        };

        let ((first, mut told), (second, refused)) = (wish(), wish());
        assert!(stand_ins.make(first, &profiles).is_none(), "it is not there yet");
        assert!(stand_ins.make(second, &profiles).is_none());
        assert!(matches!(refused.await, Ok(Err(NoStandIn::Unfit(_)))), "one of a name alone");
        assert_eq!(stand_ins.added_to(profiles.clone()), profiles);
        assert!(told.try_recv().is_err(), "nobody was told of it");

        let wish = stand_ins.turn().await.unwrap();
        assert!(!logs.exists());
        let made = stand_ins.make(wish, &profiles).unwrap();
        assert_eq!(stand_ins.added_to(profiles.clone()).len(), 2);
        made.tell();
        drop(told.await);
        assert!(stand_ins.turn().await.is_none());
        assert_eq!(stand_ins.added_to(profiles.clone()), profiles);
    }
}

//! Looks at whether the disks take what slotd writes, and tells each change once.
//!
//! A disk that is well is asked for its figures alone. A file is written where those look bad, and
//! until it can be written again: only that says how a full or read-only disk, a quota or a missing
//! permission ends.

use std::{convert::Infallible, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{clock, pressure::Reader};
use crate::{
    admin::StorageObject,
    store::{self, Taking},
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// What takes no writes at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Storage(watch::Sender<Vec<StorageObject>>);

/// What slotd writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    State,
    StateFile,
    EngineLogs,
    Cache,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::StateFile => "state file",
            Self::EngineLogs => "engine logs",
            Self::Cache => "cache",
        }
    }

    fn costs(self) -> &'static str {
        match self {
            Self::State => "long uploads are refused, and what is new is not remembered",
            Self::StateFile => "what is new would not be remembered over a restart",
            Self::EngineLogs => "what engines write is lost",
            Self::Cache => "models are read again for each look at them",
        }
    }
}

impl Storage {
    /// Shows it to whoever asks.
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<StorageObject>> {
        self.0.subscribe()
    }

    /// Takes in how a write went; says whether that is news.
    pub(super) fn note(&self, place: Place, path: PathBuf, fault: Option<String>) -> bool {
        self.0.send_if_modified(|failing| {
            let found = failing.iter().position(|other| other.place == place.name());
            match (found, fault) {
                (None, None) => return false,
                (Some(at), None) => drop(failing.remove(at)),
                // The same trouble in other words began when it began.
                (Some(at), Some(reason)) => {
                    if let Some(known) = failing.get_mut(at) {
                        known.reason = reason;
                    }
                    return false;
                }
                (None, Some(reason)) => failing.push(StorageObject {
                    place: place.name().to_owned(),
                    path,
                    reason,
                    since_unix_ms: clock::unix_ms(),
                    costs: place.costs().to_owned(),
                }),
            }
            true
        })
    }
}

/// Looks until it is dropped. A disk that does not answer changes nothing, and keeps nobody else waiting.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn watch(storage: Storage, folders: Vec<(Place, PathBuf)>) -> Infallible {
    let mut watched: Vec<_> = folders
        .into_iter()
        .map(|(place, folder)| (place, folder, Taking::Files, Reader::default()))
        .collect();
    loop {
        let looking = watched.iter_mut().map(|(place, folder, before, reader)| async move {
            let (here, was) = (folder.clone(), *before);
            let looked = reader.read(move || store::takes_files(&here, was)).await;
            (*place, &*folder, before, looked)
        });
        for (place, folder, before, looked) in join_all(looking).await {
            let Some(looked) = looked else { continue };
            *before = if looked.is_ok() { Taking::Files } else { Taking::Nothing };
            let fault = looked.err().map(|error| error.to_string());
            if !storage.note(place, folder.clone(), fault.clone()) {
                continue;
            }
            let (place, folder) = (place.name(), folder.display());
            if let Some(reason) = fault {
                warn!(place, %folder, reason, "folder takes no files, slots go on");
            } else {
                info!(place, %folder, "folder takes files again");
            }
        }
        sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_when_it_begins_and_when_it_ends() {
        let storage = Storage::default();
        let folder = PathBuf::from("/var/lib/slotd");
        let note = |fault: Option<&str>| {
            storage.note(Place::State, folder.clone(), fault.map(str::to_owned))
        };
        assert!(!note(None), "it was well before");
        assert!(note(Some("full")));
        assert!(!note(Some("full")) && !note(Some("read-only")));
        let shown = storage.subscribe().borrow().clone();
        assert_eq!((shown.len(), shown[0].reason.as_str()), (1, "read-only"));
        assert!(note(None) && storage.subscribe().borrow().is_empty());
    }
}

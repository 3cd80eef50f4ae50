//! `slotd pull` against a hub on loopback that does what it is told.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a broken set-up is a failed test"
)]

mod between;
mod damage;
mod daemon;
mod faults;
mod once;
mod proxies;
mod revisions;
mod secrets;
mod world;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{process::Command, time::timeout};
use world::{End, Hub, run, slotd};

/// The longest that anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// A folder of its own.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("slotd-pull-").tempdir().unwrap()
}

/// A hub and an empty cache.
pub(crate) struct World {
    pub(crate) hub: Hub,
    cache: TempDir,
    _repos: TempDir,
}

impl World {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let repos = scratch();
        let hub = Hub::start(Path::new(env!("CARGO_BIN_EXE_slotd")), repos.path());
        for (path, content) in files {
            hub.put(path, content);
        }
        Self { hub, cache: scratch(), _repos: repos }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.cache.path().join("hub")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = slotd(Path::new(env!("CARGO_BIN_EXE_slotd")), &self.hub, &self.cache());
        command.args(arguments);
        command
    }

    /// Runs `slotd pull` to its end.
    pub(crate) async fn pull(&self, arguments: &[&str]) -> End {
        let mut command = self.command(&["pull"]);
        command.args(arguments);
        timeout(DEADLINE, run(command)).await.expect("the pull ends")
    }
}

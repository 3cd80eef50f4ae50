//! Pulls of a large model under everything that can go wrong, and how fast they are; `make pull-trials`.
//!
//! `pull_trials [--size BYTES]` serves six files from a hub on loopback and pulls them: killed twenty times,
//! cut, lied to, redirected, made to wait, with a disk that fills up (on a tmpfs, where this user may
//! mount one), by three at once. Then the same files by `curl` and by `hf download`, where they are
//! there (`SLOTD_TEST_HF` names the program `hf`). Prints a table; fails if one pull does not end whole
//! or does not say why.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program of tests: it prints, reads clocks, and stops at what it did not expect"
)]

mod readers;
mod speed;
mod trials;
mod world;

use std::{env, path::PathBuf, process::ExitCode};

use tempfile::TempDir;
use world::Hub;

/// What all trials work with.
pub(crate) struct Bench {
    pub(crate) slotd: PathBuf,
    pub(crate) hub: Hub,
    pub(crate) size: u64,
    pub(crate) room: TempDir,
}

/// Where the files are.
pub(crate) const REPO: &str = "o/r";
const FILES: u64 = 6;

#[tokio::main]
async fn main() -> ExitCode {
    let size = match size() {
        Ok(size) => size,
        Err(fault) => {
            println!("{fault}");
            return ExitCode::from(64);
        }
    };
    let program = env::current_exe().unwrap();
    let slotd = program.parent().and_then(|folder| folder.parent()).unwrap().join("slotd");
    let room = tempfile::tempdir().unwrap();
    let repos = room.path().join("repos");
    let hub = Hub::start(&slotd, &repos);
    println!("{FILES} files of {size} bytes in all, from a hub on loopback\n");
    for part in 1..=FILES {
        let length = usize::try_from(size / FILES).unwrap();
        let name = format!("{REPO}/m-Q4_K_M-{part:05}-of-{FILES:05}.gguf");
        hub.put(&name, &world::content(part, length));
    }
    let size = size / FILES * FILES;
    let bench = Bench { slotd, hub, size, room };
    trials::all(&bench).await;
    readers::all(&bench).await;
    speed::all(&bench).await;
    println!("\nevery pull ended whole, or said why");
    ExitCode::SUCCESS
}

fn size() -> Result<u64, String> {
    let mut arguments = env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Ok(2 << 30),
        (Some("--size"), Some(size)) => size.parse().map_err(|_| "a size in bytes".to_owned()),
        _ => Err("usage: pull_trials [--size BYTES]".to_owned()),
    }
}

impl Bench {
    /// An empty cache; the one before is gone.
    pub(crate) fn cache(&self) -> PathBuf {
        let cache = self.room.path().join("cache");
        drop(std::fs::remove_dir_all(&cache));
        cache
    }

    pub(crate) fn command(&self, cache: &std::path::Path) -> tokio::process::Command {
        let mut command = world::slotd(&self.slotd, &self.hub, cache);
        command.args(["pull", REPO]);
        command
    }
}

//! The faults, one a step, drawn by the seed.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::sleep;

use super::{Daemon, Random, processes};

/// What is still to be mended, and what was done.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    edits: u64,
    done: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(crate) async fn step(&mut self, daemon: &mut Daemon, random: &mut Random) {
        // Of `hammered` nobody ever orders or edits anything.
        let slots: Vec<_> = daemon.slots().into_iter().filter(|slot| slot != "hammered").collect();
        let slot = random.of(&slots).clone();
        let name = match random.below(100) {
            0..20 => self.signal_engine(daemon, random).await,
            20..32 => order(daemon, &slot, "load").await,
            32..44 => order(daemon, &slot, "unload").await,
            44..52 => order(daemon, &slot, "restart").await,
            52..64 => {
                self.edits += 1;
                daemon.write_profile(&slot, self.edits + 1);
                "good edit"
            }
            64..74 => {
                self.edits += 1;
                let texts = [
                    "engine = \"comand\"\n",
                    "model = \"x",
                    "",
                    "command = []\nengine = \"command\"\n",
                ];
                daemon.write(&slot, &format!("{}# {}\n", random.of(&texts), self.edits));
                "bad edit"
            }
            74..78 => {
                drop(fs::remove_file(daemon.profile(&slot)));
                "removed profile"
            }
            78..84 => {
                daemon.signal(Signal::SIGHUP);
                "SIGHUP"
            }
            84..88 => {
                daemon.signal(Signal::SIGSTOP);
                sleep(Duration::from_millis(random.below(400))).await;
                daemon.signal(Signal::SIGCONT);
                "suspended daemon"
            }
            88..92 => block_state(daemon),
            92..96 => unblock_state(daemon),
            96..98 => {
                daemon.die(Signal::SIGKILL).await;
                daemon.check_empty().await;
                daemon.live().await;
                "SIGKILL of the daemon"
            }
            98 => {
                daemon.die(Signal::SIGKILL).await;
                daemon.live().await;
                "SIGKILL and at once the next"
            }
            _ => {
                daemon.die(Signal::SIGTERM).await;
                daemon.check_empty().await;
                daemon.live().await;
                "SIGTERM of the daemon"
            }
        };
        *self.done.entry(name).or_default() += 1;
    }

    async fn signal_engine(&self, daemon: &Daemon, random: &mut Random) -> &'static str {
        let engines = processes::of_run(daemon.nonce());
        let engines: Vec<_> = engines.iter().filter(|process| process.engine.is_some()).collect();
        if engines.is_empty() {
            return "no engine";
        }
        let pid = Pid::from_raw(random.of(&engines).pid);
        let signals =
            [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGTERM, Signal::SIGSTOP];
        let signal = *random.of(&signals);
        // It may have ended by itself.
        kill(pid, signal).ok();
        if signal == Signal::SIGSTOP {
            sleep(Duration::from_millis(random.below(400))).await;
            kill(pid, Signal::SIGCONT).ok();
        }
        signal.as_str()
    }

    /// Takes back what would keep slots from coming to rest.
    pub(crate) async fn mend(&mut self, daemon: &mut Daemon) {
        unblock_state(daemon);
        for slot in daemon.slots() {
            self.edits += 1;
            daemon.write_profile(&slot, self.edits + 1);
        }
        // An edit is taken up within a tenth of a second or so.
        sleep(Duration::from_secs(1)).await;
    }

    pub(crate) fn tell(&self) {
        for (fault, count) in &self.done {
            println!("  faults: {count} × {fault}");
        }
    }
}

async fn order(daemon: &Daemon, slot: &str, verb: &'static str) -> &'static str {
    daemon.order(slot, verb).await;
    verb
}

/// The state file cannot be written, and new engines have no place for their logs. A file and the
/// directory change places in one step: the daemon makes one where it finds none.
fn block_state(daemon: &Daemon) -> &'static str {
    let state = daemon.dir.path().join("state");
    drop(fs::create_dir(state.join("state.json.new")));
    if state.join("logs").is_dir() {
        fs::write(state.join("logs.away"), "in the way").unwrap();
        change_places(&state);
    }
    "state blocked"
}

fn unblock_state(daemon: &Daemon) -> &'static str {
    let state = daemon.dir.path().join("state");
    drop(fs::remove_dir(state.join("state.json.new")));
    if state.join("logs").is_file() {
        change_places(&state);
        fs::remove_file(state.join("logs.away")).unwrap();
    }
    "state unblocked"
}

fn change_places(state: &Path) {
    let [logs, away] = ["logs", "logs.away"].map(|name| state.join(name));
    renameat2(AT_FDCWD, &logs, AT_FDCWD, &away, RenameFlags::RENAME_EXCHANGE).unwrap();
}

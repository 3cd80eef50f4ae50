//! Puts the program on disk in the place of the running one, in the same process.
//!
//! The process id, the sockets and the engines that are kept stay; everything else is made anew by
//! the next image. See `docs/decisions/0005-upgrade-in-place.md`.

use std::{
    env, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::Duration,
};

use tokio::{process::Command, sync::oneshot, time::timeout};

use super::{listen::Kept, stderr::finish_log};
use crate::process::{STALE_AFTER_HANDOVER, restore_file_limit};

/// How long the new program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody asks for an upgrade and wants to hear what the new program calls itself, or why not.
pub(super) type Asked = oneshot::Sender<Result<String, String>>;

/// The program to go on with.
#[derive(Clone, Debug)]
pub(super) struct Next {
    /// Where this program was when it started; what lies there may be another one by now.
    program: PathBuf,
}

impl Next {
    /// Takes note of where this program lies. Called at the start: later the kernel may only say that
    /// it was deleted.
    pub(super) fn of_this_program() -> io::Result<Self> {
        Ok(Self { program: env::current_exe()? })
    }

    /// Returns where the program lies.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Asks the program on disk for its version: one that cannot run must not end one that does.
    ///
    /// # Errors
    /// One sentence for a person.
    pub(super) async fn check(&self) -> Result<String, String> {
        let shown = self.program.display();
        let asked = Command::new(&self.program)
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let answer = match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(format!("`{shown}` cannot be run: {error}")),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Err(format!("`{shown} --version` did not end within {seconds} s"));
            }
        };
        let version = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        if answer.status.success() && version.starts_with("slotd ") {
            return Ok(version);
        }
        let said: String = version.chars().take(100).collect();
        Err(format!("`{shown}` is no slotd that runs: `--version` said `{said}`"))
    }

    /// Becomes the program on disk, with the same arguments. Returns only if that failed.
    pub(super) fn become_it(&self, kept: &Kept) -> io::Error {
        let (name, told) = match kept.hand_over() {
            Ok(told) => told,
            Err(error) => return error,
        };
        let mut command = process::Command::new(&self.program);
        command.args(env::args_os().skip(1));
        for stale in STALE_AFTER_HANDOVER {
            command.env_remove(stale);
        }
        restore_file_limit();
        finish_log();
        command.env(name, told).exec()
    }
}

//! A program that is run once for an engine, beside it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, Command};
use tracing::debug;

/// What to run.
#[derive(Clone, Debug)]
pub struct ErrandSpec {
    /// The program, looked up in its own `PATH`, and its arguments.
    pub words: Vec<OsString>,
    /// Its whole environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Where it runs.
    pub working_dir: PathBuf,
    /// The log that its output is appended to.
    pub log: PathBuf,
}

/// A program that runs. Dropping it kills its process group.
#[derive(Debug)]
pub struct Errand {
    child: Child,
}

impl Errand {
    /// Starts it in a process group of its own.
    ///
    /// # Errors
    /// What the operating system says: the log cannot be opened, or the program not be started.
    pub fn start(spec: &ErrandSpec) -> io::Result<Self> {
        let Some((program, args)) = spec.words.split_first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&spec.log);
        // What it says may be lost; that it runs may not.
        let log = log.or_else(|_| OpenOptions::new().write(true).open("/dev/null"))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&spec.env).current_dir(&spec.working_dir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        Ok(Self { child })
    }

    /// Waits for its end. Cancel-safe.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        // There while it is not reaped, which pins the number of its group.
        let number = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(number) = number
            && let Err(error) = killpg(Pid::from_raw(number), Signal::SIGKILL)
        {
            debug!(number, %error, "process group took no signal");
        }
    }
}

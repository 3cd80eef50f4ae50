//! Signals to the daemon.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit status of a daemon that was told to end a second time: 128 + `SIGINT`.
const TOLD_TWICE: i32 = 130;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// Drain, stop, end.
    Stop,
    /// Read the profiles again.
    Reload,
}

/// The signals that the daemon listens to.
#[derive(Debug)]
pub(super) struct Signals {
    told: Arc<AtomicBool>,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Begins to listen. A second `SIGINT` or `SIGTERM` ends the process at once, whatever the first
    /// one waits for; the guard then ends the engines.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(super) fn listen() -> io::Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds the flag unset, then sets it.
            flag::register_conditional_shutdown(number, TOLD_TWICE, Arc::clone(&told))?;
            flag::register(number, Arc::clone(&told))?;
        }
        Ok(Self {
            told,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Tells whether a signal has asked for the end, whoever waits for it or not.
    pub(super) fn ask_for_the_end(&self) -> bool {
        self.told.load(Ordering::SeqCst)
    }

    /// Waits for the next signal. Cancel-safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}

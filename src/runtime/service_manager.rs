//! Messages to the service manager: ready, status, watchdog, stopping. Silent where there is none.

use std::{os::fd::BorrowedFd, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::supervisor::{Snapshot, StateView};

/// Tells the service manager one thing; nobody listening is normal.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "service manager not told");
    }
}

/// Tells that slots can be served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells that the configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "service manager not told"),
    }
}

/// Tells that the daemon is on its way down.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Puts a socket into the service manager's store, from which the next daemon gets it back. Without a
/// store (`FileDescriptorStoreMax=`) it is closed again there.
pub(super) fn store_socket(name: &str, socket: BorrowedFd<'_>) {
    let states = [NotifyState::FdStore, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify_with_fds(&states, &[socket]) {
        debug!(%error, "socket not stored");
    }
}

/// Takes sockets of this name out of the store.
pub(super) fn forget_socket(name: &str) {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Tells in one line how the slots are, if that line is news.
pub(super) fn status(before: &Snapshot, after: &Snapshot) {
    let line = status_line(after);
    if line != status_line(before) {
        tell(&[NotifyState::Status(&line)]);
    }
}

/// Says how many slots are ready, and what the others are at: `1/3 ready, loading coder 42 %`.
fn status_line(snapshot: &Snapshot) -> String {
    let slots = &snapshot.slots;
    let ready = slots.values().filter(|slot| slot.state.takes_requests()).count();
    let mut parts = vec![format!("{ready}/{} ready", slots.len())];
    parts.extend(slots.iter().filter_map(|(name, slot)| match slot.state {
        StateView::Starting { percent: Some(percent), .. } => {
            Some(format!("loading {name} {percent} %"))
        }
        StateView::Starting { .. } => Some(format!("loading {name}")),
        StateView::Queued { .. } => Some(format!("{name} waits for memory")),
        StateView::Backoff { .. } => Some(format!("{name} waits to restart")),
        StateView::Failed => Some(format!("{name} failed")),
        StateView::Offline
        | StateView::Ready { .. }
        | StateView::Unready { .. }
        | StateView::Draining { .. }
        | StateView::Stopping { .. }
        | StateView::Reaping { .. }
        | StateView::Absent { .. }
        | StateView::Coming { .. }
        | StateView::Present { .. }
        | StateView::Parting => None,
    }));
    parts.join(", ")
}

/// The service manager's watchdog, patted by the driver itself so that a stuck driver is seen.
#[derive(Debug)]
pub(super) struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// Reads what the service manager asks for (`WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub(super) fn from_environment() -> Self {
        // Half the time it allows: one late pat is no reason to be restarted.
        let every = sd_notify::watchdog_enabled().map(|allowed| allowed / 2);
        Self { every, next: Instant::now() }
    }

    /// Resolves when the next pat is due; never without a watchdog.
    pub(super) async fn due(&self) {
        match self.every {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Tells the service manager that the driver is alive.
    pub(super) fn pat(&mut self) {
        tell(&[NotifyState::Watchdog]);
        if let Some(every) = self.every {
            self.next = Instant::now() + every;
        }
    }
}

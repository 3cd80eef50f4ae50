//! Writes only what serving needs while the disk is nearly full.
//!
//! What is held back: peaks of memory, uses, the histories of deaths and loads. They stay in memory, and are
//! written once there is room again. Engine logs are kept short meanwhile, and their older parts go.

use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{sync::watch, task::spawn_blocking};
use tracing::{info, warn};

use super::engine_task::Tools;
use crate::{
    process,
    spec::pressure::{Pressure, Strain},
};

/// Whether the disk is nearly full. Read by whoever writes what could wait.
#[derive(Debug, Default)]
pub(super) struct Thrift(AtomicBool);

impl Thrift {
    /// Tells whether only what serving needs is to be written.
    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, is_on: bool) {
        self.0.store(is_on, Ordering::Relaxed);
    }
}

/// Follows the pressure of the disk until it is dropped.
pub(super) async fn follow(tools: Arc<Tools>, mut strain: watch::Receiver<Strain>) -> Infallible {
    loop {
        let is_short = strain.borrow_and_update().disk == Pressure::Critical;
        if is_short != tools.thrift.is_on() {
            tools.thrift.set(is_short);
            if is_short {
                warn!("history held back, the disk is nearly full");
                drop_old_logs(&tools).await;
            } else {
                info!("history written again");
                tools.peaks.catch_up().await;
            }
        }
        if strain.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn drop_old_logs(tools: &Tools) {
    let logs = tools.settings.state_dir.join("logs");
    let dropping = spawn_blocking(move || process::drop_old_logs(&logs));
    if let Ok(Err(error)) = dropping.await {
        warn!(%error, "older engine logs not removed");
    }
}

/// Keeps the size of an engine's log within its bound.
pub(super) fn cut(log: &Path, thrift: &Thrift) -> std::io::Result<()> {
    let cut = if thrift.is_on() { process::shorten } else { process::rotate_if_large };
    cut(log).map(drop)
}

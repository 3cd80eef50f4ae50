//! Writes down an engine that is to outlive the daemon, so that the next one finds it.

use std::{ffi::OsString, sync::Arc};

use tokio::task::spawn_blocking;
use tracing::warn;

use crate::{
    engine::{Endpoint, EngineKind},
    process::KeepHandle,
    spec::{Generation, SlotName, profile::Profile},
    store::{EngineRecord, StateDir},
    supervisor::EngineInfo,
};

/// One engine with `on_exit = "keep"`.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) state: Arc<StateDir>,
    pub(super) handle: KeepHandle,
    pub(super) slot: (SlotName, Generation),
    pub(super) nonce: String,
    pub(super) engine: (EngineKind, Endpoint, EngineInfo),
    pub(super) profile: Profile,
    pub(super) model: Option<String>,
    pub(super) stop: Vec<OsString>,
}

impl Keeping {
    /// Puts the engine on the disk, then takes it off the guard's list: it is on one of the two at any
    /// time. Returns whether it outlives the daemon now.
    pub(super) async fn record(&self) -> bool {
        let (slot, generation) = &self.slot;
        let Some(identity) = self.handle.identity(self.nonce.clone()) else {
            warn!(%slot, %generation, "engine cannot be identified and ends with the daemon");
            return false;
        };
        let mut record = EngineRecord::new(
            self.slot.clone(),
            identity,
            self.engine.clone(),
            self.profile.clone(),
        );
        record.model.clone_from(&self.model);
        record.stop.clone_from(&self.stop);
        let state = Arc::clone(&self.state);
        match spawn_blocking(move || state.record_engine(&record)).await {
            Ok(Ok(())) => {
                self.handle.release().await;
                true
            }
            Ok(Err(error)) => {
                warn!(%slot, %generation, %error, "engine not recorded, it ends with the daemon");
                false
            }
            Err(error) => {
                warn!(%slot, %generation, %error, "engine not recorded, it ends with the daemon");
                false
            }
        }
    }

    /// Takes the record of an engine that has ended away.
    pub(super) async fn forget(&self) {
        let (slot, generation) = self.slot.clone();
        let state = Arc::clone(&self.state);
        let forgetting = spawn_blocking(move || state.forget_engine(&slot, generation)).await;
        if let Ok(Err(error)) = forgetting {
            // The next daemon finds that it is gone.
            warn!(slot = %self.slot.0, %error, "engine record not removed");
        }
    }
}

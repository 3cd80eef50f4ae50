//! Which GPUs one engine is on, and what is known of it there.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::engine_task::Tools;
use crate::{sensor::Gpus, spec::gpu::XidBefore};

/// How long before a death a fault may have been reported to be told beside it.
const BESIDE: Duration = Duration::from_secs(30);

/// The GPUs of one engine.
#[derive(Debug)]
pub(super) struct OnGpus {
    gpus: Option<Arc<Gpus>>,
    /// Those that it was told to see, by UUID.
    devices: Vec<String>,
    began: Instant,
}

impl OnGpus {
    /// Takes the GPUs that an engine is started on; empty where it was given none.
    pub(super) fn new(tools: &Tools, devices: Vec<String>) -> Self {
        Self { gpus: tools.gpus.clone(), devices, began: Instant::now() }
    }

    /// Returns the faults of its GPUs in its last seconds; none of before its start.
    pub(super) fn xids(&self) -> Vec<XidBefore> {
        let now = Instant::now();
        let window = BESIDE.min(now.saturating_duration_since(self.began));
        let gpus = self.gpus.as_deref();
        gpus.map(|gpus| gpus.xids_on(&self.devices, window, now)).unwrap_or_default()
    }
}

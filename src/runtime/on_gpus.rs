//! Which GPUs one engine is on, and what is known of it there.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::engine_task::Tools;
use crate::{
    sensor::{Gpus, Members, VISIBLE},
    spec::{Bytes, gpu::XidBefore},
};

/// How long before a death a fault may have been reported to be told beside it.
const BESIDE: Duration = Duration::from_secs(30);
/// The time between two looks at where its processes are, which is that between two readings of a GPU.
const PERIOD: Duration = Duration::from_secs(1);

/// The GPUs of one engine.
#[derive(Clone, Debug)]
pub(super) struct OnGpus {
    gpus: Option<Arc<Gpus>>,
    /// Those that it was told to see, by UUID.
    devices: Vec<String>,
    members: Members,
    /// Those on which its processes were seen, by UUID: one that it took by itself nobody told it to see.
    seen: Arc<Mutex<BTreeSet<String>>>,
    began: Instant,
}

impl OnGpus {
    /// Takes the GPUs that an engine is started on; empty where it was given none.
    pub(super) fn new(tools: &Tools, devices: Vec<String>, members: Members) -> Self {
        Self {
            gpus: tools.gpus.clone(),
            devices,
            members,
            seen: Arc::default(),
            began: Instant::now(),
        }
    }

    /// Takes the GPUs that an engine of an earlier daemon was told to see.
    pub(super) fn of_running(tools: &Tools, members: Members) -> Self {
        let environment = fs::read(format!("/proc/{}/environ", members.group)).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        let told =
            environment.split('\0').find_map(|pair| pair.strip_prefix(VISIBLE)?.strip_prefix('='));
        let devices = told.unwrap_or_default().split(',').map(str::to_owned).collect();
        Self::new(tools, devices, members)
    }

    /// Returns what the engine holds on each of its GPUs, by UUID; `None` where that is not known of every
    /// one. Looks at a few small files of the kernel.
    pub(super) fn held(&self) -> Option<BTreeMap<String, Bytes>> {
        let is_ours = |process| self.members.have(process);
        self.gpus.as_deref()?.held(&self.devices, is_ours, Instant::now())
    }

    /// Looks where its processes are until it is dropped: the end of some may come well before its own.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn keep(&self) -> Infallible {
        let Some(gpus) = &self.gpus else { return std::future::pending().await };
        loop {
            drop(self.seen_on(gpus));
            sleep(PERIOD).await;
        }
    }

    /// Looks at a few small files of the kernel.
    fn seen_on(&self, gpus: &Gpus) -> BTreeSet<String> {
        let on = gpus.with(|process| self.members.have(process));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(on);
        seen.clone()
    }

    /// Returns the faults of its GPUs in its last seconds; none of before its start.
    pub(super) fn xids(&self) -> Vec<XidBefore> {
        let now = Instant::now();
        let window = BESIDE.min(now.saturating_duration_since(self.began));
        let Some(gpus) = &self.gpus else { return Vec::new() };
        let mut devices = self.seen_on(gpus);
        devices.extend(self.devices.iter().cloned());
        gpus.xids_on(&devices, window, now)
    }
}

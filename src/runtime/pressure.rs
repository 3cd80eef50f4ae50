//! Looks at how short the machine is, and tells each change once: the core, clients, the log, listeners.
//!
//! No sensor keeps another waiting: one that hangs is unknown until it comes back, and is not asked twice.

use std::{collections::BTreeMap, convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{clock, rules::RuleBoard, storage::Storage};
use crate::{
    admin::{self, EventObject, News},
    mailbox::Mailbox,
    proxy::Throttle,
    sensor::{self, Figures, Gauges, Gpus},
    spec::{
        gpu::GpuFigures,
        memory::{GpuState, Room},
        pressure::{Pressure, Source, Strain, Thresholds},
    },
    supervisor::Event,
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a sensor may take.
const DEADLINE: Duration = Duration::from_millis(500);

/// What is looked at.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) gpus: Option<Arc<Gpus>>,
    /// Where slotd writes.
    pub(super) folders: Vec<PathBuf>,
    pub(super) thresholds: Thresholds,
}

/// Where it is told, beside the core.
#[derive(Clone, Debug)]
pub(super) struct Board {
    /// To clients.
    pub(super) throttle: Arc<Throttle>,
    /// To whoever asks, or would write to a disk that is short.
    pub(super) strain: watch::Sender<Strain>,
    /// What each GPU says of itself, to whoever asks.
    pub(super) gpus: watch::Sender<Arc<GpuFigures>>,
    /// To whoever listens.
    pub(super) news: News,
    /// To whoever asks what rules are there, and what they did.
    pub(super) rules: RuleBoard,
    /// What takes no writes.
    pub(super) storage: Storage,
}

impl Board {
    /// There is enough of everything until somebody has looked.
    pub(super) fn new() -> Self {
        let (throttle, strain) = (Arc::default(), watch::Sender::new(Strain::default()));
        let (rules, storage) = (RuleBoard::default(), Storage::default());
        let gpus = watch::Sender::default();
        Self { throttle, strain, gpus, news: admin::news(), rules, storage }
    }
}

/// Looks until it is dropped.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn watch(machine: Machine, board: Board, mailbox: Mailbox) -> Infallible {
    let Machine { gpus, folders, thresholds } = machine;
    let mut gauges = Gauges::new(thresholds);
    let (mut host, mut disk) = (Reader::default(), Reader::default());
    loop {
        let here = folders.clone();
        let (host, disk_free) = tokio::join!(
            host.read(sensor::host_figures),
            disk.read(move || sensor::disk_free(&here))
        );
        let figures = Figures {
            gpus: gpus.as_deref().map(rooms).unwrap_or_default(),
            disk_free: disk_free.flatten(),
            ..host.unwrap_or_default()
        };
        if let Some(strain) = gauges.take(&figures) {
            board.tell(&strain);
            mailbox.tell(Event::PressureChanged { strain }).await;
        }
        sleep(PERIOD).await;
    }
}

fn rooms(gpus: &Gpus) -> BTreeMap<u32, Option<Room>> {
    let room = |state| match state {
        GpuState::Present(room) => Some(Some(room)),
        GpuState::Silent { .. } => Some(None),
        GpuState::Lost { .. } => None,
    };
    let seen = gpus.look_now().into_iter();
    seen.filter_map(|(index, read)| Some((index, room(read.state)?))).collect()
}

/// A reading that may hang.
#[derive(Debug)]
pub(super) struct Reader<T>(Option<JoinHandle<T>>);

impl<T> Default for Reader<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Reader<T> {
    /// Waits for the reading that is under way, else for a new one; `None` is not known.
    pub(super) async fn read(&mut self, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let running = self.0.get_or_insert_with(|| spawn_blocking(look));
        let read = timeout(DEADLINE, running).await.ok()?;
        self.0 = None;
        read.ok()
    }
}

impl Board {
    fn tell(&self, strain: &Strain) {
        let before = self.strain.send_replace(strain.clone());
        self.throttle.set(strain);
        for (source, to) in strain.each() {
            let earlier = before.each().find(|(other, _)| *other == source);
            let from = earlier.map_or(Pressure::Normal, |(_, level)| level);
            if from != to {
                self.tell_change(source, (from, to), strain);
            }
        }
    }

    fn tell_change(&self, source: Source, (from, to): (Pressure, Pressure), strain: &Strain) {
        let (from, to) = (from.as_str(), to.as_str());
        let throttle_percent = strain.throttle_percent();
        if strain.worst() == Pressure::Normal {
            info!(%source, from, to, throttle_percent, "pressure changed");
        } else {
            warn!(%source, from, to, throttle_percent, "pressure changed");
        }
        let text = format!("{source} pressure is {to}, it was {from}");
        let news = EventObject::new("pressure-changed", clock::unix_ms(), text);
        let source = Some(source.to_string());
        let (from, to) = (Some(from.to_owned()), Some(to.to_owned()));
        EventObject { source, from, to, ..news }.tell(&self.news);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_change_is_told_once_to_each() {
        let board = Board::new();
        let mut heard = board.news.subscribe();
        board.tell(&Strain { disk: Pressure::Critical, ..Strain::default() });
        assert_eq!(board.strain.borrow().disk, Pressure::Critical);
        let event = heard.try_recv().unwrap();
        assert_eq!(event.text, "disk pressure is critical, it was normal");
        assert_eq!(
            (event.source.as_deref(), event.to.as_deref()),
            (Some("disk"), Some("critical"))
        );
        assert!(heard.try_recv().is_err(), "one piece of news a change");
    }

    #[tokio::test]
    async fn a_sensor_that_hangs_is_unknown_and_is_not_asked_twice() {
        let (go, wait) = mpsc::channel::<()>();
        let mut reader = Reader::default();
        let hang = move || wait.recv().map_or(1, |()| 1);
        assert_eq!(reader.read(hang).await, None);
        assert_eq!(reader.read(|| 2).await, None, "the first one is still under way");
        go.send(()).unwrap();
        assert_eq!(reader.read(|| 3).await, Some(1));
        assert_eq!(reader.read(|| 4).await, Some(4));
    }
}

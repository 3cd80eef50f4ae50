//! Shows what GPUs say of themselves, and tells each fault and each loss of one once: the log, listeners.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{clock, pressure::Board};
use crate::{
    admin::{EventObject, News},
    sensor::Gpus,
    spec::{
        gpu::{GpuFigure, GpuFigures, Xid, XidName},
        memory::GpuState,
    },
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks until it is dropped.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn watch(gpus: Arc<Gpus>, board: Board) -> Infallible {
    let mut told = Told::default();
    loop {
        let figures = Arc::new(gpus.figures(Instant::now()));
        // Whoever hears of a change finds it when it asks.
        board.gpus.send_replace(Arc::clone(&figures));
        told.tell(&figures, &board.news);
        sleep(PERIOD).await;
    }
}

/// What was told already.
#[derive(Debug, Default)]
struct Told(BTreeMap<u32, (u64, Standing)>);

/// Whether a GPU is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Standing {
    /// Nothing was heard of it yet.
    #[default]
    Unknown,
    Present,
    Silent,
    Lost,
}

impl Standing {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Present => "present",
            Self::Silent => "silent",
            Self::Lost => "lost",
        }
    }
}

impl Told {
    fn tell(&mut self, figures: &GpuFigures, news: &News) {
        for (gpu, figure) in figures {
            let (count, standing) = self.0.entry(*gpu).or_default();
            for xid in new_ones(figure, *count) {
                tell_xid(*gpu, figure, xid, news);
            }
            *count = figure.xids.as_ref().map_or(*count, |xids| xids.count);
            let (from, to) = (*standing, standing_of(&figure.reading.state, *standing));
            if from != to {
                *standing = to;
                tell_change(*gpu, figure, (from, to), news);
            }
        }
    }
}

/// One of which nothing was read yet is not silent.
fn standing_of(state: &GpuState, before: Standing) -> Standing {
    match state {
        GpuState::Present(_) => Standing::Present,
        GpuState::Silent { last: None } => before,
        GpuState::Silent { last: Some(_) } => Standing::Silent,
        GpuState::Lost { .. } => Standing::Lost,
    }
}

/// Those beyond the first `told`; of many at once the oldest may be gone.
fn new_ones(figure: &GpuFigure, told: u64) -> impl Iterator<Item = &Xid> {
    let xids = figure.xids.as_ref();
    let new = xids.map_or(0, |xids| xids.count.saturating_sub(told));
    let last = xids.map_or(&[][..], |xids| &xids.last);
    last.iter().skip(last.len().saturating_sub(usize::try_from(new).unwrap_or(usize::MAX)))
}

fn tell_xid(gpu: u32, figure: &GpuFigure, xid: &Xid, news: &News) {
    let (name, code) = (&figure.reading.name, xid.code);
    let what = XidName(code).to_string();
    warn!(gpu, name, xid = code, what, "gpu reported a fault");
    let text = format!("GPU {gpu} ({name}) reported {what}");
    let event = EventObject::new("gpu-fault", xid.at_unix_ms, text);
    let (source, name) = (Some(format!("gpu-{gpu}")), Some(code.to_string()));
    EventObject { source, name, ..event }.tell(news);
}

fn tell_change(gpu: u32, figure: &GpuFigure, (from, to): (Standing, Standing), news: &News) {
    let (name, reason) = (&figure.reading.name, reason(figure));
    if (from, to) == (Standing::Unknown, Standing::Present) {
        info!(gpu, name, "gpu found");
        return;
    }
    let (from, to) = (from.as_str(), to.as_str());
    if to == "present" {
        info!(gpu, name, from, to, "gpu changed state");
    } else {
        warn!(gpu, name, from, to, reason, "gpu changed state");
    }
    let because = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    let text = format!("GPU {gpu} ({name}) is {to}, it was {from}{because}");
    let event = EventObject::new("gpu-changed", clock::unix_ms(), text);
    let source = Some(format!("gpu-{gpu}"));
    let (from, to) = (Some(from.to_owned()), Some(to.to_owned()));
    EventObject { source, from, to, ..event }.tell(news);
}

fn reason(figure: &GpuFigure) -> Option<&str> {
    match &figure.reading.state {
        GpuState::Lost { reason } => Some(reason),
        GpuState::Present(_) | GpuState::Silent { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin,
        spec::{
            gpu::Xids,
            memory::{GpuReading, Room},
        },
    };

    fn figures(state: GpuState, codes: &[u64]) -> GpuFigures {
        let reading = GpuReading { uuid: "GPU-1".to_owned(), name: "test".to_owned(), state };
        let last = codes.iter().map(|code| Xid { code: *code, at_unix_ms: 7 }).collect::<Vec<_>>();
        let xids = Some(Xids { count: u64::try_from(last.len()).unwrap(), last });
        BTreeMap::from([(0, GpuFigure { reading, busy_percent: None, xids })])
    }

    #[test]
    fn an_xid_is_told_once_and_so_is_a_loss() {
        let (news, mut told) = (admin::news(), Told::default());
        let mut heard = news.subscribe();
        let mut texts = |figures: &GpuFigures| {
            told.tell(figures, &news);
            std::iter::from_fn(|| Some(heard.try_recv().ok()?.text.clone())).collect::<Vec<_>>()
        };
        let there = || GpuState::Present(Room::default());
        assert!(texts(&figures(GpuState::Silent { last: None }, &[])).is_empty());
        assert!(texts(&figures(there(), &[])).is_empty());
        assert_eq!(
            texts(&figures(there(), &[31])),
            ["GPU 0 (test) reported Xid 31 (GPU memory page fault)"]
        );
        assert!(texts(&figures(there(), &[31])).is_empty(), "told once");
        let lost = GpuState::Lost { reason: "it is gone".to_owned() };
        assert_eq!(
            texts(&figures(lost.clone(), &[31, 31])),
            [
                "GPU 0 (test) reported Xid 31 (GPU memory page fault)",
                "GPU 0 (test) is lost, it was present: it is gone"
            ]
        );
        assert!(texts(&figures(lost, &[31, 31])).is_empty());
        assert_eq!(texts(&figures(there(), &[31, 31])), ["GPU 0 (test) is present, it was lost"]);
    }
}

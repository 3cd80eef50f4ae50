//! What `GET /metrics` tells of GPUs.

use super::{
    metrics::{Family, Page, counter, gauge},
    routes::RouteTable,
};
use crate::spec::{
    gpu::{GpuFigure, GpuFigures},
    memory::{GpuState, Room},
};

const INFO: Family = gauge("slotd_gpu_info", "The name and the UUID of a GPU, always 1.");
const STATE: Family = gauge(
    "slotd_gpu_state",
    "1 for the state that a GPU is in (`present`, `silent` or `lost`), 0 for others.",
);
const TOTAL: Family = gauge("slotd_gpu_memory_total_bytes", "Memory of a GPU that answers.");
const USED: Family =
    gauge("slotd_gpu_memory_used_bytes", "Memory of a GPU in use, that of strangers included.");
const FREE: Family = gauge("slotd_gpu_memory_free_bytes", "Memory of a GPU that nobody uses.");
const UTILISATION: Family = gauge(
    "slotd_gpu_utilization_ratio",
    "How much of the last second a GPU computed, 0 to 1, where it says so.",
);
const XIDS: Family = counter(
    "slotd_gpu_xids_total",
    "Faults (Xids) that the driver has reported of a GPU since slotd listens, where it can.",
);
const PROMISED: Family =
    gauge("slotd_slot_promised_gpu_memory_bytes", "Memory of a GPU that a slot is counted with.");

/// Every family, in the order of the page.
#[cfg(test)]
pub(super) const FAMILIES: [Family; 8] =
    [INFO, STATE, TOTAL, USED, FREE, UTILISATION, XIDS, PROMISED];

/// Adds the figures of all GPUs.
pub(super) fn add(page: &mut Page, figures: &GpuFigures, table: &RouteTable) {
    page.family(INFO);
    for (gpu, GpuFigure { reading, .. }) in figures {
        let labels = [("gpu", &*gpu.to_string()), ("name", &reading.name), ("uuid", &reading.uuid)];
        page.sample(INFO.name, &labels, 1);
    }
    page.family(STATE);
    for (gpu, GpuFigure { reading, .. }) in figures {
        let is = match reading.state {
            GpuState::Present(_) => "present",
            GpuState::Silent { .. } => "silent",
            GpuState::Lost { .. } => "lost",
        };
        for state in ["present", "silent", "lost"] {
            let labels = [("gpu", &*gpu.to_string()), ("state", state)];
            page.sample(STATE.name, &labels, u8::from(state == is));
        }
    }
    of_each(page, TOTAL, figures, |gpu| Some(room(gpu)?.total.0));
    of_each(page, USED, figures, |gpu| {
        let Room { total, free } = room(gpu)?;
        Some(total.0.saturating_sub(free.0))
    });
    of_each(page, FREE, figures, |gpu| Some(room(gpu)?.free.0));
    of_each(page, UTILISATION, figures, |gpu| Some(f64::from(gpu.busy_percent?) / 100.0));
    of_each(page, XIDS, figures, |gpu| Some(gpu.xids.as_ref()?.count));
    page.family(PROMISED);
    for (slot, route) in table.slots() {
        for (gpu, bytes) in &route.promised_gpus {
            let labels = [("slot", slot.as_str()), ("gpu", &*gpu.to_string())];
            page.sample(PROMISED.name, &labels, bytes.0);
        }
    }
}

/// One sample for each GPU of which the figure is known.
fn of_each<T: std::fmt::Display>(
    page: &mut Page,
    family: Family,
    figures: &GpuFigures,
    of: impl Fn(&GpuFigure) -> Option<T>,
) {
    page.family(family);
    for (gpu, figure) in figures {
        if let Some(figure) = of(figure) {
            page.sample(family.name, &[("gpu", &gpu.to_string())], figure);
        }
    }
}

/// What is old is not known.
fn room(gpu: &GpuFigure) -> Option<Room> {
    match gpu.reading.state {
        GpuState::Present(room) => Some(room),
        GpuState::Silent { .. } | GpuState::Lost { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{Bytes, gpu::Xids, memory::GpuReading};

    fn figure(state: GpuState, busy_percent: Option<u32>, xids: Option<Xids>) -> GpuFigure {
        let reading = GpuReading { uuid: "GPU-1".to_owned(), name: "test".to_owned(), state };
        GpuFigure { reading, busy_percent, xids }
    }

    #[test]
    fn what_is_not_known_of_a_gpu_has_no_sample() {
        let room = Room { total: Bytes(80), free: Bytes(30) };
        let xids = Some(Xids { count: 2, last: Vec::new() });
        let figures = BTreeMap::from([
            (0, figure(GpuState::Present(room), Some(25), xids)),
            (1, figure(GpuState::Lost { reason: "gone".to_owned() }, None, None)),
            (2, figure(GpuState::Silent { last: Some(room) }, None, None)),
        ]);
        let mut page = Page::default();
        add(&mut page, &figures, &RouteTable::default());
        let text = page.into_text();
        let shown: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        insta::assert_snapshot!(shown.join("\n"), @r#"
        slotd_gpu_info{gpu="0",name="test",uuid="GPU-1"} 1
        slotd_gpu_info{gpu="1",name="test",uuid="GPU-1"} 1
        slotd_gpu_info{gpu="2",name="test",uuid="GPU-1"} 1
        slotd_gpu_state{gpu="0",state="present"} 1
        slotd_gpu_state{gpu="0",state="silent"} 0
        slotd_gpu_state{gpu="0",state="lost"} 0
        slotd_gpu_state{gpu="1",state="present"} 0
        slotd_gpu_state{gpu="1",state="silent"} 0
        slotd_gpu_state{gpu="1",state="lost"} 1
        slotd_gpu_state{gpu="2",state="present"} 0
        slotd_gpu_state{gpu="2",state="silent"} 1
        slotd_gpu_state{gpu="2",state="lost"} 0
        slotd_gpu_memory_total_bytes{gpu="0"} 80
        slotd_gpu_memory_used_bytes{gpu="0"} 50
        slotd_gpu_memory_free_bytes{gpu="0"} 30
        slotd_gpu_utilization_ratio{gpu="0"} 0.25
        slotd_gpu_xids_total{gpu="0"} 2
        "#);
    }
}

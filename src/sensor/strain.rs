//! Figures of the machine to how short it is of each: pure, but for what the gauges keep.

use std::collections::BTreeMap;

use super::{
    Stalls,
    gauge::{Gauge, Stand},
};
use crate::spec::{
    Bytes,
    memory::Room,
    pressure::{Marks, Pressure, Strain, Thresholds},
};

/// Where more than this share of memory can be had, it is ample: who waits for some then waits for what is
/// not ours to give, such as another container's.
const AMPLE_PERCENT: u64 = 25;

/// What was read at one moment; `None` is not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The host's memory, as engines can have it.
    pub host: Option<Room>,
    /// Swap; nothing in total where there is none.
    pub swap: Option<Room>,
    /// How long tasks wait.
    pub stalls: Stalls,
    /// GPUs that are there; `None` for one that does not answer.
    pub gpus: BTreeMap<u32, Option<Room>>,
    /// What is free on the disk that is written to.
    pub disk_free: Option<Bytes>,
}

/// The gauges of all that the machine can be short of.
#[derive(Clone, Debug)]
pub struct Gauges {
    thresholds: Thresholds,
    memory: Gauge,
    gpus: BTreeMap<u32, Gauge>,
    cpu: Gauge,
    disk: Gauge,
}

impl Gauges {
    /// There is enough of everything until readings say otherwise.
    pub fn new(thresholds: Thresholds) -> Self {
        let gauge = Gauge::default;
        Self { thresholds, memory: gauge(), gpus: BTreeMap::new(), cpu: gauge(), disk: gauge() }
    }

    /// Takes figures, and returns the levels if one of them has changed.
    pub fn take(&mut self, figures: &Figures) -> Option<Strain> {
        let Self { thresholds, memory, gpus, cpu, disk } = self;
        let of_memory = |host| {
            let Figures { swap, stalls, .. } = figures;
            stand(thresholds, |marks| is_memory_past(host, *swap, *stalls, marks))
        };
        let host = figures.host.filter(|room| room.total.0 > 0);
        let mut is_news = memory.take(host.map(of_memory));
        let before = gpus.len();
        // A GPU that is gone is short of nothing.
        gpus.retain(|index, _| figures.gpus.contains_key(index));
        is_news |= gpus.len() != before;
        for (index, room) in &figures.gpus {
            let of_gpu =
                |room: Room| stand(thresholds, |marks| room.free < marks.gpu_free_of(room.total));
            is_news |= gpus.entry(*index).or_default().take(room.map(of_gpu));
        }
        let stalled = figures.stalls.cpu_percent.map(f64::from);
        is_news |= cpu.take(stalled.map(|stalled| {
            stand(thresholds, |marks| stalled > f64::from(marks.cpu_stall_percent))
        }));
        let of_disk = |free: Bytes| stand(thresholds, |marks| free < marks.disk_free);
        is_news |= disk.take(figures.disk_free.map(of_disk));
        is_news.then(|| self.strain())
    }

    fn strain(&self) -> Strain {
        Strain {
            memory: self.memory.level(),
            gpus: self.gpus.iter().map(|(index, gauge)| (*index, gauge.level())).collect(),
            cpu: self.cpu.level(),
            disk: self.disk.level(),
        }
    }
}

/// Finds both levels of a reading.
fn stand(thresholds: &Thresholds, is_past: impl Fn(&Marks) -> bool) -> Stand {
    let Thresholds { elevated, critical } = thresholds;
    let level = |elevated: &Marks, critical: &Marks| {
        if is_past(critical) {
            Pressure::Critical
        } else if is_past(elevated) {
            Pressure::Elevated
        } else {
            Pressure::Normal
        }
    };
    Stand { reached: level(elevated, critical), held: level(&eased(elevated), &eased(critical)) }
}

/// Half as much again must be free, and half as long be waited, to be clear of a mark; no more than half of
/// what is left above it, or nothing would be clear of a high one.
fn eased(marks: &Marks) -> Marks {
    let percent = |percent: u32| percent + (percent / 2).min(100_u32.saturating_sub(percent) / 2);
    let bytes = |bytes: Bytes| Bytes(bytes.0.saturating_add(bytes.0 / 2));
    Marks {
        memory_free_percent: percent(marks.memory_free_percent),
        swap_free_percent: percent(marks.swap_free_percent),
        memory_stall_percent: marks.memory_stall_percent / 2,
        gpu_free: bytes(marks.gpu_free),
        cpu_stall_percent: marks.cpu_stall_percent / 2,
        disk_free: bytes(marks.disk_free),
    }
}

fn is_memory_past(host: Room, swap: Option<Room>, stalls: Stalls, marks: &Marks) -> bool {
    let free = free_percent(host);
    if free < u64::from(marks.memory_free_percent) {
        return true;
    }
    let swap = swap.filter(|swap| swap.total.0 > 0).map(free_percent);
    let is_swap_short = swap.is_some_and(|free| free < u64::from(marks.swap_free_percent));
    let waited = stalls.memory_percent.map(f64::from);
    let is_waited = waited.is_some_and(|waited| waited > f64::from(marks.memory_stall_percent));
    free < AMPLE_PERCENT && (is_swap_short || is_waited)
}

fn free_percent(room: Room) -> u64 {
    room.free.0.saturating_mul(100) / room.total.0.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(total: u64, free: u64) -> Room {
        Room { total: Bytes(total), free: Bytes(free) }
    }

    fn memory(free_percent: u64) -> Figures {
        Figures { host: Some(room(1000, free_percent * 10)), ..Figures::default() }
    }

    /// The levels once figures have lasted.
    fn lasting(figures: &Figures) -> Strain {
        let mut gauges = Gauges::new(Thresholds::default());
        for _ in 0..6 {
            gauges.take(figures);
        }
        gauges.strain()
    }

    #[test]
    fn each_is_judged_by_its_own_marks() {
        assert_eq!(lasting(&memory(60)), Strain::default());
        assert_eq!(lasting(&memory(7)).memory, Pressure::Elevated);
        assert_eq!(lasting(&memory(2)).memory, Pressure::Critical);
        let figures = Figures {
            gpus: BTreeMap::from([
                (0, Some(room(80 * GIB, 300 << 20))),
                (1, Some(room(80 * GIB, 100 << 20))),
                (2, None),
            ]),
            stalls: Stalls { cpu_percent: Some(99.0), ..Stalls::default() },
            disk_free: Some(Bytes(400 << 20)),
            ..memory(50)
        };
        let strain = lasting(&figures);
        let levels: Vec<_> = strain.gpus.values().copied().collect();
        assert_eq!(levels, [Pressure::Normal, Pressure::Elevated, Pressure::Normal]);
        assert_eq!((strain.cpu, strain.disk), (Pressure::Elevated, Pressure::Critical));
    }

    #[test]
    fn waiting_and_swap_count_only_where_memory_is_not_ample() {
        let stalls = Stalls { memory_percent: Some(50.0), ..Stalls::default() };
        assert_eq!(lasting(&Figures { stalls, ..memory(60) }).memory, Pressure::Normal);
        assert_eq!(lasting(&Figures { stalls, ..memory(20) }).memory, Pressure::Critical);
        let swap = Some(room(100, 10));
        assert_eq!(lasting(&Figures { swap, ..memory(60) }).memory, Pressure::Normal);
        assert_eq!(lasting(&Figures { swap, ..memory(20) }).memory, Pressure::Elevated);
        let none = Some(room(0, 0));
        assert_eq!(lasting(&Figures { swap: none, ..memory(20) }).memory, Pressure::Normal);
    }

    #[test]
    fn just_above_a_mark_is_not_clear_of_it() {
        let mut gauges = Gauges::new(Thresholds::default());
        let mut told = |free, times| {
            let news = (0..times).filter_map(|_| gauges.take(&memory(free)));
            news.map(|strain| strain.memory).collect::<Vec<_>>()
        };
        assert_eq!(told(6, 10), [Pressure::Elevated]);
        assert_eq!(told(10, 50), []);
        assert_eq!(told(13, 50), [Pressure::Normal]);
    }

    #[test]
    fn every_mark_that_may_be_set_is_left_again() {
        for mark in [1, 50, 70, 90] {
            let mut thresholds = Thresholds::default();
            thresholds.elevated.memory_free_percent = mark;
            thresholds.critical.memory_free_percent = mark;
            thresholds.elevated.gpu_free = Bytes(64 * GIB);
            let mut gauges = Gauges::new(thresholds);
            let gpus = |free| BTreeMap::from([(0, Some(room(16 * GIB, free)))]);
            for _ in 0..6 {
                gauges.take(&Figures { gpus: gpus(0), ..memory(0) });
            }
            assert_eq!(gauges.strain().memory, Pressure::Critical);
            for _ in 0..6 {
                gauges.take(&Figures { gpus: gpus(15 * GIB + GIB / 2), ..memory(97) });
            }
            assert_eq!(gauges.strain().memory, Pressure::Normal, "{mark} percent");
            assert_eq!(gauges.strain().gpus[&0], Pressure::Normal);
        }
    }

    #[test]
    fn a_gpu_that_is_gone_is_short_of_nothing() {
        let mut gauges = Gauges::new(Thresholds::default());
        let short = |gpus| Figures { gpus, ..Figures::default() };
        let full = short(BTreeMap::from([(0, Some(room(GIB, 0)))]));
        assert!(gauges.take(&full).is_none());
        assert_eq!(gauges.take(&full).unwrap().gpus[&0], Pressure::Critical);
        assert_eq!(gauges.take(&short(BTreeMap::from([(0, None)]))), None, "unknown is no level");
        assert!(gauges.take(&short(BTreeMap::new())).unwrap().gpus.is_empty());
    }
}

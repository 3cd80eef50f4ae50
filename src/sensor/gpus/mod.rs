//! NVIDIA's GPUs, by the driver's own library; on macOS the machine's own, by Metal.
//!
//! A call into a driver that hangs does not come back, so each GPU is read by a thread of its own, and
//! whoever asks gets what was read last, with its age: nobody here waits for a driver. The library is
//! loaded when it is there; before the driver is up, and without one, there are no GPUs.
//!
//! ```text
//!  finder: load ▶ count ▶ a thread for each GPU          board: what was read last, and when
//!  reader 0: ask ▶ board ▶ pause ▶ ask …                 look(now): Present, Silent, Lost by age
//!  listener 0: wait for an Xid ▶ board ▶ wait …
//! ```

#[cfg(any(target_os = "macos", test))]
mod metal;
mod nvml;
mod visible;
mod xid;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use self::visible::Visible;
use crate::spec::{
    Bytes,
    gpu::{GpuFigure, GpuFigures, OFF_THE_BUS, XidBefore, XidName, Xids},
    memory::{GpuReading, GpuState, Room},
};

/// The variable by which a person says which GPUs are to be used.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The variable that names NVML, where it is not to be looked for.
pub const NVML_LIBRARY: &str = "SLOTD_NVML_LIBRARY";

/// How GPUs are looked at.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// NVML, where it is not to be looked for: what [`NVML_LIBRARY`] says.
    pub library: Option<PathBuf>,
    /// Which GPUs count: what `CUDA_VISIBLE_DEVICES` says to this process; all without it.
    pub visible: Option<String>,
    /// The time between two looks at one GPU.
    pub period: Duration,
    /// How old a reading may be. What is older is no reading: the GPU is silent.
    pub deadline: Duration,
    /// Tells the time in milliseconds since 1970: when an Xid came, for people.
    pub wall_clock: fn() -> u64,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            library: None,
            visible: None,
            period: Duration::from_secs(1),
            deadline: Duration::from_secs(4),
            wall_clock: || 0,
        }
    }
}

/// What one GPU does, beside its memory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GpuUse {
    /// How much of the last second it computed, in percent; `None` if it does not say.
    pub busy_percent: Option<u32>,
    /// What each process holds there. Empty in containers that hide processes.
    pub processes: BTreeMap<u32, Bytes>,
    /// Processes there of which the driver does not say what they hold.
    pub untold: BTreeSet<u32>,
}

/// Looks at the GPUs of the machine until it is dropped.
#[derive(Debug)]
pub struct Gpus {
    board: Board,
    /// The driver was looked for once, and its GPUs were counted where it is there.
    is_counted: Arc<AtomicBool>,
    began: Instant,
    deadline: Duration,
    visible: Option<Visible>,
    /// Closed when nobody asks any more: threads that can then end do.
    _open: mpsc::Sender<()>,
    /// The finder's; it owns the readers' in turn. One that hangs in the driver is left behind, which is
    /// all that can be done with it.
    _finder: Option<JoinHandle<()>>,
}

/// What was read last, by the GPUs' indices.
type Board = Arc<Mutex<BTreeMap<u32, Seen>>>;

/// One GPU as it was seen last.
#[derive(Clone, Debug, Default)]
struct Seen {
    uuid: String,
    name: String,
    last: Option<Room>,
    used: GpuUse,
    /// When something was heard of it; `None` before the first time.
    heard: Option<Instant>,
    /// Why it is gone.
    lost: Option<String>,
    /// What the driver has reported of it; `None` while nobody could listen.
    xids: Option<Xids>,
    /// When each of the last ones came.
    xids_at: VecDeque<Instant>,
}

impl Gpus {
    /// Begins to look; nothing is known yet.
    pub fn start(options: &GpuOptions) -> Self {
        let board = Board::default();
        let (open, closed) = mpsc::channel();
        let is_counted = Arc::new(AtomicBool::new(false));
        let finder = {
            let (board, options) = (Arc::clone(&board), options.clone());
            let is_counted = Arc::clone(&is_counted);
            let name = "gpus".to_owned();
            let find = move || find((&board, &is_counted), &options, &closed);
            thread::Builder::new().name(name).spawn(find)
        };
        let (began, deadline) = (Instant::now(), options.deadline);
        let visible = options.visible.as_deref().map(Visible::read);
        // Without a thread there is no reading, as without a driver.
        Self { board, is_counted, began, deadline, visible, _open: open, _finder: finder.ok() }
    }

    /// Waits until each GPU was read once, at the longest until the deadline has passed since the start: a
    /// driver that has only just been loaded is not one that finds nothing.
    pub async fn wait_for_first(&self) {
        while !self.is_read_once() && self.began.elapsed() < self.deadline {
            sleep(FIRST_PAUSE).await;
        }
    }

    fn is_read_once(&self) -> bool {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let is_read = |seen: &Seen| seen.heard.is_some() || seen.lost.is_some();
        self.is_counted.load(Ordering::Acquire) && board.values().all(is_read)
    }

    /// Returns what is known of each GPU now. Never waits for a driver.
    pub fn look_now(&self) -> BTreeMap<u32, GpuReading> {
        self.look(Instant::now())
    }

    /// Returns what is known of each GPU at `now`. Never waits for a driver.
    pub fn look(&self, now: Instant) -> BTreeMap<u32, GpuReading> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let is_hung = now.saturating_duration_since(self.began) > self.deadline
            && !self.is_counted.load(Ordering::Acquire);
        if board.is_empty() && is_hung {
            // A driver that does not even say how many there are is not one that has none.
            let unknown = Seen { name: "not counted yet".to_owned(), ..Seen::default() };
            return BTreeMap::from([(0, unknown.reading(now, self.deadline))]);
        }
        let visible = board.iter().filter(|(index, seen)| self.shows(**index, seen));
        visible.map(|(index, seen)| (*index, seen.reading(now, self.deadline))).collect()
    }

    /// Returns what each GPU that answers does beside holding memory.
    pub fn uses(&self, now: Instant) -> BTreeMap<u32, GpuUse> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = board
            .iter()
            .filter(|(index, seen)| self.shows(**index, seen) && seen.is_fresh(now, self.deadline));
        fresh.map(|(index, seen)| (*index, seen.used.clone())).collect()
    }

    /// Returns what processes of one kind hold on each GPU, by UUID: on `devices` each, and on any other one
    /// where they are. `None` where that is not known of every one of them.
    pub fn held(
        &self,
        devices: &[String],
        is_ours: impl Fn(u32) -> bool,
        now: Instant,
    ) -> Option<BTreeMap<String, Bytes>> {
        // Copied out: who is asked about a process must not keep the readers waiting.
        let seen: Vec<_> = {
            let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = board.values().map(|seen| {
                let fresh = seen.is_fresh(now, self.deadline).then(|| seen.used.clone());
                (seen.uuid.clone(), fresh)
            });
            seen.collect()
        };
        let mut held = BTreeMap::new();
        for (uuid, used) in seen {
            let is_told = devices.contains(&uuid);
            let Some(used) = used else {
                if is_told {
                    return None;
                }
                continue;
            };
            if used.untold.iter().any(|process| is_ours(*process)) {
                return None;
            }
            let ours = used.processes.iter().filter(|(process, _)| is_ours(**process));
            match ours.map(|(_, bytes)| bytes.0).reduce(u64::saturating_add) {
                Some(bytes) => drop(held.insert(uuid, Bytes(bytes))),
                None if is_told => return None,
                None => {}
            }
        }
        Some(held).filter(|held| !held.is_empty())
    }

    /// Returns the GPUs, by UUID, on which processes of one kind were when each was read last, however long ago.
    pub fn with(&self, is_ours: impl Fn(u32) -> bool) -> BTreeSet<String> {
        // Copied out, as above.
        let seen: Vec<_> = {
            let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = board.values().map(|seen| {
                let told = seen.used.processes.keys().copied();
                let all: Vec<u32> = told.chain(seen.used.untold.iter().copied()).collect();
                (seen.uuid.clone(), all)
            });
            seen.collect()
        };
        let with = seen.into_iter().filter(|(_, all)| all.iter().any(|process| is_ours(*process)));
        with.map(|(uuid, _)| uuid).collect()
    }

    /// Returns what is known of each GPU at `now`, for people. Never waits for a driver.
    pub fn figures(&self, now: Instant) -> GpuFigures {
        let readings = self.look(now).into_iter();
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let figure = |(index, reading): (u32, GpuReading)| {
            let seen = board.get(&index);
            let fresh = seen.filter(|seen| seen.is_fresh(now, self.deadline));
            let busy_percent = fresh.and_then(|seen| seen.used.busy_percent);
            let xids = seen.and_then(|seen| seen.xids.clone());
            (index, GpuFigure { reading, busy_percent, xids })
        };
        readings.map(figure).collect()
    }

    /// Returns the Xids of these GPUs, named by UUID, of the last `window` before `now`; oldest first.
    pub fn xids_on(
        &self,
        devices: &BTreeSet<String>,
        window: Duration,
        now: Instant,
    ) -> Vec<XidBefore> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let of_ours = board.iter().filter(|(_, seen)| devices.contains(&seen.uuid));
        let mut found: Vec<_> =
            of_ours.flat_map(|(gpu, seen)| seen.xids_before(*gpu, now)).collect();
        found.retain(|xid| Duration::from_millis(xid.before_ms) <= window);
        found.sort_by_key(|xid| std::cmp::Reverse(xid.before_ms));
        found
    }
}

impl Gpus {
    fn shows(&self, index: u32, seen: &Seen) -> bool {
        self.visible.as_ref().is_none_or(|visible| visible.names(index, &seen.uuid))
    }
}

impl Seen {
    fn is_fresh(&self, now: Instant, deadline: Duration) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) <= deadline)
    }

    fn reading(&self, now: Instant, deadline: Duration) -> GpuReading {
        let state = match (&self.lost, self.last) {
            // A driver may go on telling what it knew before. Afterwards its answers count.
            _ if self.is_off_the_bus(now, deadline) => {
                GpuState::Lost { reason: format!("the driver reports {}", XidName(OFF_THE_BUS)) }
            }
            (Some(reason), _) => GpuState::Lost { reason: reason.clone() },
            (None, Some(room)) if self.is_fresh(now, deadline) => GpuState::Present(room),
            (None, last) => GpuState::Silent { last },
        };
        GpuReading { uuid: self.uuid.clone(), name: self.name.clone(), state }
    }

    /// Tells whether the driver has reported within the deadline that it is gone.
    fn is_off_the_bus(&self, now: Instant, deadline: Duration) -> bool {
        let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let mut recent = self.xids_before(0, now);
        recent.any(|xid| xid.code == OFF_THE_BUS && xid.before_ms <= deadline)
    }

    fn xids_before(&self, gpu: u32, now: Instant) -> impl Iterator<Item = XidBefore> {
        let last = self.xids.iter().flat_map(|xids| &xids.last);
        last.zip(&self.xids_at).map(move |(xid, at)| {
            let before = now.saturating_duration_since(*at).as_millis();
            let before_ms = u64::try_from(before).unwrap_or(u64::MAX);
            XidBefore { gpu, code: xid.code, before_ms }
        })
    }
}

/// A library that is named is NVIDIA's, on any machine.
fn find(told: (&Board, &AtomicBool), options: &GpuOptions, closed: &mpsc::Receiver<()>) {
    #[cfg(target_os = "macos")]
    if options.library.is_none() {
        return metal::find(told, options, closed);
    }
    nvml::find(told, options, closed);
}

fn note(board: &Board, index: u32, change: impl FnOnce(&mut Seen)) {
    let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
    change(board.entry(index).or_default());
}

/// Between two looks at whether all were read once: threads in a driver tell nobody.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests;

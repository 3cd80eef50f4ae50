//! How much of a Mac's memory its GPU may hold.
//!
//! Apple's GPUs have no memory of their own. macOS lets them wire a part of the host's, and an engine that asks
//! for more fails while it computes. So the GPU is a pool as large as that part, and what it holds is the
//! host's too ([`crate::engine::Estimate::need`] counts it there). Who holds how much of the part is not read:
//! all of it counts as free, and the host's figure says what is left of both.

use crate::spec::{Bytes, memory::Room};

/// What macOS says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Limits {
    /// `hw.memsize`.
    pub(super) memory: Option<Bytes>,
    /// `iogpu.wired_limit_mb`, in MiB; 0 where the system's own limit holds.
    pub(super) wired_limit_mib: Option<u64>,
    /// `recommendedMaxWorkingSetSize` of the device.
    pub(super) working_set: Option<Bytes>,
}

impl Limits {
    /// Returns the memory that the GPU may hold; `None` where nothing is known. By the first of these that is known:
    ///
    /// 1. the limit that a person has set, as far as there is so much memory;
    /// 2. the size up to which Metal says that it works well;
    /// 3. the share of the memory that it was seen to be on machines where nobody had set anything: two thirds
    ///    up to 36 GiB, three quarters above.
    ///
    /// Source: Apple's documentation of `MTLDevice.recommendedMaxWorkingSetSize`; MLX's of `set_wired_limit` for
    /// the setting. Apple does not document the shares: 21.3 of 32 GiB, 48 of 64 GiB and 96 or 107.5 of 128 GiB are what owners report
    /// of `recommendedMaxWorkingSetSize`, so that the share never says more than they saw.
    pub(super) fn most(&self) -> Option<Bytes> {
        let set = self.wired_limit_mib.filter(|limit| *limit > 0);
        let set = set.map(|limit| Bytes(limit.saturating_mul(1 << 20)));
        let set = set.map(|set| self.memory.map_or(set, |memory| memory.min(set))); // (1)
        let working_set = self.working_set.filter(|size| size.0 > 0); // (2)
        set.or(working_set).or_else(|| self.memory.map(share)) // (3)
    }

    /// Returns the pool.
    pub(super) fn room(&self) -> Option<Room> {
        self.most().map(|most| Room { total: most, free: most })
    }
}

fn share(memory: Bytes) -> Bytes {
    let (parts, of) = if memory.0 <= 36 << 30 { (2, 3) } else { (3, 4) };
    Bytes(memory.0 / of * parts)
}

#[cfg(target_os = "macos")]
pub(super) use self::device::find;

/// The reads themselves.
#[cfg(target_os = "macos")]
mod device {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    };

    use objc2_metal::{MTLCopyAllDevices, MTLDevice as _};
    use sysctl::{Ctl, CtlValue, Sysctl as _};
    use tokio::time::Instant;

    use super::Limits;
    use crate::{
        sensor::{
            gpus::{Board, GpuOptions, note},
            host_memory,
        },
        spec::Bytes,
    };

    /// The one GPU that there is.
    const INDEX: u32 = 0;
    /// What a person may set while the daemon runs: `sysctl iogpu.wired_limit_mb=…`, by root.
    const WIRED_LIMIT: &str = "iogpu.wired_limit_mb";

    /// Reads the limit again and again until `closed` is.
    pub(in crate::sensor::gpus) fn find(
        (board, is_counted): (&Board, &AtomicBool),
        options: &GpuOptions,
        closed: &Receiver<()>,
    ) {
        loop {
            let (name, limits) = read();
            if let Some(name) = name {
                note(board, INDEX, |seen| {
                    seen.name = name;
                    seen.last = limits.room();
                    seen.heard = Some(Instant::now());
                });
            }
            is_counted.store(true, Ordering::Release);
            match closed.recv_timeout(options.period) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The device is asked for anew each time: one that is kept may know an old limit. No name where there
    /// is no device. The list is asked for because the default device wants a window server's library.
    fn read() -> (Option<String>, Limits) {
        let device = MTLCopyAllDevices().firstObject();
        let working_set = device.as_ref().map(|device| device.recommendedMaxWorkingSetSize());
        let limits = Limits {
            memory: host_memory().total,
            wired_limit_mib: wired_limit(),
            working_set: working_set.map(Bytes),
        };
        (device.map(|device| device.name().to_string()), limits)
    }

    fn wired_limit() -> Option<u64> {
        match Ctl::new(WIRED_LIMIT).ok()?.value().ok()? {
            CtlValue::Int(mib) => u64::try_from(mib).ok(),
            CtlValue::S64(mib) => u64::try_from(mib).ok(),
            CtlValue::Long(mib) => u64::try_from(mib).ok(),
            CtlValue::Uint(mib) => Some(mib.into()),
            CtlValue::Ulong(mib) | CtlValue::U64(mib) => Some(mib),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn most(memory_gib: u64, wired_limit_mib: u64, working_set: Option<u64>) -> u64 {
        let limits = Limits {
            memory: Some(Bytes(memory_gib * GIB)),
            wired_limit_mib: Some(wired_limit_mib),
            working_set: working_set.map(Bytes),
        };
        limits.most().unwrap().0
    }

    #[test]
    fn what_a_person_set_goes_before_what_metal_says_and_that_before_a_share() {
        assert_eq!(most(32, 26_624, Some(21 * GIB)), 26 * GIB);
        assert_eq!(most(32, 0, Some(21 * GIB)), 21 * GIB);
        assert_eq!(most(128, 0, Some(115_448_725_504)), 115_448_725_504);
        assert_eq!(most(32, 0, Some(0)), most(32, 0, None), "a device that says nothing");
    }

    #[test]
    fn without_a_word_of_metal_it_is_two_thirds_of_a_small_memory_and_three_quarters_of_a_large_one()
     {
        assert_eq!(most(36, 0, None), 24 * GIB);
        assert_eq!(most(64, 0, None), 48 * GIB);
        assert_eq!(most(96, 0, None), 72 * GIB);
        let eight = most(8, 0, None);
        assert!((5 * GIB..6 * GIB).contains(&eight), "{eight}");
    }

    #[test]
    fn nobody_can_set_more_than_there_is() {
        assert_eq!(most(16, 1 << 40, None), 16 * GIB);
        assert_eq!(most(16, u64::MAX, None), 16 * GIB);
        let alone = Limits { wired_limit_mib: Some(1024), ..Limits::default() };
        assert_eq!(alone.room(), Some(Room { total: Bytes(GIB), free: Bytes(GIB) }));
        assert_eq!(Limits::default().room(), None, "nothing is known");
    }
}

//! The threads that wait for what the driver reports of a GPU: Xids.
//!
//! Source: the NVML API reference, "Event Handling Methods".

use std::{sync::mpsc::Receiver, time::Duration};

use nvml_wrapper::{
    EventSet, Nvml,
    enums::event::XidError,
    error::{NvmlError, NvmlErrorWithSource},
};
use tokio::time::Instant;

use super::{Board, GpuOptions, Seen, note, nvml::is_closed};
use crate::spec::gpu::{NOT_SAID, Xid, Xids};

/// How long until it is tried again to listen: a GPU that is lost may come back.
const AGAIN: Duration = Duration::from_secs(30);
/// How many Xids of one GPU are kept.
const KEPT: usize = 16;

/// Listens to one GPU until `closed` is. One that cannot tell of Xids has none that are known.
pub(super) fn listen(
    nvml: &Nvml,
    index: u32,
    board: &Board,
    options: &GpuOptions,
    closed: &Receiver<()>,
) {
    loop {
        let pause = match register(nvml, index) {
            Ok(set) => {
                note(board, index, |seen| {
                    seen.xids.get_or_insert_default();
                });
                if wait(&set, index, board, options, closed) {
                    return;
                }
                options.period
            }
            Err(_) => AGAIN,
        };
        if is_closed(closed, pause) {
            return;
        }
    }
}

#[cfg(target_os = "linux")]
fn register(nvml: &Nvml, index: u32) -> Result<EventSet<'_>, NvmlErrorWithSource> {
    use nvml_wrapper::bitmasks::event::EventTypes;

    let device = nvml.device_by_index(index)?;
    device.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set()?)
}

/// NVML has events on Linux alone.
#[cfg(not(target_os = "linux"))]
fn register(_nvml: &Nvml, _index: u32) -> Result<EventSet<'_>, NvmlErrorWithSource> {
    Err(NvmlError::NotSupported.into())
}

/// Waits for one Xid after the other; tells whether it ended because nobody asks any more.
fn wait(
    set: &EventSet<'_>,
    index: u32,
    board: &Board,
    options: &GpuOptions,
    closed: &Receiver<()>,
) -> bool {
    let timeout_ms = u32::try_from(options.period.as_millis()).unwrap_or(u32::MAX);
    loop {
        let begun = Instant::now();
        let pause = match set.wait(timeout_ms) {
            Ok(event) => {
                let code = match event.event_data {
                    Some(XidError::Value(code)) => code,
                    Some(XidError::Unknown) | None => NOT_SAID,
                };
                let xid = Xid { code, at_unix_ms: (options.wall_clock)() };
                note(board, index, |seen| seen.take_xid(xid));
                Duration::ZERO
            }
            // A wait that comes back early is not to become a busy loop.
            Err(NvmlError::Timeout) => options.period.saturating_sub(begun.elapsed()),
            Err(_) => return false,
        };
        if is_closed(closed, pause) {
            return true;
        }
    }
}

impl Seen {
    fn take_xid(&mut self, xid: Xid) {
        let Xids { count, last } = self.xids.get_or_insert_default();
        *count = count.saturating_add(1);
        last.push(xid);
        self.xids_at.push_back(Instant::now());
        if last.len() > KEPT {
            last.remove(0);
            self.xids_at.pop_front();
        }
    }
}

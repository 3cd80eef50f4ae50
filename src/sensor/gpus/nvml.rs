//! The threads that ask the driver.
//!
//! Source: the NVML API reference for the meaning of its errors; `nvml.h` for the order of devices, which
//! is that of their bus addresses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nvml_wrapper::{
    Nvml, enums::device::UsedGpuMemory, error::NvmlError, struct_wrappers::device::ProcessInfo,
};

use tokio::time::Instant;

use super::{Board, GpuOptions, GpuUse, note, xid};
use crate::spec::{Bytes, memory::Room};

/// How long until the library is looked for again: the driver may come up after us.
const AGAIN: Duration = Duration::from_secs(30);

/// Loads the library, and starts a reader for each GPU that it counts. Ends when `closed` does.
pub(super) fn find(
    (board, is_counted): (&Board, &AtomicBool),
    options: &GpuOptions,
    closed: &Receiver<()>,
) {
    let Some(nvml) = load(is_counted, options, closed) else { return };
    let nvml = Arc::new(nvml);
    let mut readers = Vec::new();
    loop {
        let count = nvml.device_count().unwrap_or_default();
        for index in u32::try_from(readers.len()).unwrap_or(u32::MAX)..count {
            note(board, index, |_| {});
            let (open, closed) = mpsc::channel();
            let listener = listen(&nvml, index, board, options);
            let (nvml, board, options) = (Arc::clone(&nvml), Arc::clone(board), options.clone());
            let reader = thread::Builder::new()
                .name(format!("gpu-{index}"))
                .spawn(move || read(&nvml, index, &board, &options, &closed));
            // One that cannot be started is tried again: its GPU stays silent until then.
            match reader {
                Ok(reader) => readers.push((open, reader, listener)),
                Err(_) => break,
            }
        }
        is_counted.store(true, Ordering::Release);
        if is_closed(closed, options.period) {
            return;
        }
    }
}

/// Listens for the faults of one GPU. Without a thread there is no news of them.
fn listen(
    nvml: &Arc<Nvml>,
    index: u32,
    board: &Board,
    options: &GpuOptions,
) -> Option<(mpsc::Sender<()>, JoinHandle<()>)> {
    let (open, closed) = mpsc::channel();
    let (nvml, board, options) = (Arc::clone(nvml), Arc::clone(board), options.clone());
    let listener = thread::Builder::new()
        .name(format!("xid-{index}"))
        .spawn(move || xid::listen(&nvml, index, &board, &options, &closed));
    Some((open, listener.ok()?))
}

fn load(is_counted: &AtomicBool, options: &GpuOptions, closed: &Receiver<()>) -> Option<Nvml> {
    loop {
        let nvml = match &options.library {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        };
        match nvml {
            Ok(nvml) => return Some(nvml),
            // Missing, of another version, without a device: none of it is a fault here.
            Err(_) => is_counted.store(true, Ordering::Release),
        }
        if is_closed(closed, AGAIN) {
            return None;
        }
    }
}

/// Waits, and tells whether nobody asks any more.
pub(super) fn is_closed(closed: &Receiver<()>, pause: Duration) -> bool {
    closed.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
}

/// Reads one GPU now and then.
fn read(nvml: &Nvml, index: u32, board: &Board, options: &GpuOptions, closed: &Receiver<()>) {
    loop {
        let looked = look(nvml, index);
        note(board, index, |seen| match looked {
            Ok(looked) => {
                seen.heard = Some(Instant::now());
                seen.lost = None;
                (seen.uuid, seen.name) = (looked.uuid, looked.name);
                (seen.last, seen.used) = (Some(looked.room), looked.used);
            }
            Err(error) => seen.lost = lost(&error).or_else(|| seen.lost.take()),
        });
        if is_closed(closed, options.period) {
            return;
        }
    }
}

/// What one look brings.
struct Looked {
    uuid: String,
    name: String,
    room: Room,
    used: GpuUse,
}

fn look(nvml: &Nvml, index: u32) -> Result<Looked, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    let processes = device.running_compute_processes().unwrap_or_default();
    let used = GpuUse {
        // Some cards do not say.
        busy_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        processes: processes.iter().filter_map(held).collect(),
        untold: processes
            .iter()
            .filter(|process| held(process).is_none())
            .map(|it| it.pid)
            .collect(),
    };
    let room = Room { total: Bytes(memory.total), free: Bytes(memory.free) };
    Ok(Looked { uuid: device.uuid()?, name: device.name()?, room, used })
}

fn held(process: &ProcessInfo) -> Option<(u32, Bytes)> {
    match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some((process.pid, Bytes(bytes))),
        UsedGpuMemory::Unavailable => None,
    }
}

/// Says that the GPU is gone, where the driver does; other errors leave it silent.
fn lost(error: &NvmlError) -> Option<String> {
    let reason = if matches!(error, NvmlError::GpuLost) {
        "the driver says that it has fallen off the bus or has become inaccessible"
    } else if matches!(error, NvmlError::NotFound | NvmlError::InvalidArg) {
        "the driver no longer lists it"
    } else if matches!(error, NvmlError::ResetRequired) {
        "the driver says that it must be reset"
    } else {
        return None;
    };
    Some(reason.to_owned())
}

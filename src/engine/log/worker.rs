//! The candle worker's log: plain lines on stderr, the last of which is `error: …` when it failed.

use super::{Judged, Weight};
use crate::spec::death::LogCause;

/// `loading: 42 %`.
pub(super) fn progress(line: &str) -> Option<u8> {
    let percent = line.trim().strip_prefix("loading: ")?.strip_suffix('%')?;
    percent.trim_end().parse().ok().filter(|percent| *percent <= 100)
}

pub(super) fn is_ready_line(line: &str) -> bool {
    line.starts_with("ready in ")
}

/// Judges only what the exit code does not say: the place of a failed allocation, an abort for
/// memory, arguments that never reached the worker.
pub(super) fn judge(line: &str) -> Option<Judged<'_>> {
    // Source: the default hook of Rust's allocator.
    if line.starts_with("memory allocation of ") && line.ends_with(" bytes failed") {
        return Some((Weight::Memory, LogCause::OutOfMemory, line));
    }
    let said = line.strip_prefix("error: ")?;
    if said.starts_with("out of memory") {
        // The model's path stands before and may say anything.
        let fault = said.rsplit_once("`: ").map_or(said, |(_, fault)| fault);
        let is_device = ["CUDA", "Metal", "metal"].iter().any(|device| fault.contains(device));
        return Some(if is_device {
            (Weight::DeviceMemory, LogCause::OutOfDeviceMemory, line)
        } else {
            (Weight::Memory, LogCause::OutOfMemory, line)
        });
    }
    // Source: clap's texts.
    let of_parser = ["unexpected argument ", "invalid value ", "unrecognized subcommand "];
    of_parser.iter().any(|start| said.starts_with(start)).then_some((
        Weight::Specific,
        LogCause::BadConfig,
        line,
    ))
}

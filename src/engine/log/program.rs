//! Logs of programs of which nothing is known: Python servers mostly, and others of ggml's family.
//!
//! Source: the texts of Python's own exceptions, `argparse`, uvicorn, `torch` and MLX.

use super::{Judged, Weight, llama, worker};
use crate::spec::death::LogCause;

pub(super) fn is_ready_line(line: &str) -> bool {
    const STARTS: [&str; 5] = [
        "ready",
        "Application startup complete",
        "Uvicorn running on ",
        "Starting httpd at ",
        "Listening ",
    ];
    worker::is_ready_line(line) || STARTS.iter().any(|start| said(line).starts_with(start))
}

pub(super) fn judge(lines: &[String]) -> Vec<Judged<'_>> {
    let judge = |line| judge_line(said(line)).or_else(|| llama::judge_printed(line));
    let own = lines.iter().filter_map(|line| judge(line));
    own.chain(llama::judge(lines)).collect()
}

fn judge_line(line: &str) -> Option<Judged<'_>> {
    let starts = |texts: &[&str]| texts.iter().any(|text| line.starts_with(text));
    let judged = if starts(&["torch.OutOfMemoryError: ", "torch.cuda.OutOfMemoryError: "])
        || starts(&["RuntimeError: CUDA out of memory", "RuntimeError: [metal::malloc] "])
        || line.contains("[METAL] Command buffer execution failed: Insufficient Memory")
    {
        (Weight::DeviceMemory, LogCause::OutOfDeviceMemory)
    } else if line == "MemoryError"
        || starts(&["MemoryError: ", "numpy.core._exceptions._ArrayMemoryError: "])
    {
        (Weight::Memory, LogCause::OutOfMemory)
    } else if starts(&[
        "OSError: [Errno 98] ",
        "OSError: [Errno 48] ",
        "[Errno 98] ",
        "[Errno 48] ",
    ]) {
        (Weight::Specific, LogCause::PortBusy)
    } else if starts(&["FileNotFoundError: "]) {
        (Weight::Specific, LogCause::MissingFile)
    } else if is_argparse(line) {
        (Weight::Specific, LogCause::BadConfig)
    } else {
        return None;
    };
    let (weight, cause) = judged;
    Some((weight, cause, line))
}

/// `server.py: error: unrecognized arguments: --bogus`.
fn is_argparse(line: &str) -> bool {
    let Some((program, said)) = line.split_once(": error: ") else { return false };
    let is_program = !program.is_empty() && !program.contains(": ");
    let texts = ["unrecognized arguments: ", "the following arguments are required: ", "argument "];
    is_program && texts.iter().any(|text| said.starts_with(text))
}

/// Takes a logger's level off: `ERROR:    [Errno 98] …`.
fn said(line: &str) -> &str {
    let line = line.trim();
    ["ERROR:", "INFO:", "CRITICAL:", "WARNING:"]
        .iter()
        .find_map(|level| line.strip_prefix(level))
        .map_or(line, str::trim_start)
}

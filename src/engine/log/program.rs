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
    let of_family = llama::judge(lines);
    own.chain(of_family.into_iter().filter(|judged| !is_any_error(*judged))).collect()
}

/// llama.cpp refuses its arguments with `error: …`; others say anything so.
fn is_any_error((_, cause, line): Judged<'_>) -> bool {
    cause == LogCause::BadConfig
        && line.starts_with("error: ")
        && !line.starts_with("error: invalid argument: ")
        && !line.starts_with("error: unexpected argument ")
}

fn judge_line(line: &str) -> Option<Judged<'_>> {
    let starts = |texts: &[&str]| texts.iter().any(|text| line.starts_with(text));
    let judged = if starts(&["torch.OutOfMemoryError: ", "torch.cuda.OutOfMemoryError: "])
        || starts(&["torch.AcceleratorError: CUDA error: out of memory"])
        || starts(&["RuntimeError: CUDA out of memory", "RuntimeError: [metal::malloc] "])
        || starts(&["RuntimeError: HIP out of memory", "RuntimeError: MPS backend out of memory "])
        || starts(&["RuntimeError: CUDA error: out of memory"])
        || starts(&["ValueError: No available memory for the cache blocks"])
        || starts(&["ValueError: Free memory on device "])
        || starts(&["jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: "])
        || is_metal_fault(line)
    {
        (Weight::DeviceMemory, LogCause::OutOfDeviceMemory)
    } else if line == "MemoryError"
        || starts(&["MemoryError: ", "numpy.core._exceptions._ArrayMemoryError: "])
        || starts(&["numpy._core._exceptions._ArrayMemoryError: ", "OSError: [Errno 12] "])
        || starts(&[
            "fatal error: runtime: out of memory",
            "fatal error: runtime: cannot allocate ",
        ])
        || line.starts_with("RuntimeError: [enforce fail at alloc_cpu.cpp:")
        || line.starts_with("memory allocation of ") && line.ends_with(" bytes failed")
    {
        (Weight::Memory, LogCause::OutOfMemory)
    } else if starts(&[
        "OSError: [Errno 98] ",
        "OSError: [Errno 48] ",
        "[Errno 98] ",
        "[Errno 48] ",
    ]) || line.ends_with(": bind: address already in use")
        || line.starts_with("error: ")
            && (line.ends_with(" is in use") || line.contains("Address already in use"))
    {
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

/// `libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command …`.
fn is_metal_fault(line: &str) -> bool {
    const FAULT: &str = "[METAL] Command buffer execution failed: Insufficient Memory";
    let starts = ["", "RuntimeError: "];
    starts.iter().any(|start| line.strip_prefix(start).is_some_and(|said| said.starts_with(FAULT)))
        || line.starts_with("libc++abi: ") && line.contains(FAULT)
}

/// `server.py: error: unrecognized arguments: --bogus`.
fn is_argparse(line: &str) -> bool {
    let Some((program, said)) = line.split_once(": error: ") else { return false };
    let is_program = !program.is_empty() && !program.contains(": ");
    let texts = ["unrecognized arguments: ", "the following arguments are required: ", "argument "];
    is_program && texts.iter().any(|text| said.starts_with(text))
}

/// Takes a logger's level or vLLM's name of a process off: `ERROR:    [Errno 98] …`,
/// `(EngineCore_0 pid=77) ValueError: …`.
fn said(line: &str) -> &str {
    let line = line.trim();
    let named = line.strip_prefix('(').and_then(|rest| rest.split_once(") "));
    if let Some((name, rest)) = named
        && name.split_once(" pid=").is_some_and(|(_, pid)| pid.parse::<u32>().is_ok())
    {
        return rest.trim_start();
    }
    ["ERROR:", "INFO:", "CRITICAL:", "WARNING:"]
        .iter()
        .find_map(|level| line.strip_prefix(level))
        .map_or(line, str::trim_start)
}

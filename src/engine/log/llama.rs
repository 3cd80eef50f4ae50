//! llama.cpp's log.
//!
//! A line is `0.00.005.085 E gguf_init_from_reader: invalid magic characters: …`: a time, a level, a
//! function, what it says. Past the log print the argument parser (before its first line), `abort`,
//! the C++ runtime and the Vulkan backend.
//!
//! Source: llama.cpp b11434, run into each of its deaths; the texts of CUDA, HIP, MUSA, Metal and
//! Vulkan are from its sources (`ggml-cuda.cu`, `ggml-metal*.{cpp,m}`, `ggml-vulkan-buffers.cpp`).

use super::{Judged, Weight};
use crate::spec::death::LogCause;

/// What the loader puts before the cause.
const WRAPPERS: [&str; 5] = [
    "error loading model: ",
    "error loading model vocabulary: ",
    "failed to initialize the context: ",
    "llama_model_loader: ",
    "error: ",
];

/// Names of buffers on a device, without their number.
const DEVICES: [&str; 8] = ["CUDA", "ROCm", "MUSA", "Metal", "MTL", "Vulkan", "SYCL", "CANN"];

pub(super) fn is_ready_line(line: &str) -> bool {
    const SIGNS: [&str; 4] =
        ["model loaded", "listening on ", "server is listening on ", "all slots are idle"];
    let said = match Line::read(line) {
        Line::Logged { level: 'I', words } => message(words),
        Line::Logged { .. } => return false,
        Line::Raw(line) => message(line),
    };
    SIGNS.iter().any(|sign| said.starts_with(sign))
}

/// Judges each line that is llama.cpp's own.
pub(super) fn judge(lines: &[String]) -> Vec<Judged<'_>> {
    let read: Vec<_> = lines.iter().map(|line| Line::read(line)).collect();
    let has_prefixes = read.iter().any(|line| matches!(line, Line::Logged { .. }));
    // The arguments are read before the server says its first word; only warnings of the parser
    // itself, from another thread, may come between.
    let began = read.iter().position(|line| matches!(line, Line::Logged { level: 'I', .. }));
    // What it said before it went on to serve did not kill it.
    let lived_on = read.iter().rposition(Line::is_sign_of_life).unwrap_or(0);
    let mut is_echo = false;
    let judged = read.into_iter().enumerate().filter_map(|(at, line)| {
        if let Line::Logged { level, .. } = line {
            // Prompts are printed at this level alone, over as many lines as they have.
            is_echo = level == 'D';
        }
        (at >= lived_on && !is_echo).then_some((at, line))
    });
    let judged = judged.filter_map(|(at, line)| match line {
        Line::Logged { level: 'E', words } => judge_logged(words),
        Line::Logged { .. } => None,
        // A version or a setting without prefixes: a known function's name must do.
        Line::Raw(line) if !has_prefixes && is_of_known_function(line) => {
            judge_printed(line).or_else(|| judge_logged(without_tag(line)))
        }
        Line::Raw(line) if !has_prefixes && device_error(line).is_some() => device_error(line),
        Line::Raw(line) if began.is_none_or(|began| at < began) => {
            judge_printed(line).or_else(|| judge_arguments(line))
        }
        Line::Raw(line) => judge_printed(line),
    });
    judged.collect()
}

/// Judges what is printed past the log; also whisper.cpp's and other programs' of this family.
pub(super) fn judge_printed(line: &str) -> Option<Judged<'_>> {
    let is_fatal = line.starts_with("terminate called after throwing an instance of ")
        || line.starts_with("libc++abi: terminating due to uncaught exception of type ");
    let is_bad_alloc = is_fatal && line.contains("std::bad_alloc")
        || matches!(line, "what():  std::bad_alloc" | "  what():  std::bad_alloc");
    if is_bad_alloc || aborted(line).is_some_and(is_allocation_assertion) {
        return Some((Weight::Memory, LogCause::OutOfMemory, line.trim()));
    }
    let is_thrown = is_fatal || line.trim_start().starts_with("what():  vk::");
    if is_thrown
        && (line.contains("vk::OutOfDeviceMemoryError")
            || line.ends_with(": ErrorOutOfDeviceMemory"))
    {
        return Some((Weight::DeviceMemory, LogCause::OutOfDeviceMemory, line.trim()));
    }
    if let Some(said) = line.strip_prefix("ggml_vulkan: ") {
        let is_device = said.starts_with("Device memory allocation of size ")
            || said.contains("ErrorOutOfDeviceMemory")
            || said.starts_with("Requested buffer size exceeds device ")
            || said.starts_with("No suitable memory type found");
        let is_host =
            said.starts_with("Memory allocation of size ") || said.contains("ErrorOutOfHostMemory");
        return match (is_device, is_host) {
            (true, _) => Some((Weight::DeviceMemory, LogCause::OutOfDeviceMemory, line)),
            (false, true) => Some((Weight::Memory, LogCause::OutOfMemory, line)),
            (false, false) => None,
        };
    }
    None
}

/// `…/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed`: returns what follows the place.
fn aborted(line: &str) -> Option<&str> {
    let (place, said) = line.split_once(": ")?;
    let (file, number) = place.rsplit_once(':')?;
    let is_source = [".c", ".cpp", ".cu", ".m", ".h", ".cuh"].iter().any(|end| file.ends_with(end));
    (is_source && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some(said)
}

fn is_allocation_assertion(said: &str) -> bool {
    said.starts_with("GGML_ASSERT(ctx->mem_buffer != NULL) failed")
}

fn judge_arguments(line: &str) -> Option<Judged<'_>> {
    let cannot_open = line.contains("failed to open file") || line.contains("file does not exist");
    if line.starts_with("error while handling argument ") && cannot_open {
        return Some((Weight::Specific, LogCause::MissingFile, line));
    }
    let is_refusal =
        line.starts_with("error: ") || line.starts_with("error while handling argument ");
    if is_refusal {
        return Some((Weight::Specific, LogCause::BadConfig, line));
    }
    // The last line of the usage of one option, whose first lines may be out of sight.
    (line == "to show complete usage, run with -h").then_some((
        Weight::General,
        LogCause::BadConfig,
        line,
    ))
}

fn judge_logged(words: &str) -> Option<Judged<'_>> {
    let (function, said) = split_function(words);
    let said = unwrapped(said);
    if let Some((weight, cause)) = memory(said) {
        return Some((weight, cause, words));
    }
    if let Some(judged) = device_error(words) {
        return Some(judged);
    }
    let starts = |texts: &[&str]| texts.iter().any(|text| said.starts_with(text));
    let (weight, cause) =
        if starts(&["couldn't bind HTTP server socket", "couldn't start HTTP listener"]) {
            (Weight::Specific, LogCause::PortBusy)
        } else if starts(&["failed to open "]) && is_missing(said) {
            (Weight::Specific, LogCause::MissingFile)
        } else if function.starts_with("gguf_") || is_named_fault(said) {
            (Weight::Specific, LogCause::BadModel)
        } else if starts(&[
            "failed to load model",
            "failed to load multimodal model",
            "exiting due to model loading error",
        ]) {
            (Weight::General, LogCause::BadModel)
        } else {
            return None;
        };
    Some((weight, cause, words))
}

/// Failed allocations that the engine does not recover from.
fn memory(said: &str) -> Option<(Weight, LogCause)> {
    let on_device = (Weight::DeviceMemory, LogCause::OutOfDeviceMemory);
    let somewhere = (Weight::Memory, LogCause::OutOfMemory);
    if said.starts_with("allocating ") && said.ends_with("Malloc failed: out of memory")
        || said.starts_with("failed to allocate Metal buffer of ")
        || said.starts_with("failed to allocate buffer, size = ")
        || said.starts_with("Insufficient Memory (")
            && said.ends_with(":kIOGPUCommandBufferCallbackErrorOutOfMemory)")
    {
        return Some(on_device);
    }
    if let Some(rest) = said
        .strip_prefix("unable to allocate ")
        .or_else(|| said.strip_prefix("failed to allocate "))
    {
        // `unable to allocate CUDA0 buffer`, `failed to allocate CPU buffer of size 1024`.
        let named = rest.split_once(" buffer").map_or("", |(name, _)| name);
        let is_device =
            DEVICES.iter().any(|device| named.starts_with(device)) && !named.ends_with("_Host");
        let is_buffer = !named.is_empty() || rest.starts_with("buffer ");
        let is_memory = is_buffer
            || rest.ends_with(" MB")
            || rest.ends_with(" bytes")
            || rest.starts_with("compute ")
            || rest == "graph";
        return match (is_device, is_memory) {
            (true, _) => Some(on_device),
            (false, true) => Some(somewhere),
            (false, false) => None,
        };
    }
    let is_host = said.starts_with("insufficient memory (attempted to allocate ")
        || matches!(said, "std::bad_alloc" | "mmap failed: Cannot allocate memory");
    is_host.then_some(somewhere)
}

/// `CUDA error: out of memory`, where other CUDA errors are crashes.
fn device_error(words: &str) -> Option<Judged<'_>> {
    let said = ["CUDA error: ", "ROCm error: ", "MUSA error: "]
        .iter()
        .find_map(|start| words.strip_prefix(start))?;
    let is_memory = said == "out of memory" || said.ends_with("BLAS_STATUS_ALLOC_FAILED");
    is_memory.then_some((Weight::DeviceMemory, LogCause::OutOfDeviceMemory, words))
}

fn is_missing(said: &str) -> bool {
    ["No such file or directory", "Permission denied"]
        .iter()
        .any(|error| said.trim_end_matches(')').ends_with(error))
}

fn is_named_fault(said: &str) -> bool {
    const STARTS: [&str; 7] = [
        "tensor '",
        "check_tensor_dims: ",
        "unknown model architecture: ",
        "wrong number of tensors",
        "missing tensor '",
        "invalid split file",
        "unknown pre-tokenizer type: ",
    ];
    STARTS.iter().any(|start| said.starts_with(start))
        || said.starts_with("key not found in model: ")
        || said.starts_with("done_getting_tensors: wrong number of tensors")
}

/// A line of the log, taken apart.
enum Line<'a> {
    Logged { level: char, words: &'a str },
    Raw(&'a str),
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim_end();
        let timeless = match line.split_once(' ') {
            Some((time, rest)) if is_time(time) => rest,
            Some(_) | None => line,
        };
        let mut letters = timeless.chars();
        let level = letters.next().filter(|letter| matches!(letter, 'D' | 'I' | 'W' | 'E'));
        match level {
            Some(level) if letters.next() == Some(' ') => {
                let words = letters.as_str().trim_start();
                Self::Logged { level, words: without_tag(words) }
            }
            Some(_) | None => Self::Raw(line),
        }
    }
}

impl Line<'_> {
    /// Tells whether the server works on a request.
    fn is_sign_of_life(&self) -> bool {
        let Line::Logged { level: 'I', words } = self else { return false };
        words.starts_with("launch_slot_: ") || words.starts_with("print_timing: ")
    }
}

/// `0.00.005.085`: minutes, seconds, milliseconds, microseconds.
fn is_time(word: &str) -> bool {
    let parts = word.split('.');
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    parts.clone().count() == 4 && parts.into_iter().all(is_number)
}

/// Takes off the part of the server that speaks: `srv  llama_server: …`, `cmn  common_init_: …`.
fn without_tag(words: &str) -> &str {
    let (tag, rest) = words.split_once(' ').unwrap_or(("", words));
    let is_tag = matches!(tag, "srv" | "slot" | "cmn" | "que" | "res");
    if is_tag { rest.trim_start() } else { words }
}

/// Splits `function: text`; a text without a function has an empty one.
fn split_function(words: &str) -> (&str, &str) {
    match words.split_once(": ") {
        Some((function, said)) if is_function(function) => (function, said),
        Some(_) | None => ("", words),
    }
}

fn is_function(word: &str) -> bool {
    let is_part =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '<' | '>' | '(' | ')');
    !word.is_empty() && word.chars().all(is_part)
}

fn is_of_known_function(line: &str) -> bool {
    const FAMILIES: [&str; 7] =
        ["ggml_", "gguf_", "llama_", "common_", "clip_", "whisper_", "alloc_"];
    let line = without_tag(line);
    let (function, _) = split_function(line);
    matches!(function, "main" | "start" | "load_model")
        || FAMILIES.iter().any(|family| function.starts_with(family))
}

fn message(words: &str) -> &str {
    split_function(without_tag(words)).1
}

fn unwrapped(mut said: &str) -> &str {
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| said.strip_prefix(wrapper)) {
        said = inner;
    }
    said
}

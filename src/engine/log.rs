//! What a line of an engine's log means.
//!
//! Patterns are anchored: a line counts only in the form in which the engine itself prints it, so
//! that the same words inside an echoed prompt mean nothing.
//! Source of the texts: llama.cpp b11434, run into each of its deaths; CUDA, HIP, Metal and Vulkan
//! texts are from its sources.

use super::EngineKind;
use crate::spec::death::{LogCause, LogFinding};

/// The longest part of a line that is kept as a finding, in bytes.
const FINDING_BYTES: usize = 300;

/// Texts of device allocations that failed.
const DEVICE_MEMORY: [&str; 10] = [
    "cudaMalloc failed: out of memory",
    "hipMalloc failed: out of memory",
    "CUDA error: out of memory",
    "ROCm error: out of memory",
    "failed to allocate Metal buffer",
    "error: failed to allocate buffer, size =",
    "ggml_vulkan: Device memory allocation of size",
    "ErrorOutOfDeviceMemory",
    "Requested buffer size exceeds device buffer size limit",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
];

/// Texts of allocations that failed, of host memory or of memory that the line does not place.
const MEMORY: [&str; 11] = [
    "insufficient memory (attempted to allocate",
    "failed to allocate buffer of size",
    "failed to allocate buffer for kv cache",
    "failed to allocate compute",
    "unable to allocate",
    "failed to allocate output buffer of size",
    "GGML_ASSERT(ctx->mem_buffer != NULL) failed",
    "std::bad_alloc",
    "mmap failed: Cannot allocate memory",
    "failed to allocate graph",
    "Cannot allocate memory",
];

/// Texts that look like memory and are not: the engine goes on, or means something else.
const HARMLESS: [&str; 5] = [
    "retrying without pipeline parallelism",
    "of pinned memory",
    "trying to fit params to free device memory",
    "failed to find free space in the KV cache",
    "Context size has been exceeded",
];

const BAD_MODEL: [&str; 8] = [
    "data is not within the file bounds",
    "invalid magic characters",
    "unknown model architecture",
    "check_tensor_dims: tensor",
    "failed to load model from",
    "error loading model",
    "tokenizer type",
    "wrong number of tensors",
];

/// Returns how far a load has come, 0 to 100, if the line says so.
pub fn progress(kind: EngineKind, line: &str) -> Option<u8> {
    match kind {
        // llama-server prints nothing that a share could be read from.
        EngineKind::LlamaServer => None,
        EngineKind::Candle | EngineKind::Command => {
            let percent = line.trim().strip_prefix("loading: ")?.strip_suffix('%')?;
            percent.trim().parse().ok().filter(|percent| *percent <= 100)
        }
    }
}

/// Tells whether the line says that the engine is ready: a reason to look, not a proof.
pub fn is_ready_line(kind: EngineKind, line: &str) -> bool {
    match kind {
        EngineKind::LlamaServer => {
            llama_body(line).is_some_and(|(_, body)| {
                body.contains("llama_server: model loaded") || body.contains(": listening on ")
            })
        }
        EngineKind::Candle => line.starts_with("ready in "),
        EngineKind::Command => line.trim() == "ready" || line.contains("Application startup complete"),
    }
}

/// Finds the cause of a death among the engine's last lines, oldest first.
///
/// 1. A failed allocation on a device.
/// 2. Any other failed allocation: loaders report it as "failed to load model" afterwards.
/// 3. A taken address, a refused argument, a missing file, a damaged model: the last one said.
pub fn death_cause(kind: EngineKind, lines: &[String]) -> Option<LogFinding> {
    let said = |line: &str| own_words(kind, line).map(str::to_owned);
    let memory = |texts: &'static [&'static str], cause: LogCause| {
        lines.iter().rev().find_map(|line| {
            let words = said(line)?;
            let matches = texts.iter().any(|text| words.contains(text))
                && !HARMLESS.iter().any(|text| words.contains(text));
            matches.then(|| finding(cause, &words))
        })
    };
    memory(&DEVICE_MEMORY, LogCause::OutOfDeviceMemory) // (1)
        .or_else(|| memory(&MEMORY, LogCause::OutOfMemory)) // (2)
        .or_else(|| {
            // (3) What names the file or the option says more than "failed to load".
            lines
                .iter()
                .rev()
                .find_map(|line| specific_cause(&said(line)?))
                .or_else(|| lines.iter().rev().find_map(|line| general_cause(&said(line)?)))
        })
}

fn specific_cause(words: &str) -> Option<LogFinding> {
    let has = |text: &str| words.contains(text);
    let cause = if has("couldn't bind HTTP server socket") || has("address in use") {
        LogCause::PortBusy
    } else if has("error: invalid argument: ") || has("error while handling argument") || has("unexpected argument") {
        LogCause::BadConfig
    } else if has("failed to open GGUF file") && has("No such file or directory") {
        LogCause::MissingFile
    } else if BAD_MODEL.iter().take(4).any(|text| has(text)) {
        LogCause::BadModel
    } else {
        return None;
    };
    Some(finding(cause, words))
}

fn general_cause(words: &str) -> Option<LogFinding> {
    if words.starts_with("to show complete usage, run with -h") {
        return Some(finding(LogCause::BadConfig, "an option's value was refused"));
    }
    BAD_MODEL.iter().any(|text| words.contains(text)).then(|| finding(LogCause::BadModel, words))
}

fn finding(cause: LogCause, words: &str) -> LogFinding {
    let end = words.floor_char_boundary(FINDING_BYTES);
    LogFinding { cause, line: words.get(..end).unwrap_or_default().to_owned() }
}

/// Returns what the engine itself says in `line`; nothing for lines that may be somebody's text.
fn own_words(kind: EngineKind, line: &str) -> Option<&str> {
    match kind {
        EngineKind::LlamaServer => match llama_body(line) {
            Some((level, body)) => matches!(level, 'E' | 'W').then_some(body),
            None => is_raw_abort(line).then(|| line.trim()),
        },
        EngineKind::Candle => line.strip_prefix("error: "),
        // Of a command only the form of an error is known.
        EngineKind::Command => {
            let line = line.trim();
            let is_error = is_raw_abort(line)
                || ["error", "fatal", "RuntimeError", "MemoryError", "torch.OutOfMemoryError"]
                    .iter()
                    .any(|start| line.get(..start.len()).is_some_and(|s| s.eq_ignore_ascii_case(start)));
            is_error.then_some(line)
        }
    }
}

/// Splits a line of llama.cpp's log, `0.00.028.354 E text`, into its level and text.
fn llama_body(line: &str) -> Option<(char, &str)> {
    let (time, rest) = line.split_once(' ')?;
    let mut parts = time.split('.');
    let is_time = parts.clone().count() == 4
        && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !is_time {
        return None;
    }
    let (level, body) = rest.split_once(' ')?;
    let mut level = level.chars();
    let letter = level.next().filter(|letter| matches!(letter, 'D' | 'I' | 'W' | 'E'))?;
    level.next().is_none().then(|| (letter, body.trim()))
}

/// Lines that are printed past the log: by `abort`, the C++ runtime, the argument parser.
fn is_raw_abort(line: &str) -> bool {
    const STARTS: [&str; 10] = [
        "GGML_ASSERT(",
        "ggml_",
        "CUDA error",
        "ROCm error",
        "terminate called after throwing",
        "what():",
        "libc++abi: ",
        "error: ",
        "error while handling argument",
        "to show complete usage",
    ];
    let line = line.trim();
    // `ggml.c:1234: GGML_ASSERT(…) failed` names its place first.
    let after_place = line.split_once(": ").map_or(line, |(_, rest)| rest);
    STARTS.iter().any(|start| line.starts_with(start)) || after_place.starts_with("GGML_ASSERT(")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(kind: EngineKind, text: &str) -> Option<LogCause> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        death_cause(kind, &lines).map(|finding| finding.cause)
    }

    #[test]
    fn each_death_of_the_real_llama_server_is_told_from_its_log() {
        use LogCause::{BadConfig, BadModel, MissingFile, OutOfMemory, PortBusy};
        let deaths = [
            (include_str!("testdata/truncated.txt"), BadModel),
            (include_str!("testdata/garbage.txt"), BadModel),
            (include_str!("testdata/missing.txt"), MissingFile),
            (include_str!("testdata/bad_flag.txt"), BadConfig),
            (include_str!("testdata/bad_value.txt"), BadConfig),
            (include_str!("testdata/port_busy.txt"), PortBusy),
            (include_str!("testdata/context_too_large.txt"), OutOfMemory),
            (include_str!("testdata/ulimit.txt"), OutOfMemory),
        ];
        for (text, expected) in deaths {
            assert_eq!(cause(EngineKind::LlamaServer, text), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_device_allocation_outranks_what_the_loader_says_of_it() {
        let text = "0.00.100.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory\n\
                    0.00.100.100 E llama_model_load: error loading model: unable to allocate CUDA0 buffer\n\
                    0.00.100.200 E srv  llama_server: exiting due to model loading error";
        assert_eq!(cause(EngineKind::LlamaServer, text), Some(LogCause::OutOfDeviceMemory));
    }

    #[test]
    fn out_of_memory_in_an_echoed_prompt_is_nobodys_death() {
        let text = "0.01.000.000 I slot launch: prompt: why does cudaMalloc failed: out of memory appear?\n\
                    CUDA is out of memory, said the user; std::bad_alloc";
        assert_eq!(cause(EngineKind::LlamaServer, text), None);
    }

    #[test]
    fn a_recovered_allocation_is_no_death() {
        let text = "0.00.100.000 W llama_context: compute buffer allocation failed, retrying without pipeline parallelism";
        assert_eq!(cause(EngineKind::LlamaServer, text), None);
    }

    #[test]
    fn the_ready_line_of_each_engine_is_known() {
        let llama = "0.00.588.892 I srv  llama_server: listening on unix:///run/x.sock";
        assert!(is_ready_line(EngineKind::LlamaServer, llama));
        assert!(is_ready_line(EngineKind::Candle, "ready in 210 ms"));
        assert_eq!(progress(EngineKind::Candle, "loading: 42 %"), Some(42));
        assert_eq!(progress(EngineKind::Candle, "loading: 420 %"), None);
    }
}

//! How the worker ends: one exit code for each cause a supervisor can act on.
//!
//! Source: the codes follow `sysexits.h` where it has one that fits (64, 65, 66, 69, 71).

use std::{fmt, io, io::Write as _, path::Path, process::ExitCode};

/// Ended by `SIGTERM` or `SIGINT`.
pub const STOPPED: u8 = 0;
/// The arguments cannot be used: nothing but a person can mend that.
pub const BAD_ARGUMENTS: u8 = 64;
/// The model file is damaged, or of a kind that the worker does not know.
pub const BAD_MODEL: u8 = 65;
/// The model file is missing or cannot be read.
pub const MISSING_FILE: u8 = 66;
/// The address or socket is taken, or cannot be bound.
pub const CANNOT_BIND: u8 = 69;
/// Something broke inside the worker.
pub const INTERNAL: u8 = 70;
/// The memory of the host or of the device does not suffice.
pub const OUT_OF_MEMORY: u8 = 71;

/// The end of the worker: a code and one sentence for the last line of its log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Ending {
    code: u8,
    sentence: String,
}

impl Ending {
    pub(super) fn bad_arguments(sentence: impl Into<String>) -> Self {
        Self { code: BAD_ARGUMENTS, sentence: sentence.into() }
    }

    pub(super) fn bad_model(sentence: impl Into<String>) -> Self {
        Self { code: BAD_MODEL, sentence: sentence.into() }
    }

    pub(super) fn missing_file(sentence: impl Into<String>) -> Self {
        Self { code: MISSING_FILE, sentence: sentence.into() }
    }

    pub(super) fn cannot_bind(sentence: impl Into<String>) -> Self {
        Self { code: CANNOT_BIND, sentence: sentence.into() }
    }

    pub(super) fn internal(sentence: impl Into<String>) -> Self {
        Self { code: INTERNAL, sentence: sentence.into() }
    }

    pub(super) fn out_of_memory(sentence: impl Into<String>) -> Self {
        Self { code: OUT_OF_MEMORY, sentence: sentence.into() }
    }

    /// Tells a tensor library's failure while `doing` apart: out of memory, or a bad model.
    pub(super) fn from_candle(doing: &str, error: &candle_core::Error) -> Self {
        let text = first_line(error);
        if is_out_of_memory(&text) {
            Self::out_of_memory(format!("out of memory while {doing}: {text}"))
        } else {
            Self::bad_model(format!("{doing} failed: {text}"))
        }
    }

    /// Names the file of a bad model, unless the sentence does.
    pub(super) fn of(mut self, path: &Path) -> Self {
        let path = path.display().to_string();
        if self.code == BAD_MODEL && !self.sentence.contains(&path) {
            self.sentence = format!("`{path}`: {}", self.sentence);
        }
        self
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// Writes the sentence as the last line of the log and gives the code.
    pub(super) fn report(self) -> ExitCode {
        say(format_args!("error: {}", self.sentence));
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Writes one line to the worker's log, which is its stderr.
pub(super) fn say(line: fmt::Arguments<'_>) {
    // A log that is gone is no reason to stop serving.
    drop(writeln!(io::stderr(), "{line}"));
}

/// Says whether an error's text is an allocation failure of a host or a device.
/// Source: the texts of the CUDA and Metal runtimes, and of Rust's allocator.
pub(super) fn is_out_of_memory(text: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "out of memory",
        "out_of_memory",
        "failed to allocate",
        "failed to create metal resource",
        "memory allocation",
        "insufficient memory",
    ];
    let text = text.to_ascii_lowercase();
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// Gives an error's first line, without the backtrace that the tensor library appends.
pub(super) fn first_line(error: &dyn fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_allocation_failure_is_out_of_memory() {
        assert!(is_out_of_memory("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        assert!(!is_out_of_memory("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)"));
    }

    #[test]
    fn a_bad_model_is_named_once_and_other_endings_are_left_alone() {
        let path = Path::new("/m.gguf");
        assert_eq!(Ending::bad_model("no tokens").of(path).to_string(), "`/m.gguf`: no tokens");
        let named = Ending::bad_model("`/m.gguf` is truncated");
        assert_eq!(named.clone().of(path), named);
        let other = Ending::out_of_memory("out of memory");
        assert_eq!(other.clone().of(path), other);
    }

    #[test]
    fn a_tensor_fault_is_a_bad_model_and_its_backtrace_is_cut() {
        let error = candle_core::Error::Msg("shape mismatch\n   0: frame".to_owned());
        let ending = Ending::from_candle("loading `x`", &error);
        assert_eq!(ending.code(), BAD_MODEL);
        assert_eq!(ending.to_string(), "loading `x` failed: shape mismatch");
    }
}

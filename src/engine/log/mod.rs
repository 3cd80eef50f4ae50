//! What a line of an engine's log means.
//!
//! Patterns are anchored: a line counts only in the form in which the engine itself prints it, so
//! that the same words inside an echoed prompt mean nothing.

mod kernel;
mod llama;
mod program;
mod worker;

pub use self::kernel::{Named, kernel};
use super::EngineKind;
use crate::spec::death::{Confidence, LogCause, LogFinding};

/// The longest part of a line that is kept as a finding, in bytes.
const FINDING_BYTES: usize = 300;

/// How much a line decides. Of equal ones the last said counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Weight {
    /// "It failed", without why.
    General,
    /// Names what failed: an option, a file, an address.
    Specific,
    /// An allocation of host memory, or of memory that the line does not place. Loaders report it
    /// as a model that failed to load afterwards.
    Memory,
    /// An allocation on a device. What follows from it is reported without the place.
    DeviceMemory,
}

/// Returns how far a load has come, 0 to 100, if the line says so. llama-server prints nothing that
/// a share could be read from.
pub fn progress(kind: EngineKind, line: &str) -> Option<u8> {
    match kind {
        EngineKind::LlamaServer => None,
        EngineKind::Candle | EngineKind::Command => worker::progress(line),
    }
}

/// Tells whether the line says that the engine is ready: a reason to look, not a proof.
pub fn is_ready_line(kind: EngineKind, line: &str) -> bool {
    match kind {
        EngineKind::LlamaServer => llama::is_ready_line(line),
        EngineKind::Candle => worker::is_ready_line(line),
        EngineKind::Command => program::is_ready_line(line),
    }
}

/// Finds the cause of a death among the engine's last lines, oldest first; 100 are enough.
///
/// 1. A failed allocation on a device.
/// 2. Any other failed allocation.
/// 3. A taken address, a refused argument, a missing file, a damaged model, named.
/// 4. A load that failed without more words.
///
/// Within one of these the last line said counts.
pub fn death_cause(kind: EngineKind, lines: &[String]) -> Option<LogFinding> {
    let judged: Vec<_> = match kind {
        EngineKind::LlamaServer => llama::judge(lines),
        EngineKind::Candle => lines.iter().filter_map(|line| worker::judge(line)).collect(),
        EngineKind::Command => program::judge(lines),
    };
    // `max_by_key` gives the last of equal ones.
    let (weight, cause, words) = judged.into_iter().max_by_key(|(weight, _, _)| *weight)?;
    let confidence = match weight {
        Weight::General => Confidence::Guessed,
        Weight::Specific | Weight::Memory | Weight::DeviceMemory => Confidence::Likely,
    };
    Some(LogFinding { cause, line: start_of(words), confidence })
}

/// Cuts a line to what is kept of it.
fn start_of(line: &str) -> String {
    let end = line.floor_char_boundary(FINDING_BYTES);
    line.get(..end).unwrap_or_default().to_owned()
}

/// What one line says: how much it decides, the cause, the engine's own words.
type Judged<'a> = (Weight, LogCause, &'a str);

#[cfg(test)]
mod tests;

//! The last words of an engine.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use super::text::Splitter;

/// How much of a log's end is looked at for evidence.
pub const TAIL_BYTES: u64 = 64 << 10;

/// Returns the last `max_lines` lines of `log`, oldest first, from its last `max_bytes` bytes.
///
/// Each is cut at 4 KiB and safe to show: bytes that are no UTF-8 are replaced, control characters
/// and terminal escapes are taken out. A last line without an end counts. Nothing is returned for a
/// log that is not there or cannot be read.
pub fn tail(log: &Path, max_lines: usize, max_bytes: u64) -> Vec<String> {
    let Ok((bytes, _)) = read_end(log, max_bytes) else { return Vec::new() };
    let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
    splitter.push(&bytes, &mut lines);
    lines.extend(splitter.finish());
    lines.split_off(lines.len().saturating_sub(max_lines))
}

/// Reads the last `max_bytes` bytes of a file, from the first whole line on, and tells where the
/// file ended.
pub(super) fn read_end(path: &Path, max_bytes: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(max_bytes);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    let read = file.take(max_bytes).read_to_end(&mut bytes)?;
    let end = start.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
    if start > 0
        && let Some(at) = bytes.iter().position(|byte| *byte == b'\n')
    {
        drop(bytes.drain(..=at));
    }
    Ok((bytes, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_last_lines_come_oldest_first_and_the_last_needs_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("g1.log");
        fs::write(&log, "one\ntwo\nthree\nfour").unwrap();
        assert_eq!(tail(&log, 3, TAIL_BYTES), ["two", "three", "four"]);
        assert_eq!(tail(&log, 9, 9), ["four"]);
        assert!(tail(&dir.path().join("none"), 3, TAIL_BYTES).is_empty());
    }

    #[test]
    fn an_endless_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("g1.log");
        fs::write(&log, vec![b'x'; 1 << 20]).unwrap();
        let lines = tail(&log, 3, TAIL_BYTES);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [4096]);
    }
}

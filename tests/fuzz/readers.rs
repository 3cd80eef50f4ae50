//! What has to hold of every input: shared by the fuzzer and by the tests that replay its corpus.

use std::{
    io::{self, Cursor, Read, Seek, SeekFrom},
    path::Path,
};

use slotd::{
    config::{self, Context},
    models::{gguf, safetensors},
};

/// Messages stand on one line of a terminal: nothing of a file may end it, or be much of it.
const LONGEST_MESSAGE: usize = 1000;

/// A GGUF header: the same whatever portions the disk hands out, and a message that can be shown.
pub(crate) fn gguf(bytes: &[u8]) {
    let size = size_of(bytes);
    let whole = gguf::parse(Cursor::new(bytes), size);
    let trickled = gguf::parse(Trickle(Cursor::new(bytes)), size);
    match (whole, trickled) {
        (Ok(whole), Ok(trickled)) => assert_eq!(whole, trickled),
        (Err(whole), Err(trickled)) => {
            assert_eq!(whole.to_string(), trickled.to_string());
            check(&whole.to_string());
        }
        (whole, trickled) => panic!("{whole:?} at once, {trickled:?} in portions"),
    }
}

/// A safetensors header: its tensors fill the file behind it, or a message that can be shown.
pub(crate) fn safetensors(bytes: &[u8]) {
    let size = size_of(bytes);
    match safetensors::parse(Cursor::new(bytes), size) {
        Ok(header) => {
            let first = header.tensors.iter().map(|tensor| tensor.range.start).min();
            let first = first.unwrap_or(size);
            assert_eq!(first + header.bytes().0, size, "{header:?}");
            assert!(header.tensors.iter().all(|tensor| tensor.range.end <= size), "{header:?}");
        }
        Err(fault) => check(&fault.to_string()),
    }
    if let Err(fault) = safetensors::parse_index(bytes) {
        check(&fault.to_string());
    }
}

/// A profile: one that is meant, or faults with places inside the text.
pub(crate) fn profile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let slot = "fuzz".parse().expect("a name");
    let path = Path::new("/profiles/fuzz.toml");
    let Err(faults) = config::parse(text, (&slot, path), &Context::default()) else { return };
    assert!(!faults.is_empty(), "refused without a reason");
    let lines = text.split('\n').count();
    for fault in faults {
        assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)), "{fault:?} of {lines}");
        assert_eq!(fault.line.is_some(), fault.column.is_some(), "{fault:?}");
        check(&fault.message);
        if let Some(hint) = &fault.hint {
            check(hint);
        }
    }
}

fn size_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

fn check(message: &str) {
    assert!(!message.is_empty(), "an empty message");
    assert!(message.len() <= LONGEST_MESSAGE, "{} bytes: {message}", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

/// A disk that hands out seven bytes at a time.
struct Trickle<R>(R);

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(7);
        self.0.read(&mut buffer[..most])
    }
}

impl<R: Seek> Seek for Trickle<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

//! Syntax errors of a TOML file, all of them, and a text in which the rest can still be read.
//!
//! The parser recovers from a bad value. It stops building at a line that is no `key = value` at
//! all, and at an array that is not closed it takes every later line for an item.

use std::ops::Range;

use toml::de::{DeTable, Error};

/// How often a file is mended at most. The parser names most broken lines the first time.
const MENDS: usize = 4;

/// What the parser says of text without quotes.
const UNQUOTED: &str = "string values must be quoted";

/// What it says where an array is not closed.
const RUNAWAY: &str = "unexpected `=` in array";

/// One syntax error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stumble {
    pub(super) offset: usize,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// A text with its syntax errors.
#[derive(Debug)]
pub(super) struct Mended {
    /// As long as the original; lines that are no `key = value` are blank.
    pub(super) text: String,
    /// In the order of the file.
    pub(super) stumbles: Vec<Stumble>,
    /// From here on the parser was lost: what it made of the rest says nothing about the author.
    pub(super) lost_at: Option<usize>,
}

/// Finds all syntax errors of `text`.
pub(super) fn mend(text: &str) -> Mended {
    let mut mended = Mended { text: text.to_owned(), stumbles: Vec::new(), lost_at: None };
    for _ in 0..MENDS {
        let (_, errors) = DeTable::parse_recoverable(&mended.text);
        let stumbles = errors.iter().map(|error| stumble(text, error));
        let (broken, others): (Vec<_>, Vec<_>) =
            stumbles.partition(|stumble| is_no_pair(&stumble.message));
        if broken.is_empty() {
            mended.stumbles.extend(others);
            break;
        }
        let lines = broken.iter().map(|stumble| line_around(text, stumble.offset));
        mended.text = blanked(mended.text, lines);
        mended.stumbles.extend(broken);
    }
    mended.stumbles.sort_by_key(|stumble| stumble.offset);
    if let Some(runaway) = mended.stumbles.iter().find(|stumble| stumble.message == RUNAWAY) {
        let (runaway, line) = (runaway.clone(), line_around(text, runaway.offset));
        mended.stumbles.retain(|stumble| stumble.offset < line.start);
        mended.lost_at = Some(line.start);
        mended.stumbles.push(runaway);
    }
    mended
}

fn stumble(text: &str, error: &Error) -> Stumble {
    let mut message = error.message().to_owned();
    for known in [UNQUOTED, RUNAWAY] {
        // What the parser expects there instead is only one way to go on.
        if message.contains(known) {
            known.clone_into(&mut message);
        }
    }
    // What is missing is reported at the end of the file, after its last line break.
    let end = text.trim_end().len();
    let offset = error.span().map_or(end, |span| span.start.min(end));
    let hint = if message == RUNAWAY {
        "an array above is not closed: add `]`"
    } else if message == UNQUOTED {
        "text stands in quotes: `key = \"value\"`"
    } else if message.contains("duplicate key") {
        "keep one of the two"
    } else if is_no_pair(&message) {
        "a line is `key = value`; a remark starts with `#`"
    } else {
        "text stands in quotes, a list in brackets with commas: `key = [\"a\", \"b\"]`"
    };
    Stumble { offset, message, hint }
}

/// Tells whether the parser stops building at such an error.
fn is_no_pair(message: &str) -> bool {
    message.starts_with("key with no value") || message.starts_with("unclosed table")
}

fn line_around(text: &str, offset: usize) -> Range<usize> {
    let (before, after) = text.split_at(text.floor_char_boundary(offset));
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let end = after.find('\n').map_or(text.len(), |length| before.len() + length);
    start..end
}

fn blanked(text: String, lines: impl Iterator<Item = Range<usize>>) -> String {
    let mut bytes = text.into_bytes();
    for line in lines {
        if let Some(line) = bytes.get_mut(line) {
            line.fill(b' ');
        }
    }
    #[expect(clippy::expect_used, reason = "a bug, not a state of the world")]
    String::from_utf8(bytes).expect("whole lines of UTF-8 were replaced by spaces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_pair_hides_nothing_after_it() {
        let mended = mend("context ü 4096\n[x\nthreads = 1\nmore\n");
        assert_eq!(mended.stumbles.len(), 3);
        assert_eq!(mended.text, format!("{}\n  \nthreads = 1\n    \n", " ".repeat(15)));
    }

    #[test]
    fn an_array_that_is_not_closed_is_one_error() {
        let mended = mend("a = [1,\nb = 2\nc = 3\nd = 4\n");
        assert_eq!(mended.stumbles.len(), 1, "{:?}", mended.stumbles);
        assert!(mended.lost_at.is_some());
    }

    #[test]
    fn a_file_that_is_no_toml_ends() {
        let mended = mend(&"what is this\n".repeat(1000));
        assert_eq!(mended.stumbles.len(), 1000);
    }
}

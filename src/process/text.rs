//! Engine output as text that is safe to show: lines of bounded length, no control characters, no
//! terminal escapes.

use std::mem;

/// A line is cut at this many bytes; the rest of it is dropped.
pub(super) const MAX_LINE: usize = 4096;

/// Cuts a stream of bytes into lines. A carriage return ends a line too: progress is written that
/// way.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    partial: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it ends nothing more.
    after_return: bool,
}

impl Splitter {
    /// Takes the next bytes and appends the lines that they end to `lines`.
    pub(super) fn push(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, end) = match piece.split_last() {
                Some((end @ (b'\n' | b'\r'), text)) => (text, Some(*end)),
                _ => (piece, None),
            };
            let room = MAX_LINE.saturating_sub(self.partial.len()).min(text.len());
            self.partial.extend(text.iter().take(room));
            let is_second_half = text.is_empty() && self.after_return && end == Some(b'\n');
            self.after_return = end == Some(b'\r');
            if end.is_some() && !is_second_half {
                lines.push(clean(&mem::take(&mut self.partial)));
            }
        }
    }

    /// Returns the line that was begun and not ended, if it has any text.
    pub(super) fn finish(&mut self) -> Option<String> {
        let partial = mem::take(&mut self.partial);
        (!partial.is_empty()).then(|| clean(&partial))
    }
}

/// Where in a terminal escape a character stands. Source: ECMA-48, sections 5.3 to 5.6.
#[derive(Clone, Copy)]
enum Escape {
    Outside,
    /// After `ESC`.
    Begun,
    /// In a control sequence, which ends with `@` to `~`.
    Sequence,
    /// In a control string, which ends with `BEL` or `ESC \`.
    Text,
    /// In a control string, after `ESC`.
    TextEnding,
}

/// Makes one line safe to show: bytes that are no UTF-8 become `U+FFFD`, escapes and control
/// characters but the tab vanish.
pub(super) fn clean(line: &[u8]) -> String {
    let mut shown = String::new();
    let mut escape = Escape::Outside;
    for c in String::from_utf8_lossy(line).chars() {
        escape = match (escape, c) {
            (Escape::Outside | Escape::Begun, '\u{1b}') | (Escape::Begun, ' '..='/') => {
                Escape::Begun
            }
            (Escape::Outside, '\u{9b}') | (Escape::Begun, '[') => Escape::Sequence,
            (Escape::Begun, ']' | 'P' | 'X' | '^' | '_') => Escape::Text,
            (Escape::Begun, _)
            | (Escape::Sequence, '@'..='~')
            | (Escape::Text, '\u{7}')
            | (Escape::TextEnding, '\\') => Escape::Outside,
            (Escape::Sequence, _) => Escape::Sequence,
            (Escape::Text | Escape::TextEnding, '\u{1b}') => Escape::TextEnding,
            (Escape::Text | Escape::TextEnding, _) => Escape::Text,
            (Escape::Outside, c) => {
                if c == '\t' || !c.is_control() {
                    shown.push(c);
                }
                Escape::Outside
            }
        };
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for piece in pieces {
            splitter.push(piece, &mut lines);
        }
        (lines, splitter.finish())
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_line() {
        let (lines, rest) = split(&[b"load", b"ing", b"\nne", b"xt"]);
        assert_eq!((lines, rest), (vec!["loading".to_owned()], Some("next".to_owned())));
    }

    #[test]
    fn carriage_returns_end_lines_and_crlf_ends_one() {
        let (lines, rest) = split(&[b"1 %\r2 %\r", b"\nok\r\n\n"]);
        assert_eq!((lines, rest), (["1 %", "2 %", "ok", ""].map(str::to_owned).into(), None));
    }

    #[test]
    fn a_line_without_end_stays_bounded() {
        let long = vec![b'x'; 1 << 20];
        let (lines, _) = split(&[&long, &long, b"\nshort\n"]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, 5]);
    }

    #[test]
    fn escapes_and_controls_are_taken_out() {
        assert_eq!(clean(b"\x1b[31;1mred\x1b[0m\x07 \tok\0"), "red \tok");
        assert_eq!(clean(b"\x1b]0;title\x07a\x1b]8;;x\x1b\\b\x1b(Bc"), "abc");
        assert_eq!(clean("\u{9b}2Jx\u{85}y".as_bytes()), "xy");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(clean(b"a\xffb"), "a\u{fffd}b");
    }
}

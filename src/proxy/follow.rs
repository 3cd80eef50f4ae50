//! Follows a stream of events for the word of its engine that it is whole.

use super::surface::Whole;

/// How much of a stream's end is remembered: enough for `data: [DONE]` and its line ends.
const TAIL: usize = 32;
/// How much of an event's beginning is remembered: enough for its name.
const HEAD: usize = 96;

/// How far a stream of events has come.
#[derive(Debug)]
pub(super) struct Follow {
    whole: Whole,
    tail: Vec<u8>,
    /// The beginning of the last event, without its line ends; only where events are told by name.
    head: Vec<u8>,
    /// Line ends in a row at the end.
    line_ends: u8,
}

impl Follow {
    /// Follows a stream from its first byte.
    pub(super) fn new(whole: Whole) -> Self {
        Self { whole, tail: Vec::new(), head: Vec::new(), line_ends: 0 }
    }

    /// Takes the next bytes.
    pub(super) fn note(&mut self, data: &[u8]) {
        self.tail.extend_from_slice(data.get(data.len().saturating_sub(TAIL)..).unwrap_or(data));
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        if !matches!(self.whole, Whole::Named(_)) {
            return;
        }
        for &byte in data {
            match byte {
                b'\r' => {}
                b'\n' => self.line_ends = self.line_ends.saturating_add(1),
                _ => {
                    if self.line_ends >= 2 {
                        self.head.clear();
                    }
                    self.line_ends = 0;
                    if self.head.len() < HEAD {
                        self.head.push(byte);
                    }
                }
            }
        }
    }

    /// Tells whether the engine has said that the stream is whole.
    pub(super) fn is_done(&self) -> bool {
        let end = self.tail.trim_ascii_end();
        if end.ends_with(b"data: [DONE]") || end.ends_with(b"data:[DONE]") {
            return true;
        }
        let Whole::Named(names) = self.whole else { return false };
        let head = String::from_utf8_lossy(&self.head);
        self.is_between() && names.iter().any(|name| head.contains(name))
    }

    /// Tells whether the stream may end here.
    pub(super) fn may_end(&self) -> bool {
        self.whole == Whole::Framed || self.is_done()
    }

    /// Tells whether no event is begun and not ended.
    pub(super) fn is_between(&self) -> bool {
        let tail = &self.tail;
        tail.is_empty() || tail.ends_with(b"\n\n") || tail.ends_with(b"\r\n\r\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(whole: Whole, text: &str, piece: usize) -> Follow {
        let mut follow = Follow::new(whole);
        text.as_bytes().chunks(piece).for_each(|data| follow.note(data));
        follow
    }

    #[test]
    fn a_named_stream_is_whole_with_its_last_event_however_it_was_cut() {
        const MESSAGE: Whole = Whole::Named(&["message_stop"]);
        let begun = "event: message_start\ndata: {\"a\":1}\n\n";
        let whole = format!("{begun}event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n");
        for piece in [1, 7, 4096] {
            assert!(!followed(MESSAGE, begun, piece).may_end());
            assert!(followed(MESSAGE, &whole, piece).is_done());
            assert!(!followed(MESSAGE, whole.trim_end(), piece).may_end(), "its end is missing");
        }
    }

    #[test]
    fn other_streams_are_whole_by_done_or_by_their_framing() {
        assert!(followed(Whole::Done, "data: {}\n\ndata: [DONE]\n\n", 3).is_done());
        assert!(!followed(Whole::Done, "data: {}\n\n", 3).may_end());
        let framed = followed(Whole::Framed, "data: {\"stop\":true}\n\n", 3);
        assert!(framed.may_end() && !framed.is_done());
    }
}

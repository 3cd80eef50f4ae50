//! The body of an answer on its way: followed for its end, its events and its tokens.

use super::{
    super::{flight::Flight, follow::Follow, gate::Lease, surface::Whole, usage::UsageReader},
    framing::Framing,
    reply::Reply,
};

/// A body that is passed on.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    /// Of a stream of events, which says itself when it is whole.
    follow: Option<Follow>,
    pub(super) usage: UsageReader,
    /// Whether the client gets it in chunks; else it was told the length.
    is_chunked: bool,
    /// Whether the engine's connection can be used again.
    pub(super) is_kept: bool,
}

/// How far a body is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Far {
    More,
    /// It has ended, and everything that is to be said was.
    Whole,
    /// It has ended in order, but its engine has not said that it is whole.
    TooShort,
    /// It broke off.
    Broken,
}

impl Body {
    pub(super) fn new(reply: &Reply, whole: Whole) -> Self {
        Self {
            framing: reply.framing,
            follow: reply.is_events.then(|| Follow::new(whole)),
            usage: UsageReader::default(),
            is_chunked: is_chunked(reply),
            is_kept: reply.is_kept,
        }
    }

    /// Takes what came of the engine, and appends what the client gets.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        (lease, flight): (&Lease, &Flight),
        out: &mut Vec<u8>,
    ) -> Far {
        let Self { framing, follow, usage, is_chunked, .. } = self;
        let is_events = follow.is_some();
        let used = framing.feed(bytes, |data, is_last| {
            lease.gate().record().note_piece();
            flight.note_piece(data, is_events);
            usage.read(data, is_last);
            if let Some(follow) = follow {
                follow.note(data);
            }
            if *is_chunked { put_chunk(out, data) } else { out.extend_from_slice(data) }
        });
        let Ok(used) = used else {
            self.is_kept = false;
            return Far::Broken;
        };
        // An engine that says more than it announced has lost its framing.
        self.is_kept &= used == bytes.len();
        if self.framing.is_over() { self.end(out) } else { Far::More }
    }

    /// The engine has closed its side.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> Far {
        self.is_kept = false;
        if self.framing == Framing::UntilClose { self.end(out) } else { Far::Broken }
    }

    /// Ends the body for the client, where it may.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Far {
        if self.follow.as_ref().is_some_and(|follow| !follow.may_end()) {
            return Far::TooShort;
        }
        if self.is_chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        Far::Whole
    }

    /// Tells whether the engine has said that its stream is whole.
    pub(super) fn is_done(&self) -> bool {
        self.follow.as_ref().is_some_and(Follow::is_done)
    }

    /// Tells whether the body is a stream, and if so, whether it stands between two events.
    pub(super) fn is_between_events(&self) -> Option<bool> {
        self.follow.as_ref().map(Follow::is_between)
    }
}

/// Tells whether a client gets an answer in chunks. The length of a stream is open: an error may have to
/// follow.
pub(super) fn is_chunked(reply: &Reply) -> bool {
    reply.is_events || !matches!(reply.framing, Framing::Length(_))
}

/// Appends one chunk. Nothing is no chunk: that would be the end.
pub(super) fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    if data.is_empty() {
        return;
    }
    let mut has_begun = false;
    for shift in (0..usize::BITS).step_by(4).rev() {
        let digit = data.len() >> shift & 15;
        has_begun |= digit != 0;
        if has_begun {
            out.extend(DIGITS.get(digit));
        }
    }
    for part in [b"\r\n", data, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_its_length_in_front() {
        for (length, size) in [(1, "1"), (15, "f"), (16, "10"), (213, "d5"), (65536, "10000")] {
            let mut out = Vec::new();
            put_chunk(&mut out, &vec![b'x'; length]);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text, format!("{size}\r\n{}\r\n", "x".repeat(length)));
        }
        let mut out = Vec::new();
        put_chunk(&mut out, b"");
        assert!(out.is_empty());
    }
}

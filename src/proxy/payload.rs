//! A request's body as it goes to an engine, as often as it has to: in memory, or in a file that
//! nobody else can see.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::record::Fingerprint;

/// How much of a file is read at once.
const PIECE: u64 = 64 << 10;

/// A body that can be sent more than once.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    parts: Arc<[Part]>,
    fingerprint: Fingerprint,
}

#[derive(Clone, Debug)]
enum Part {
    Bytes(Bytes),
    File(Arc<File>, Range<u64>),
}

impl Payload {
    /// A body in memory.
    pub(super) fn bytes(bytes: Bytes) -> Self {
        let fingerprint = Fingerprint::of(&bytes);
        Self { parts: Arc::new([Part::Bytes(bytes)]), fingerprint }
    }

    /// A body in a file of `length` bytes; `fingerprint` is that of its beginning and `length`.
    pub(super) fn file(file: Arc<File>, length: u64, fingerprint: Fingerprint) -> Self {
        Self { parts: Arc::new([Part::File(file, 0..length)]), fingerprint }
    }

    /// Returns what tells it from others.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the whole body, if it is in memory.
    pub(super) fn in_memory(&self) -> Option<&Bytes> {
        match self.parts.as_ref() {
            [Part::Bytes(bytes)] => Some(bytes),
            _ => None,
        }
    }

    /// Tells whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.len() == 0)
    }

    /// Puts other bytes in the place of a range.
    pub(super) fn with(&self, range: &Range<u64>, bytes: Bytes) -> Self {
        let mut parts = Vec::new();
        let mut at = 0;
        let mut bytes = Some(bytes);
        for part in self.parts.iter() {
            let end = at + part.len();
            parts.extend(part.cut(at, 0..range.start));
            if range.start <= end {
                parts.extend(bytes.take().map(Part::Bytes));
            }
            parts.extend(part.cut(at, range.end..u64::MAX));
            at = end;
        }
        Self { parts: parts.into(), fingerprint: self.fingerprint }
    }

    /// Begins to send it.
    pub(super) fn send(&self) -> Sending {
        let parts: VecDeque<Part> =
            self.parts.iter().filter(|part| part.len() > 0).cloned().collect();
        let left = parts.iter().map(Part::len).sum();
        Sending { parts, left, reading: None }
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::File(_, range) => range.end.saturating_sub(range.start),
        }
    }

    /// Returns what of this part, which starts `at` in the body, lies in `range` of the body.
    fn cut(&self, at: u64, range: Range<u64>) -> Option<Self> {
        let start = range.start.max(at).saturating_sub(at);
        let end = range.end.min(at + self.len()).saturating_sub(at);
        if start >= end {
            return None;
        }
        Some(match self {
            Self::Bytes(bytes) => {
                let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
                Self::Bytes(bytes.slice(start..end))
            }
            Self::File(file, within) => {
                Self::File(Arc::clone(file), within.start + start..within.start + end)
            }
        })
    }
}

/// A body on its way to an engine.
#[derive(Debug)]
pub(super) struct Sending {
    parts: VecDeque<Part>,
    left: u64,
    /// A piece of the file, read where a slow disk holds nobody up.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.reading.is_none() {
            match this.parts.pop_front() {
                None => return Poll::Ready(None),
                Some(Part::Bytes(bytes)) => return Poll::Ready(Some(Ok(this.frame(bytes)))),
                Some(Part::File(file, range)) => {
                    let end = range.end.min(range.start.saturating_add(PIECE));
                    if end < range.end {
                        this.parts.push_front(Part::File(Arc::clone(&file), end..range.end));
                    }
                    this.reading = Some(spawn_blocking(move || read(&file, range.start..end)));
                }
            }
        }
        let Some(reading) = this.reading.as_mut() else { return Poll::Ready(None) };
        let read = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other).flatten();
        this.reading = None;
        Poll::Ready(Some(read.map(|bytes| this.frame(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Sending {
    fn frame(&mut self, bytes: Bytes) -> Frame<Bytes> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(length);
        Frame::data(bytes)
    }
}

fn read(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http_body_util::BodyExt;

    use super::*;

    async fn sent(payload: &Payload) -> Vec<u8> {
        payload.send().collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_as_often_as_asked_and_spliced() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        file.write_all(&content).unwrap();
        let length = u64::try_from(content.len()).unwrap();
        let payload = Payload::file(Arc::new(file), length, Fingerprint::of(b""));
        assert_eq!(sent(&payload).await, content);
        assert_eq!(sent(&payload).await, content, "once more");
        let spliced = payload.with(&(100_000..100_010), Bytes::from_static(b"other"));
        let expected = [&content[..100_000], b"other", &content[100_010..]].concat();
        assert_eq!(sent(&spliced).await, expected);
        assert_eq!(spliced.send().size_hint().exact(), Some(199_995));
    }

    #[tokio::test]
    async fn bytes_in_memory_are_spliced_at_their_edges_too() {
        let payload = Payload::bytes(Bytes::from_static(b"abcdef"));
        let with = |range, text: &'static str| payload.with(&range, text.into());
        assert_eq!(sent(&with(0..1, "xx")).await, b"xxbcdef");
        assert_eq!(sent(&with(5..6, "")).await, b"abcde");
        assert_eq!(sent(&with(6..6, "g")).await, b"abcdefg");
        assert!(Payload::bytes(Bytes::new()).send().is_end_stream());
    }
}

//! Where an engine's answer ends: its framing, followed as the bytes pass.
//!
//! Strict on purpose: whatever is not plain is a broken answer, never a guess.

/// How the end of a body is known, and how far it has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    Chunks(Chunks),
    /// It ends with the connection.
    UntilClose,
}

/// Where a chunked body is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Chunks {
    /// In the line of a size; of its digits so many were read.
    Size(u64, u8),
    /// Behind the digits: what a line says more is passed over.
    Extension(u64),
    /// A line feed must follow.
    SizeEnd(u64),
    Data(u64),
    DataEnd,
    DataFeed,
    /// In the lines behind the last chunk; so many bytes of the present one were read.
    Trailer(u64),
    TrailerFeed(u64),
    Over,
}

/// The framing is not what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Garbled;

/// The most digits of a size: more would be above every body that there is.
const MOST_DIGITS: u8 = 12;
/// The most bytes of one line behind the last chunk.
const LONGEST_TRAILER: u64 = 8 << 10;

impl Framing {
    /// A chunked body of which nothing was read.
    pub(super) const CHUNKED: Self = Self::Chunks(Chunks::Size(0, 0));

    /// Tells whether the body has ended.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunks(Chunks::Over))
    }

    /// Takes the next bytes and shows the data among them, piece by piece, with whether each is known to
    /// be the last. Returns how many bytes belong to the body.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8], bool),
    ) -> Result<usize, Garbled> {
        match self {
            Self::Length(left) => {
                let (piece, _) = split(bytes, *left);
                *left = left.saturating_sub(count(piece));
                if !piece.is_empty() {
                    data(piece, *left == 0);
                }
                Ok(piece.len())
            }
            Self::UntilClose => {
                data(bytes, false);
                Ok(bytes.len())
            }
            Self::Chunks(chunks) => {
                let mut rest = bytes;
                while let (false, Some((byte, after))) =
                    (*chunks == Chunks::Over, rest.split_first())
                {
                    if let Chunks::Data(left) = *chunks {
                        let (piece, after) = split(rest, left);
                        data(piece, false);
                        *chunks = Chunks::after(left.saturating_sub(count(piece)));
                        rest = after;
                    } else {
                        *chunks = chunks.step(*byte)?;
                        rest = after;
                    }
                }
                Ok(bytes.len().saturating_sub(rest.len()))
            }
        }
    }
}

impl Chunks {
    /// Where it is when so much data is left.
    fn after(left: u64) -> Self {
        if left == 0 { Self::DataEnd } else { Self::Data(left) }
    }

    /// Goes on by one byte that is none of the data.
    fn step(self, byte: u8) -> Result<Self, Garbled> {
        Ok(match (self, byte) {
            (Self::Size(size, digits), _) if digit(byte).is_some() => {
                let digit = digit(byte).unwrap_or(0);
                if digits == MOST_DIGITS {
                    return Err(Garbled);
                }
                Self::Size(size.saturating_mul(16).saturating_add(digit), digits.saturating_add(1))
            }
            (Self::Size(_, 0), _) => return Err(Garbled),
            (Self::Size(size, _) | Self::Extension(size), b'\r') => Self::SizeEnd(size),
            (Self::Size(size, _), b';' | b' ' | b'\t')
            | (Self::Extension(size), b' '..=b'~' | b'\t') => Self::Extension(size),
            (Self::SizeEnd(0), b'\n') => Self::Trailer(0),
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataEnd, b'\r') => Self::DataFeed,
            (Self::DataFeed, b'\n') => Self::Size(0, 0),
            (Self::Trailer(read), b'\r') => Self::TrailerFeed(read),
            (Self::Trailer(read), _) if byte != b'\n' && read < LONGEST_TRAILER => {
                Self::Trailer(read.saturating_add(1))
            }
            (Self::TrailerFeed(0), b'\n') => Self::Over,
            (Self::TrailerFeed(_), b'\n') => Self::Trailer(0),
            _ => return Err(Garbled),
        })
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    usize::try_from(at).ok().and_then(|at| bytes.split_at_checked(at)).unwrap_or((bytes, &[]))
}

fn count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of bytes that arrive in pieces: the data, whether it is over, and what is left.
    fn fed(text: &str, piece: usize) -> Result<(String, bool, usize), Garbled> {
        let (mut framing, mut data, mut used) = (Framing::CHUNKED, Vec::new(), 0);
        for bytes in text.as_bytes().chunks(piece) {
            used += framing.feed(bytes, |piece, _| data.extend_from_slice(piece))?;
        }
        Ok((String::from_utf8(data).unwrap(), framing.is_over(), text.len() - used))
    }

    #[test]
    fn chunks_end_where_they_say_however_they_were_cut() {
        for (text, data, is_over, left) in [
            ("5\r\nhello\r\n0\r\n\r\n", "hello", true, 0),
            ("5\r\nhello\r\n6;a=\"b\"\r\n world\r\n0\r\nx: y\r\n\r\nHTTP", "hello world", true, 4),
            ("00A\r\n0\r\n\r\n01234\r\n000\r\n\r\n", "0\r\n\r\n01234", true, 0),
            ("5\r\nhel", "hel", false, 0),
            ("5\r\nhello\r\n0\r\n", "hello", false, 0),
        ] {
            for piece in [1, 2, 3, 7, 100] {
                assert_eq!(fed(text, piece), Ok((data.to_owned(), is_over, left)), "{text:?}");
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_no_answer() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            " 1\r\n",
            "1\n",
            "1\r\rx",
            "1\r\nab",
            "1\r\na\n",
            "1;\u{1}\r\n",
            "fffffffffffff\r\n",
            "0\r\n\n",
            "0\r\nx\n",
            "0x5\r\n",
        ] {
            for piece in [1, 100] {
                assert_eq!(fed(text, piece), Err(Garbled), "{text:?}");
            }
        }
    }

    #[test]
    fn a_length_ends_with_its_last_byte() {
        let mut framing = Framing::Length(5);
        let mut seen = Vec::new();
        assert_eq!(
            framing.feed(b"hel", |data, is_last| seen.push((data.to_vec(), is_last))),
            Ok(3)
        );
        assert!(!framing.is_over());
        assert_eq!(
            framing.feed(b"lo!", |data, is_last| seen.push((data.to_vec(), is_last))),
            Ok(2)
        );
        assert!(framing.is_over());
        assert_eq!(seen, [(b"hel".to_vec(), false), (b"lo".to_vec(), true)]);
    }
}

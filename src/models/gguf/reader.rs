//! Bounded reading: nothing is allocated or looped over because a file says so.

use std::io::{self, BufRead, BufReader, Read, Seek};

use super::HeaderFault;

/// The longest header that is read. Vocabularies of real models take 5 to 30 MiB.
const MAX_HEADER: u64 = 256 << 20;
/// The longest key or tensor name. Source: the specification allows 65,535 bytes for a key.
const MAX_NAME: u64 = (1 << 16) - 1;
/// Longer texts (templates) are passed over.
const MAX_TEXT: u64 = 1 << 12;
const MAX_ARRAY: u64 = 1 << 28;
/// Lists of one number a layer are kept; longer ones (a vocabulary's) are passed over.
const MAX_NUMBERS: u64 = 1 << 10;
/// Arrays of arrays are allowed and unheard of.
const MAX_DEPTH: u32 = 4;

/// A value of the metadata, as far as it is of use.
#[derive(Debug)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    /// A short list of whole numbers or claims.
    Numbers(Vec<u64>),
    /// A list of anything else: how many there are.
    List(u64),
    Other,
}

/// Reads a file of a known size from its start.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: BufReader<R>,
    position: u64,
    size: u64,
}

impl<R: Read + Seek> Reader<R> {
    pub(super) fn new(input: R, size: u64) -> Self {
        Self { input: BufReader::with_capacity(1 << 16, input), position: 0, size }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Reads the first four bytes, and tells what else a file is.
    pub(super) fn magic(&mut self) -> Result<(), HeaderFault> {
        const POINTER: &[u8] = b"version https://git-lfs";
        let mut first = Vec::new();
        let found = self.input.by_ref().take(4).read_to_end(&mut first)?;
        if found == 0 {
            return Err(HeaderFault::Empty);
        }
        if first == b"GGUF" {
            self.position = 4;
            return Ok(());
        }
        self.input.by_ref().take(28).read_to_end(&mut first)?;
        if first.starts_with(POINTER) {
            return Err(HeaderFault::LfsPointer);
        }
        let begins = first.iter().take(12).copied().collect::<Vec<_>>().escape_ascii().to_string();
        Err(HeaderFault::NotGguf { begins })
    }

    pub(super) fn u32(&mut self) -> Result<u32, HeaderFault> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, HeaderFault> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// Reads a number that says how much follows.
    pub(super) fn count(&mut self, limit: u64, excess: &'static str) -> Result<u64, HeaderFault> {
        let count = self.u64()?;
        if count > limit { Err(HeaderFault::Damaged(excess)) } else { Ok(count) }
    }

    /// Reads a key or the name of a tensor.
    pub(super) fn name(&mut self) -> Result<String, HeaderFault> {
        let length = self.count(MAX_NAME, "a name is too long")?;
        self.text(length)
    }

    pub(super) fn value(&mut self) -> Result<Value, HeaderFault> {
        let kind = self.u32()?;
        match kind {
            0 | 2 | 4 | 5 | 10 => {
                self.whole(kind).map(|number| number.map_or(Value::Other, Value::Number))
            }
            8 => {
                let length = self.u64()?;
                if length <= MAX_TEXT {
                    return self.text(length).map(Value::Text);
                }
                self.skip(length).map(|()| Value::Other)
            }
            9 => self.list(),
            other => self.skip(fixed_size(other)?).map(|()| Value::Other),
        }
    }

    /// Reads a whole number that is not negative; `None` for one that is.
    fn whole(&mut self, kind: u32) -> Result<Option<u64>, HeaderFault> {
        Ok(match kind {
            0 | 7 => self.bytes().map(|[byte]| Some(byte.into()))?,
            2 => self.bytes().map(|bytes| Some(u16::from_le_bytes(bytes).into()))?,
            4 => Some(self.u32()?.into()),
            // Some writers use signed numbers for all.
            5 => u64::try_from(self.u32()?.cast_signed()).ok(),
            _ => Some(self.u64()?),
        })
    }

    fn list(&mut self) -> Result<Value, HeaderFault> {
        let kind = self.u32()?;
        let count = self.count(MAX_ARRAY, "an array is too long")?;
        if !matches!(kind, 0 | 2 | 4 | 5 | 7 | 10) || count > MAX_NUMBERS {
            return self.skip_items(kind, count, 0).map(|()| Value::List(count));
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(self.whole(kind)?);
        }
        Ok(numbers.into_iter().collect::<Option<_>>().map_or(Value::List(count), Value::Numbers))
    }

    fn skip_array(&mut self, depth: u32) -> Result<(), HeaderFault> {
        if depth >= MAX_DEPTH {
            return Err(HeaderFault::Damaged("its arrays are nested too deeply"));
        }
        let kind = self.u32()?;
        let count = self.count(MAX_ARRAY, "an array is too long")?;
        self.skip_items(kind, count, depth)
    }

    fn skip_items(&mut self, kind: u32, count: u64, depth: u32) -> Result<(), HeaderFault> {
        match kind {
            8 => self.skip_texts(count),
            9 => (0..count).try_for_each(|_| self.skip_array(depth + 1)),
            other => self.skip(fixed_size(other)?.saturating_mul(count)),
        }
    }

    /// Passes over texts: a vocabulary has hundreds of thousands.
    fn skip_texts(&mut self, count: u64) -> Result<(), HeaderFault> {
        let mut left = count;
        while left > 0 {
            // Those that lie in the buffer whole are passed over together.
            let buffer = self.input.buffer();
            let (mut end, mut passed) = (0_usize, 0);
            while passed < left
                && let Some((length, rest)) = buffer.get(end..).and_then(<[u8]>::split_first_chunk)
                && let Ok(length) = usize::try_from(u64::from_le_bytes(*length))
                && length <= rest.len()
            {
                end = buffer.len() - rest.len() + length;
                passed += 1;
            }
            if passed == 0 {
                let length = self.u64()?;
                self.skip(length)?;
                left -= 1;
            } else {
                self.advance(u64::try_from(end).unwrap_or(u64::MAX))?;
                self.input.consume(end);
                left -= passed;
            }
        }
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<String, HeaderFault> {
        self.advance(length)?;
        let mut bytes = Vec::new();
        self.input.by_ref().take(length).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderFault> {
        let mut bytes = [0; N];
        self.advance(u64::try_from(N).unwrap_or(u64::MAX))?;
        self.input.read_exact(&mut bytes).map_err(|error| self.cut(error))?;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), HeaderFault> {
        self.advance(length)?;
        // Inside the buffer this costs nothing.
        let step = i64::try_from(length).unwrap_or(i64::MAX);
        self.input.seek_relative(step).map_err(|error| self.cut(error))
    }

    /// Checks that the file has `length` more bytes, before any of them is read.
    fn advance(&mut self, length: u64) -> Result<(), HeaderFault> {
        let end = self.position.saturating_add(length);
        if end > self.size {
            return Err(HeaderFault::CutHeader { size: self.size });
        }
        if end > MAX_HEADER {
            return Err(HeaderFault::Damaged("it is longer than any model's"));
        }
        self.position = end;
        Ok(())
    }

    /// The file shrank while it was read.
    fn cut(&self, error: io::Error) -> HeaderFault {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            HeaderFault::CutHeader { size: self.size }
        } else {
            HeaderFault::Io(error)
        }
    }
}

fn fixed_size(kind: u32) -> Result<u64, HeaderFault> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(HeaderFault::Damaged("a value has an unknown type")),
    }
}

//! The headers of safetensors files: read with bounds on everything, never trusted.
//!
//! [`read`] reads one file, [`read_model`] a whole model: one file, all that an index names, or what a
//! folder holds. Weights themselves are never read.
//!
//! Source: the `safetensors` crate, `README.md` ("Format") and `src/tensor.rs`; for the index
//! `huggingface_hub/serialization/_base.py`.

mod folder;
mod header;

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use self::folder::{Index, Model, Part, parse_index, read_index, read_model};
use crate::spec::Bytes;

/// The longest header that is read. Source: `MAX_HEADER_SIZE`.
const MAX_HEADER: u64 = 100_000_000;
/// Before the header stands how long it is.
const LENGTH: u64 = 8;

/// What the header of one file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// Every tensor, in the order of the header.
    pub tensors: Vec<Tensor>,
    /// What made the file, such as `pt` or `mlx`: `format` of the metadata.
    pub format: Option<String>,
}

/// One tensor; it lies inside its file, and its length fits its shape where the type is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tensor {
    /// Such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Such as `BF16`: the format's own names.
    pub dtype: String,
    /// How long it is in each dimension, the outermost first.
    pub shape: Vec<u64>,
    /// Where in the file its bytes are, from the file's beginning.
    pub range: Range<u64>,
}

/// Says why a file or folder is no whole model. The text reads after the file's name.
#[derive(Debug, Error)]
pub enum HeaderFault {
    /// It cannot be read.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// It has no bytes.
    #[error("is empty; download it again")]
    Empty,
    /// It stands for a file that was not fetched.
    #[error("is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`")]
    LfsPointer,
    /// The first bytes are something else's.
    #[error("is not a safetensors file, it begins with `{begins}`; download it again")]
    NotSafetensors {
        /// Its first bytes, escaped.
        begins: String,
    },
    /// It ends inside the header.
    #[error("is cut short inside its header, at byte {size}; download it again")]
    CutHeader {
        /// Where the file ends.
        size: u64,
    },
    /// It ends before its last tensor does.
    #[error(
        "is cut short: tensor `{tensor}` ends at byte {end}, the file has {size}; download it again"
    )]
    CutTensor {
        /// The last tensor of the file.
        tensor: String,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        size: u64,
    },
    /// The header contradicts itself, or is no JSON of the right shape.
    #[error("has a damaged header ({0}); download it again")]
    Damaged(String),
    /// A file that the index names is not there.
    #[error("names {count} files, and `{}` is not beside it; download it", path.display())]
    MissingPart {
        /// The first that is not there, as the index names it.
        path: PathBuf,
        /// How many files the index names.
        count: usize,
    },
    /// One of several files is no whole file.
    #[error("has the part `{}`, which {fault}", path.display())]
    BadPart {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        fault: Box<HeaderFault>,
    },
    /// A folder without weights.
    #[error("has no safetensors file in it")]
    NoWeights,
}

impl Header {
    /// Returns what all tensors take.
    pub fn bytes(&self) -> Bytes {
        // They lie in one file and do not overlap.
        Bytes(self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes())))
    }

    /// Returns how many numbers all tensors have.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }
}

impl Tensor {
    /// Returns what it takes in the file.
    pub fn bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Returns how many numbers it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, length| product.saturating_mul(*length))
    }
}

/// Reads and checks the file at `path`: the header is bounded, every tensor lies in the file and next to
/// another, none has more or fewer bytes than its shape says. Takes milliseconds, whatever the file's
/// size, and never panics.
///
/// # Errors
/// [`HeaderFault`]; its text reads after the file's name.
pub fn read(path: &Path) -> Result<Header, HeaderFault> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
    }
    parse(file, found.len())
}

/// Reads the header of one file of `size` bytes.
///
/// # Errors
/// [`HeaderFault`].
pub fn parse(mut input: impl Read, size: u64) -> Result<Header, HeaderFault> {
    const POINTER: &[u8] = b"version https://git-lfs";
    let mut first = Vec::new();
    input.by_ref().take(32).read_to_end(&mut first)?;
    if first.is_empty() {
        return Err(HeaderFault::Empty);
    }
    if first.starts_with(POINTER) {
        return Err(HeaderFault::LfsPointer);
    }
    let Some((length, rest)) = first.split_first_chunk::<8>() else {
        return Err(HeaderFault::CutHeader { size });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || rest.first().is_some_and(|byte| *byte != b'{') {
        let begins = first.iter().take(12).copied().collect::<Vec<_>>().escape_ascii().to_string();
        return Err(HeaderFault::NotSafetensors { begins });
    }
    // Before anything is read because the file says so.
    let data = LENGTH.saturating_add(length);
    if data > size {
        return Err(HeaderFault::CutHeader { size });
    }
    let read = u64::try_from(rest.len()).unwrap_or(u64::MAX);
    let mut bytes = rest.to_vec();
    input.take(length.saturating_sub(read)).read_to_end(&mut bytes)?;
    bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    if u64::try_from(bytes.len()).is_ok_and(|read| read < length) {
        // It shrank while it was read.
        return Err(HeaderFault::CutHeader { size });
    }
    header::parse(&bytes, data, size)
}

#[cfg(test)]
mod tests;

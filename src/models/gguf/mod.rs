//! The header of a GGUF file: read with bounds on everything, never trusted.
//!
//! Source: `docs/gguf.md` of ggml; the sizes of its types are those of llama.cpp b11434.

mod reader;
mod shards;
mod types;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use self::shards::{Shard, shard_of};
use self::{
    reader::{Reader, Value},
    types::TensorType,
};
use crate::{
    models::short,
    spec::{
        Bytes,
        model::{ModelFacts, Numbers, Place, Tensor, WeightKind},
    },
};

/// Real models have less than a hundred.
const MAX_PAIRS: u64 = 1 << 16;
/// Real models have a few thousand.
const MAX_TENSORS: u64 = 1 << 20;
/// Source: `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;
/// Source: `GGUF_DEFAULT_ALIGNMENT`.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What the header says that slotd uses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// `general.architecture`, such as `llama`; empty where it is not said.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.type`, such as `model`, `adapter` or `mmproj`, where it is said.
    pub general_type: Option<String>,
    /// The quantisation of most tensors, such as `Q4_K_M`, where it is said and known.
    pub quantisation: Option<&'static str>,
    /// Numbers in all tensors of this file.
    pub parameters: u64,
    /// Tokens that the model was trained for.
    pub context_length: Option<u64>,
    /// How many layers the model has.
    pub layers: Option<u64>,
    /// How the model makes one embedding of many; only embedding models say.
    /// Source: `enum llama_pooling_type`.
    pub pooling: Option<u32>,
    /// How many tensors this file has.
    pub tensors: u64,
    /// What they take.
    pub tensor_bytes: Bytes,
    /// How many files the model is split into; 1 for a whole one.
    pub parts: u64,
    /// What memory depends on.
    pub facts: ModelFacts,
}

/// Says why a file is no whole GGUF file. The text reads after the file's name.
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
    #[error(
        "is not a GGUF file, it begins with `{begins}`; name a .gguf file, or download it again"
    )]
    NotGguf {
        /// Its first bytes, escaped.
        begins: String,
    },
    /// A version that the engines do not read either.
    #[error("has GGUF version {0}, and engines read 2 and 3; convert or download it again")]
    Version(u32),
    /// Its numbers are in the other byte order.
    #[error("is a GGUF file for big-endian machines; download the one for this machine")]
    BigEndian,
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
    /// The header contradicts itself.
    #[error("has a damaged header ({0}); download it again")]
    Damaged(&'static str),
    /// A part of a split model is missing.
    #[error("is part 1 of {count}, and part {missing}, `{}`, is not beside it; download it", path.display())]
    MissingPart {
        /// The first part that is not there.
        missing: u64,
        /// How many parts there should be.
        count: u64,
        /// Where it should be.
        path: PathBuf,
    },
    /// A later part of a split model was named.
    #[error("is part {part} of a split model; name the first one, `{}`", first.display())]
    NotFirstPart {
        /// Which part it is.
        part: u64,
        /// The name of the first part.
        first: PathBuf,
    },
    /// A later part of a split model is no whole file.
    #[error("is split, and its part `{}` {}", path.display(), fault)]
    BadPart {
        /// Which part.
        path: PathBuf,
        /// What is wrong with it.
        fault: Box<HeaderFault>,
    },
}

/// Reads and checks the model whose file, or first of several parts, is `path`: every length is
/// bounded, every tensor lies in its file, every part is there. Takes a few milliseconds, whatever
/// the model's size, and never panics.
///
/// # Errors
/// [`HeaderFault`]; its text reads after the file's name.
pub fn read(path: &Path) -> Result<Header, HeaderFault> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut header = parse(file, size)?;
    shards::add_parts(path, &mut header)?;
    Ok(header)
}

/// Reads the header of one file of `size` bytes; its other parts are not looked for.
///
/// # Errors
/// [`HeaderFault`].
pub fn parse(input: impl Read + Seek, size: u64) -> Result<Header, HeaderFault> {
    let mut reader = Reader::new(input, size);
    reader.magic()?;
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 2 | 3) => return Err(HeaderFault::BigEndian),
        version => return Err(HeaderFault::Version(version)),
    }
    let tensors = reader.count(MAX_TENSORS, "it claims too many tensors")?;
    let pairs = reader.count(MAX_PAIRS, "it claims too much metadata")?;
    let metadata = Metadata::read(&mut reader, pairs)?;
    let alignment = metadata.alignment.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(HeaderFault::Damaged("its alignment is no small power of two"));
    }
    let mut header = metadata.into_header();
    header.tensors = tensors;
    read_tensors(&mut reader, &mut header, alignment)?;
    Ok(header)
}

/// What is looked for among the metadata. Keys of one architecture may stand before its name.
#[derive(Debug, Default)]
struct Metadata {
    header: Header,
    alignment: Option<u64>,
    /// By their whole keys.
    numbers: BTreeMap<String, Numbers>,
}

impl Metadata {
    fn read<R: Read + Seek>(reader: &mut Reader<R>, pairs: u64) -> Result<Self, HeaderFault> {
        let mut metadata =
            Self { header: Header { parts: 1, ..Header::default() }, ..Self::default() };
        for _ in 0..pairs {
            let key = reader.name()?;
            match reader.value()? {
                Value::Text(text) => metadata.take_text(&key, text),
                Value::Number(number) => metadata.take_number(key, number),
                Value::Numbers(numbers) => {
                    metadata.take_list(&key, numbers.len().try_into().unwrap_or(u64::MAX));
                    metadata.numbers.insert(key, Numbers::Each(numbers));
                }
                Value::List(count) => metadata.take_list(&key, count),
                Value::Other => {}
            }
        }
        Ok(metadata)
    }

    fn take_text(&mut self, key: &str, text: String) {
        match key {
            "general.architecture" => self.header.architecture = text,
            "general.name" => self.header.name = Some(text),
            "general.type" => self.header.general_type = Some(text),
            _ => {}
        }
    }

    fn take_number(&mut self, key: String, number: u64) {
        match key.as_str() {
            "general.file_type" => self.header.quantisation = types::file_type(number),
            "general.alignment" => self.alignment = Some(number),
            "split.count" => self.header.parts = number.max(1),
            _ => drop(self.numbers.insert(key, Numbers::All(number))),
        }
    }

    fn take_list(&mut self, key: &str, count: u64) {
        if key == "tokenizer.ggml.tokens" {
            self.header.facts.vocabulary = count;
        } else if key == "tokenizer.ggml.merges" {
            self.header.facts.merges = count;
        }
    }

    fn into_header(self) -> Header {
        let Self { mut header, numbers, .. } = self;
        let start = format!("{}.", header.architecture);
        let of_model = numbers
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&start)?.to_owned(), value)));
        let facts = &mut header.facts;
        facts.architecture.clone_from(&header.architecture);
        facts.numbers = of_model.collect();
        header.layers = facts.number("block_count");
        header.context_length = facts.number("context_length");
        header.pooling =
            facts.number("pooling_type").and_then(|pooling| u32::try_from(pooling).ok());
        header
    }
}

/// Reads where every tensor lies and checks that the file has it.
fn read_tensors<R: Read + Seek>(
    reader: &mut Reader<R>,
    header: &mut Header,
    alignment: u64,
) -> Result<(), HeaderFault> {
    const TOO_LARGE: HeaderFault = HeaderFault::Damaged("a tensor is larger than any file");
    let mut weights: Vec<Tensor> = Vec::new();
    for _ in 0..header.tensors {
        let name = reader.name()?;
        if name.is_empty() {
            // What lies behind the last tensor reads like this: the count is wrong.
            return Err(HeaderFault::Damaged("a tensor has no name"));
        }
        let Size { elements, bytes, ggml_type, dimensions, rows } = read_size(reader)?;
        let offset = reader.u64()?;
        if offset % alignment != 0 {
            return Err(HeaderFault::Damaged("a tensor is not aligned"));
        }
        let end = offset.checked_add(bytes).ok_or(TOO_LARGE)?;
        header.parameters = header.parameters.checked_add(elements).ok_or(TOO_LARGE)?;
        header.tensor_bytes = Bytes(header.tensor_bytes.0.checked_add(bytes).ok_or(TOO_LARGE)?);
        let has_rows_of_eight = dimensions > 1 && rows % 8 == 0;
        let place = Place::of(&name);
        let kind = WeightKind { place, ggml_type, dimensions, has_rows_of_eight };
        let span = (offset, end);
        weights.push(Tensor { name, kind, bytes: Bytes(bytes), part: 0, span });
    }
    let last = weights.iter().rev().max_by_key(|tensor| tensor.span.1);
    let last = last.map(|tensor| (tensor.span.1, short(&tensor.name)));
    header.facts.weights = weights;
    let Some((end, tensor)) = last else { return Ok(()) };
    let data = reader.position().checked_next_multiple_of(alignment).ok_or(TOO_LARGE)?;
    let end = data.checked_add(end).ok_or(TOO_LARGE)?;
    if end > reader.size() {
        let size = reader.size();
        return Err(HeaderFault::CutTensor { tensor, end, size });
    }
    Ok(())
}

/// A tensor's shape and type: how many numbers it has, and how many bytes.
struct Size {
    elements: u64,
    bytes: u64,
    ggml_type: u32,
    dimensions: u32,
    rows: u64,
}

fn read_size<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Size, HeaderFault> {
    const TOO_LARGE: HeaderFault = HeaderFault::Damaged("a tensor has too many numbers");
    let dimensions = reader.u32()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(HeaderFault::Damaged("a tensor has too many dimensions"));
    }
    let mut row = 1;
    let mut rows = 1;
    let mut elements: u64 = 1;
    for dimension in 0..dimensions {
        let length = reader.u64()?;
        if dimension == 0 {
            row = length;
        } else if dimension == 1 {
            rows = length;
        }
        elements = elements.checked_mul(length).ok_or(TOO_LARGE)?;
    }
    // A type that is not known here may be known to a newer engine: its start is checked at least.
    let ggml_type = reader.u32()?;
    let size = |bytes| Size { elements, bytes, ggml_type, dimensions, rows };
    let Some(kind) = TensorType::of(ggml_type) else { return Ok(size(0)) };
    if row % kind.block != 0 {
        return Err(HeaderFault::Damaged("a tensor's rows are no whole blocks"));
    }
    let bytes = (elements / kind.block).checked_mul(kind.bytes).ok_or(TOO_LARGE)?;
    Ok(size(bytes))
}

#[cfg(test)]
mod tests;

//! The JSON of a header, and what must hold of the tensors in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use super::{Header, HeaderFault, Tensor};
use crate::models::short;

/// Real models have a few hundred in a file, those of many experts some ten thousands.
const MAX_TENSORS: usize = 1 << 20;
const MAX_DIMENSIONS: usize = 16;
/// The metadata's own key.
const METADATA: &str = "__metadata__";
/// Longer texts of the metadata are not kept.
const MAX_TEXT: usize = 256;

/// Makes a header of its JSON. Tensors begin at byte `data` of a file of `size` bytes.
pub(super) fn parse(json: &[u8], data: u64, size: u64) -> Result<Header, HeaderFault> {
    let read: Read = serde_json::from_slice(json).map_err(|error| damaged(&error))?;
    let Read { format, tensors } = read;
    let mut header = Header { tensors: Vec::with_capacity(tensors.len()), format };
    for (name, Entry { dtype, shape, data_offsets: [start, end] }) in tensors {
        let tensor = placed(name, dtype, shape, (start, end), data)?;
        header.tensors.push(tensor);
    }
    check_places(&header, data, size)?;
    Ok(header)
}

fn placed(
    name: String,
    dtype: String,
    shape: Vec<u64>,
    (start, end): (u64, u64),
    data: u64,
) -> Result<Tensor, HeaderFault> {
    let of = |words: &str| HeaderFault::Damaged(format!("tensor `{}` {words}", short(&name)));
    let absolute = |offset: u64| data.checked_add(offset).ok_or_else(|| of("lies in no file"));
    let range = absolute(start)?..absolute(end)?;
    if range.end < range.start {
        return Err(of("ends before it begins"));
    }
    if shape.len() > MAX_DIMENSIONS {
        return Err(of("has too many dimensions"));
    }
    // A type that is not known here may be known to a newer engine.
    if let Some(bits) = bits(&dtype) {
        let numbers = shape.iter().try_fold(1_u64, |product, length| product.checked_mul(*length));
        let taken = numbers.and_then(|numbers| numbers.checked_mul(bits));
        let there = (range.end - range.start).checked_mul(8);
        if taken.is_none() || taken != there {
            return Err(of("has another length than its shape says"));
        }
    }
    Ok(Tensor { name, dtype, shape, range })
}

/// Tensors lie one behind the other without holes, and the file ends where the last one does.
/// Source: `Metadata::validate` and `SafeTensors::deserialize`.
fn check_places(header: &Header, data: u64, size: u64) -> Result<(), HeaderFault> {
    let mut places: Vec<&Tensor> = header.tensors.iter().collect();
    places.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut reached = data;
    for tensor in &places {
        if tensor.range.start != reached {
            let reason = format!(
                "tensor `{}` does not begin where the one before ends",
                short(&tensor.name)
            );
            return Err(HeaderFault::Damaged(reason));
        }
        reached = tensor.range.end;
    }
    if reached > size {
        let last = places.last().map(|tensor| short(&tensor.name)).unwrap_or_default();
        return Err(HeaderFault::CutTensor { tensor: last, end: reached, size });
    }
    if reached < size {
        return Err(HeaderFault::Damaged("its tensors end before the file does".to_owned()));
    }
    Ok(())
}

/// Returns how many bits a number of this type takes. Source: `enum Dtype`.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

pub(super) fn damaged(error: &serde_json::Error) -> HeaderFault {
    HeaderFault::Damaged(error.to_string())
}

/// The header as it stands in the file.
struct Read {
    format: Option<String>,
    tensors: Vec<(String, Entry)>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let mut read = Read { format: None, tensors: Vec::new() };
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let mut metadata: BTreeMap<String, String> = map.next_value()?;
                read.format = metadata.remove("format").filter(|text| text.len() <= MAX_TEXT);
                continue;
            }
            if read.tensors.len() >= MAX_TENSORS {
                return Err(de::Error::custom("it claims too many tensors"));
            }
            if !names.insert(name.clone()) {
                let words = format_args!("tensor `{}` stands in it twice", short(&name));
                return Err(de::Error::custom(words));
            }
            let entry = map.next_value()?;
            read.tensors.push((name, entry));
        }
        Ok(read)
    }
}

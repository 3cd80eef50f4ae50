//! The tensors of a safetensors file, mapped.
//!
//! Source: the format's description in the README of `safetensors`: eight bytes with the length of
//! the header, the header in JSON, the numbers.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;
use serde::Deserialize;
use serde_json::Value as Json;

use super::header::{Extent, map};
use crate::worker::exit::Ending;

/// A file whose every tensor lies inside the file.
#[derive(Debug)]
pub(super) struct Tensors {
    file: Arc<Mmap>,
    found: BTreeMap<String, Entry>,
    /// Where the numbers begin.
    start: u64,
}

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

const MOST_HEADER: u64 = 100 << 20;

impl Tensors {
    /// Opens and checks the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, Ending> {
        let unreadable = |error: std::io::Error| {
            Ending::missing_file(format!("cannot read model `{}`: {error}", path.display()))
        };
        let damaged = |problem: &str| {
            Ending::bad_model(format!(
                "`{}` is not a whole safetensors file: {problem}",
                path.display()
            ))
        };
        let file = Arc::new(map(&File::open(path).map_err(unreadable)?).map_err(unreadable)?);
        let length = file.first_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
        let length = u64::from_le_bytes(*length);
        let start = length.saturating_add(8);
        let header = usize::try_from(start).ok().filter(|_| length <= MOST_HEADER);
        let header = header.and_then(|end| file.get(8..end));
        let header = header.ok_or_else(|| damaged("its header reaches beyond its end"))?;
        let parsed: BTreeMap<String, Json> =
            serde_json::from_slice(header).map_err(|error| damaged(&error.to_string()))?;
        let mut found = BTreeMap::new();
        let size = u64::try_from(file.len()).unwrap_or(u64::MAX);
        for (name, entry) in parsed.into_iter().filter(|(name, _)| name != "__metadata__") {
            let entry: Entry =
                serde_json::from_value(entry).map_err(|error| damaged(&error.to_string()))?;
            let [from, to] = entry.data_offsets;
            if from > to || start.checked_add(to).is_none_or(|end| end > size) {
                return Err(damaged(&format!("tensor `{name}` reaches beyond its end")));
            }
            // Some files prefix all names with the model's.
            let name = name.strip_prefix("bert.").map_or_else(|| name.clone(), str::to_owned);
            found.insert(name, entry);
        }
        Ok(Self { file, found, start })
    }

    /// Gives the file.
    pub(super) fn file(&self) -> &Arc<Mmap> {
        &self.file
    }

    /// Gives the place of tensor `name`.
    pub(super) fn extent(&self, name: &str) -> Result<Extent, Ending> {
        let entry = self
            .found
            .get(name)
            .ok_or_else(|| Ending::bad_model(format!("the model lacks the tensor `{name}`")))?;
        let dtype = match entry.dtype.as_str() {
            "F32" => GgmlDType::F32,
            "F16" => GgmlDType::F16,
            "BF16" => GgmlDType::BF16,
            other => {
                return Err(Ending::bad_model(format!(
                    "tensor `{name}` is of type `{other}`, this worker knows `F32`, `F16`, `BF16`"
                )));
            }
        };
        let [from, to] = entry.data_offsets;
        let wanted = entry.shape.iter().try_fold(dtype.type_size(), |size, n| size.checked_mul(*n));
        let length = usize::try_from(to.saturating_sub(from)).ok();
        let length = length.filter(|length| Some(*length) == wanted && *length > 0);
        let length = length.ok_or_else(|| {
            Ending::bad_model(format!("tensor `{name}` has not the bytes of its shape"))
        })?;
        Ok(Extent::at(dtype, entry.shape.clone(), self.start.saturating_add(from), length))
    }

    /// Gives a vector of `length` floats.
    pub(super) fn floats(&self, name: &str, length: usize) -> Result<Vec<f32>, Ending> {
        let extent = self.extent(name)?;
        if extent.dims != [length] {
            return Err(Ending::bad_model(format!(
                "tensor `{name}` has the unexpected shape {:?}",
                extent.dims
            )));
        }
        let bytes = extent.range().and_then(|range| self.file.get(range)).unwrap_or_default();
        let floats = extent.dtype.from_data(bytes.to_vec().into()).dequantize(length);
        floats
            .and_then(|floats| Ok(floats.as_slice::<f32>()?.to_vec()))
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }
}

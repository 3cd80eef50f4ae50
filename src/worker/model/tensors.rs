//! The tensors of a folder's safetensors, in one file or in several that an index names; mapped.
//!
//! Source: the format's description in the README of `safetensors`: eight bytes with the length of
//! the header, the header in JSON, the numbers. For the index, `huggingface_hub/serialization/_base.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Component, Path},
    sync::Arc,
};

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;
use serde::Deserialize;
use serde_json::Value as Json;

use super::{
    header::{Extent, map},
    load::other_shape,
};
use crate::worker::exit::Ending;

/// All tensors of a model; every one lies inside its file.
#[derive(Debug)]
pub(super) struct Tensors {
    found: BTreeMap<String, Place>,
    bytes: u64,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    file: Arc<Mmap>,
    entry: Entry,
    /// Where the numbers of the file begin.
    start: u64,
}

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Which file has which tensor.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MOST_HEADER: u64 = 100 << 20;

impl Tensors {
    /// Opens and checks the files of `folder`: the one with all weights, else those of the index.
    pub(super) fn open(folder: &Path) -> Result<Self, Ending> {
        let mut tensors = Self { found: BTreeMap::new(), bytes: 0 };
        let index = folder.join(INDEX);
        if folder.join(WHOLE).exists() || !index.exists() {
            tensors.add(&folder.join(WHOLE))?;
            return Ok(tensors);
        }
        let read = Index::read(&index)?;
        let files = read.files(&index)?;
        for name in files.keys() {
            let path = folder.join(name);
            if !path.exists() {
                return Err(Ending::missing_file(format!(
                    "`{}` names {} files, and `{name}` is not beside it",
                    index.display(),
                    files.len()
                )));
            }
            tensors.add(&path)?;
        }
        for (file, names) in &files {
            if let Some(name) = names.iter().find(|name| !tensors.found.contains_key(plain(name))) {
                return Err(Ending::bad_model(format!(
                    "`{}` says that `{file}` has the tensor `{name}`, which it has not",
                    index.display()
                )));
            }
        }
        Ok(tensors)
    }

    /// Takes in the tensors of the file at `path`.
    fn add(&mut self, path: &Path) -> Result<(), Ending> {
        let unreadable = |error: std::io::Error| {
            Ending::missing_file(format!("cannot read model `{}`: {error}", path.display()))
        };
        let damaged = |problem: &str| {
            Ending::bad_model(format!(
                "`{}` is not a whole safetensors file: {problem}",
                path.display()
            ))
        };
        let opened = File::open(path).map_err(unreadable)?;
        let size = opened.metadata().map_err(unreadable)?.len();
        if size == 0 {
            // Nothing cannot be mapped.
            return Err(damaged("it is empty"));
        }
        let file = Arc::new(map(&opened).map_err(unreadable)?);
        let length = file.first_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
        let length = u64::from_le_bytes(*length);
        let start = length.saturating_add(8);
        let header = usize::try_from(start).ok().filter(|_| length <= MOST_HEADER);
        let header = header.and_then(|end| file.get(8..end));
        let header = header.ok_or_else(|| damaged("its header reaches beyond its end"))?;
        let parsed: BTreeMap<String, Json> =
            serde_json::from_slice(header).map_err(|error| damaged(&error.to_string()))?;
        let size = u64::try_from(file.len()).unwrap_or(u64::MAX);
        for (name, entry) in parsed.into_iter().filter(|(name, _)| name != "__metadata__") {
            let entry: Entry =
                serde_json::from_value(entry).map_err(|error| damaged(&error.to_string()))?;
            let [from, to] = entry.data_offsets;
            if from > to || start.checked_add(to).is_none_or(|end| end > size) {
                return Err(damaged(&format!("tensor `{name}` reaches beyond its end")));
            }
            let place = Place { file: Arc::clone(&file), entry, start };
            self.found.insert(plain(&name).to_owned(), place);
        }
        self.bytes = self.bytes.saturating_add(size);
        Ok(())
    }

    /// Gives what the files take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file and the place in it of tensor `name`.
    pub(super) fn place(&self, name: &str) -> Result<(&Arc<Mmap>, Extent), Ending> {
        let Place { file, entry, start } = self
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
        Ok((file, Extent::at(dtype, entry.shape.clone(), start.saturating_add(from), length)))
    }

    /// Gives all floats of a small tensor of this shape.
    pub(super) fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Ending> {
        let (file, extent) = self.place(name)?;
        if extent.dims != shape {
            return Err(other_shape(name, &extent.dims, &format!("{shape:?}")));
        }
        let bytes = extent.range().and_then(|range| file.get(range)).unwrap_or_default();
        let floats =
            extent.dtype.from_data(bytes.to_vec().into()).dequantize(shape.iter().product());
        floats
            .and_then(|floats| Ok(floats.as_slice::<f32>()?.to_vec()))
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }
}

impl Index {
    fn read(path: &Path) -> Result<Self, Ending> {
        let text = fs::read(path).map_err(|error| {
            Ending::missing_file(format!("cannot read `{}`: {error}", path.display()))
        })?;
        serde_json::from_slice(&text)
            .map_err(|error| Ending::bad_model(format!("`{}`: {error}", path.display())))
    }

    /// Gives the tensors of each file.
    fn files(&self, path: &Path) -> Result<BTreeMap<&str, BTreeSet<&str>>, Ending> {
        let mut files: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in &self.weight_map {
            // Nothing above the folder is opened because an index says so.
            let is_inside =
                Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if file.is_empty() || !is_inside {
                return Err(Ending::bad_model(format!(
                    "`{}` names `{file}`, which is not in its folder",
                    path.display()
                )));
            }
            files.entry(file).or_default().insert(tensor);
        }
        if files.is_empty() {
            return Err(Ending::bad_model(format!("`{}` names no files", path.display())));
        }
        Ok(files)
    }
}

/// Some files prefix all names with the model's.
fn plain(name: &str) -> &str {
    name.strip_prefix("bert.").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these tensors, two floats each.
    fn write(path: &Path, names: &[&str]) {
        let mut header = serde_json::Map::new();
        let mut bytes = Vec::new();
        for (name, value) in names.iter().zip([1.0_f32, 2.0, 3.0]) {
            let from = bytes.len();
            bytes.extend([value, -value].map(f32::to_le_bytes).concat());
            let entry = serde_json::json!({ "dtype": "F32", "shape": [2], "data_offsets": [from, bytes.len()] });
            header.insert((*name).to_owned(), entry);
        }
        let header = Json::Object(header).to_string();
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        fs::write(path, [&length, header.as_bytes(), &bytes].concat()).unwrap();
    }

    fn index(folder: &Path, map: &Json) {
        let text = serde_json::json!({ "metadata": { "total_size": 24 }, "weight_map": map });
        fs::write(folder.join(INDEX), text.to_string()).unwrap();
    }

    fn fault(folder: &Path) -> String {
        let text = Tensors::open(folder).unwrap_err().to_string();
        text.replace(&folder.display().to_string(), "DIR")
    }

    #[test]
    fn a_model_in_several_files_is_one() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("m-1.safetensors"), &["bert.a", "bert.b"]);
        write(&folder.path().join("m-2.safetensors"), &["c"]);
        index(
            folder.path(),
            &serde_json::json!({ "bert.a": "m-1.safetensors", "bert.b": "m-1.safetensors", "c": "m-2.safetensors" }),
        );
        let tensors = Tensors::open(folder.path()).unwrap();
        let numbers = |name| tensors.numbers(name, &[2]).unwrap();
        assert_eq!(
            [numbers("a"), numbers("b"), numbers("c")],
            [[1.0, -1.0], [2.0, -2.0], [1.0, -1.0]]
        );
        let sizes = ["m-1.safetensors", "m-2.safetensors"]
            .map(|name| folder.path().join(name).metadata().unwrap().len());
        assert_eq!(tensors.bytes(), sizes.iter().sum::<u64>());
    }

    #[test]
    fn what_an_index_promises_and_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        insta::assert_snapshot!(fault(folder.path()), @"cannot read model `DIR/model.safetensors`: No such file or directory (os error 2)");
        write(&at("m-1.safetensors"), &["a"]);
        index(
            folder.path(),
            &serde_json::json!({ "a": "m-1.safetensors", "b": "m-2.safetensors" }),
        );
        insta::assert_snapshot!(fault(folder.path()), @"`DIR/model.safetensors.index.json` names 2 files, and `m-2.safetensors` is not beside it");
        write(&at("m-2.safetensors"), &["c"]);
        insta::assert_snapshot!(fault(folder.path()), @"`DIR/model.safetensors.index.json` says that `m-2.safetensors` has the tensor `b`, which it has not");
        fs::write(at("m-2.safetensors"), b"").unwrap();
        insta::assert_snapshot!(fault(folder.path()), @"`DIR/m-2.safetensors` is not a whole safetensors file: it is empty");
        index(folder.path(), &serde_json::json!({ "a": "../m-1.safetensors" }));
        insta::assert_snapshot!(fault(folder.path()), @"`DIR/model.safetensors.index.json` names `../m-1.safetensors`, which is not in its folder");
        index(folder.path(), &serde_json::json!({}));
        insta::assert_snapshot!(fault(folder.path()), @"`DIR/model.safetensors.index.json` names no files");
        fs::write(at(INDEX), "{").unwrap();
        assert!(fault(folder.path()).starts_with("`DIR/model.safetensors.index.json`: EOF"));
    }
}

//! Models in several files: an index that names them, or a folder that holds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{Header, HeaderFault, header::damaged, read};
use crate::{models::short, spec::Bytes};

/// Those of the largest models take a few MiB.
const MAX_INDEX: u64 = 64 << 20;
/// More parts than any model has.
const MAX_PARTS: usize = 4096;
const INDEX_ENDING: &str = ".safetensors.index.json";

/// What an index says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Index {
    /// Which tensors each file has, by the file's path beside the index.
    pub parts: BTreeMap<PathBuf, BTreeSet<String>>,
    /// What it says all tensors take together.
    pub total: Option<Bytes>,
}

/// A whole model.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Model {
    /// The index, where the model has one.
    pub index: Option<PathBuf>,
    /// Its files, in the order of their names.
    pub parts: Vec<Part>,
}

/// One file of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub header: Header,
}

impl Model {
    /// Returns what all tensors take.
    pub fn bytes(&self) -> Bytes {
        let sums = self.parts.iter().map(|part| part.header.bytes().0);
        Bytes(sums.fold(0, u64::saturating_add))
    }

    /// Returns how many numbers all tensors have.
    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.header.parameters()).fold(0, u64::saturating_add)
    }
}

/// Reads and checks a whole model: a `.safetensors` file, an index with all that it names, or a folder
/// with either. A folder with several files and no index has all of them.
///
/// # Errors
/// [`HeaderFault`], the first that is found; [`HeaderFault::NoWeights`] for a folder with no such file.
pub fn read_model(path: &Path) -> Result<Model, HeaderFault> {
    if !fs::metadata(path)?.is_dir() {
        if path.to_str().is_some_and(|name| name.ends_with(INDEX_ENDING)) {
            return read_parts(path);
        }
        let part = Part { path: path.to_owned(), header: read(path)? };
        return Ok(Model { index: None, parts: vec![part] });
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_of_model(name)));
    }
    names.sort();
    // The file with all weights first, where a folder has both, as those do that load it.
    let usual = ["model.safetensors", "model.safetensors.index.json"];
    let usual = usual.into_iter().find(|usual| names.iter().any(|name| name == usual));
    let first_index = || names.iter().map(String::as_str).find(|name| name.ends_with(INDEX_ENDING));
    match usual.or_else(first_index) {
        Some(name) => read_model(&path.join(name)),
        None if names.is_empty() => Err(HeaderFault::NoWeights),
        None => {
            let part = |name: &String| match read(&path.join(name)) {
                Ok(header) => Ok(Part { path: path.join(name), header }),
                Err(fault) => Err(bad_part(Path::new(name), fault)),
            };
            let parts = names.iter().take(MAX_PARTS).map(part).collect::<Result<_, _>>()?;
            Ok(Model { index: None, parts })
        }
    }
}

/// Reads an index alone, and no file that it names.
///
/// # Errors
/// [`HeaderFault`].
pub fn read_index(path: &Path) -> Result<Index, HeaderFault> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_INDEX + 1).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Err(HeaderFault::Empty);
    }
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_INDEX) {
        return Err(HeaderFault::Damaged("it is longer than any model's".to_owned()));
    }
    parse_index(&bytes)
}

/// Reads what stands in an index.
///
/// # Errors
/// [`HeaderFault`].
pub fn parse_index(json: &[u8]) -> Result<Index, HeaderFault> {
    let typed: Typed = serde_json::from_slice(json).map_err(|error| damaged(&error))?;
    let total = typed.metadata.and_then(|metadata| metadata.total_size.whole());
    let mut index = Index { total, parts: BTreeMap::new() };
    for (tensor, file) in typed.weight_map {
        // Nothing above the folder is looked at because an index says so.
        let is_inside =
            Path::new(&file).components().all(|part| matches!(part, Component::Normal(_)));
        if file.is_empty() || !is_inside {
            let reason = format!("it names `{}`, which is not in its folder", short(&file));
            return Err(HeaderFault::Damaged(reason));
        }
        index.parts.entry(file.into()).or_default().insert(tensor);
    }
    if index.parts.is_empty() || index.parts.len() > MAX_PARTS {
        let reason = format!("it names {} files", index.parts.len());
        return Err(HeaderFault::Damaged(reason));
    }
    Ok(index)
}

fn is_of_model(name: &str) -> bool {
    name.ends_with(INDEX_ENDING)
        || Path::new(name).extension().is_some_and(|ending| ending == "safetensors")
}

fn read_parts(path: &Path) -> Result<Model, HeaderFault> {
    let index = read_index(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let count = index.parts.len();
    let mut parts = Vec::new();
    for (name, tensors) in &index.parts {
        let header = match read(&folder.join(name)) {
            Err(HeaderFault::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HeaderFault::MissingPart { path: name.clone(), count });
            }
            read => read.map_err(|fault| bad_part(name, fault))?,
        };
        let there: BTreeSet<&str> =
            header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some(tensor) = tensors.iter().find(|tensor| !there.contains(tensor.as_str())) {
            let reason = format!("it lacks tensor `{}`", short(tensor));
            return Err(bad_part(name, HeaderFault::Damaged(reason)));
        }
        parts.push(Part { path: folder.join(name), header });
    }
    Ok(Model { index: Some(path.to_owned()), parts })
}

fn bad_part(name: &Path, fault: HeaderFault) -> HeaderFault {
    HeaderFault::BadPart { path: name.to_owned(), fault: Box::new(fault) }
}

/// An index as it stands in the file.
#[derive(Deserialize)]
struct Typed {
    metadata: Option<TypedMetadata>,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct TypedMetadata {
    #[serde(default)]
    total_size: Total,
}

/// Some writers make it a number with a point.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Total(Option<serde_json::Number>);

impl Total {
    fn whole(self) -> Option<Bytes> {
        let number = self.0?;
        let text = number.as_u64().map(|whole| whole.to_string());
        let text = text.unwrap_or_else(|| number.to_string());
        text.trim_end_matches(".0").parse().ok().map(Bytes)
    }
}

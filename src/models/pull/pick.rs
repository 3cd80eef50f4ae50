//! Which files of a repository belong to what is asked for. Pure.
//!
//! 1. A repository of GGUF files: the file with the quantisation, all parts of a split one, and the
//!    projector that fits it best: what llama-server's `-hf` takes.
//! 2. Any other: all files that a model is loaded from as a folder, its weights in one format.
//!
//! Source: `find_best_model`, `get_split_files` and `find_best_sibling` in `common/download.cpp` of
//! llama.cpp b11434. One thing differs: `:F16` is not found in `model-BF16.gguf`.

use super::{catalog::Entry, fault::PullFault, reference::Reference};
use crate::models::{
    gguf::shard_of,
    hub::{choose, has_gguf_ending, is_model, listed},
};

/// What may be taken of a repository.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Formats {
    /// A GGUF model, else a model that is loaded as a folder.
    #[default]
    Any,
    /// A GGUF model: llama-server loads nothing else.
    Gguf,
}

/// Endings of weights that nobody needs where there are `.safetensors` of them.
const OTHER_WEIGHTS: [&str; 12] = [
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "ot",
    "onnx",
    "onnx_data",
    "tflite",
    "mlmodel",
    "gguf",
];
/// Folders with the same model in other formats.
const OTHER_FOLDERS: [&str; 6] = ["onnx/", "original/", "openvino/", "coreml/", "metal/", "flax/"];

/// Picks the files, in the order of their paths.
pub(super) fn pick<'a>(
    entries: &'a [Entry],
    wanted: &Reference,
    formats: Formats,
) -> Result<Vec<&'a Entry>, PullFault> {
    let mut models: Vec<&str> =
        entries.iter().map(|entry| entry.path.as_str()).filter(|path| is_model(path)).collect();
    models.sort_unstable();
    let quant = wanted.quant.as_deref();
    let mut picked = if let Some(chosen) = choose(&models, quant) {
        let mut files: Vec<_> =
            entries.iter().filter(|entry| is_part_of(&entry.path, chosen)).collect();
        files.extend(projector(entries, chosen));
        files
    } else if quant.is_none() && formats == Formats::Any && is_folder_model(entries) {
        entries.iter().filter(|entry| belongs_to_folder(&entry.path)).collect()
    } else {
        let mut found = listed(&models);
        if formats == Formats::Gguf && models.is_empty() {
            found.push_str(", and llama-server loads no other");
        }
        return Err(PullFault::NoModel { model: wanted.to_string(), found });
    };
    picked.sort_by(|one, other| one.path.cmp(&other.path));
    picked.dedup_by(|one, other| one.path == other.path);
    Ok(picked)
}

/// Tells whether `path` is `first`, or another part of it where it is split.
fn is_part_of(path: &str, first: &str) -> bool {
    let (folder, file) = split(path);
    let (first_folder, first_file) = split(first);
    if path == first {
        return true;
    }
    match (shard_of(file), shard_of(first_file)) {
        (Some(one), Some(other)) => {
            folder == first_folder && (one.prefix, one.count) == (other.prefix, other.count)
        }
        _ => false,
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Picks the projector in the model's own folder or one above it: the deepest first, then the one whose
/// precision is closest to the model's.
fn projector<'a>(entries: &'a [Entry], model: &str) -> Option<&'a Entry> {
    let of_model = bits(model);
    let folder = folders(model);
    let depth = |path: &str| folders(path).len();
    let is_above = |path: &str| folder.starts_with(&folders(path));
    let mut found: Vec<_> = entries
        .iter()
        .filter(|entry| has_gguf_ending(&entry.path) && entry.path.contains("mmproj"))
        .filter(|entry| is_above(&entry.path))
        .collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
        .into_iter()
        .min_by_key(|entry| (usize::MAX - depth(&entry.path), bits(&entry.path).abs_diff(of_model)))
}

fn folders(path: &str) -> Vec<&str> {
    let (folder, _) = split(path);
    folder.split('/').filter(|part| !part.is_empty()).collect()
}

/// Reads the precision out of the last word of a name: `Q4_0` is 4, `BF16` 16; 0 where it says none.
fn bits(path: &str) -> u32 {
    let file = split(path).1;
    let prefix = shard_of(file).map(|shard| shard.prefix);
    let stem = prefix.as_deref().or(file.strip_suffix(".gguf")).unwrap_or_default();
    let tag = stem.rsplit(['-', '.']).next().unwrap_or_default();
    let is_word = tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let digits: String = tag
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .take(4)
        .collect();
    if is_word { digits.parse().unwrap_or(0) } else { 0 }
}

/// Tells whether the repository holds a model that is loaded as a folder.
fn is_folder_model(entries: &[Entry]) -> bool {
    let has = |wanted: fn(&str) -> bool| entries.iter().any(|entry| wanted(&entry.path));
    has(|path| path == "config.json") && has(|path| path.ends_with(".safetensors"))
}

fn belongs_to_folder(path: &str) -> bool {
    let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
    !OTHER_WEIGHTS.contains(&ending) && !OTHER_FOLDERS.iter().any(|folder| path.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::pull::catalog::{Listed, of_listed};

    fn entries(paths: &[&str]) -> Vec<Entry> {
        let listed = Listed {
            size: 1,
            blob_id: "0".repeat(40),
            lfs_sha256: None,
            lfs_size: None,
            xet_hash: None,
        };
        paths.iter().map(|path| of_listed((*path).to_owned(), listed.clone()).unwrap()).collect()
    }

    fn picked(paths: &[&str], wanted: &str) -> String {
        let entries = entries(paths);
        match pick(&entries, &wanted.parse().unwrap(), Formats::Any) {
            Ok(files) => files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "),
            Err(fault) => fault.to_string(),
        }
    }

    const SEVERAL: [&str; 9] = [
        "README.md",
        "config.json",
        "imatrix.gguf",
        "m-BF16.gguf",
        "m-F16.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "mmproj-BF16.gguf",
        "mmproj-Q8_0.gguf",
    ];

    #[test]
    fn the_usual_quantisation_is_taken_unless_one_is_named() {
        assert_eq!(picked(&SEVERAL, "o/r"), "m-Q4_K_M.gguf mmproj-Q8_0.gguf");
        assert_eq!(picked(&SEVERAL, "o/r:f16"), "m-F16.gguf mmproj-BF16.gguf");
        assert_eq!(picked(&["b.gguf", "a.gguf"], "o/r"), "a.gguf");
        insta::assert_snapshot!(picked(&SEVERAL, "o/r:Q2_K"), @"`o/r:Q2_K` names no model in its repository, which has `m-BF16.gguf`, `m-F16.gguf`, `m-Q4_K_M.gguf`, `m-Q8_0.gguf`; correct its name");
    }

    #[test]
    fn a_split_file_is_taken_whole() {
        let parts = [
            "Q8_0/m-Q8_0-00001-of-00002.gguf",
            "Q8_0/m-Q8_0-00002-of-00002.gguf",
            "Q8_0/x-Q8_0-00002-of-00002.gguf",
            "m-Q8_0-00002-of-00002.gguf",
            "mmproj-F16.gguf",
        ];
        assert_eq!(
            picked(&parts, "o/r"),
            "Q8_0/m-Q8_0-00001-of-00002.gguf Q8_0/m-Q8_0-00002-of-00002.gguf mmproj-F16.gguf"
        );
    }

    #[test]
    fn a_projector_of_another_folder_belongs_to_another_model() {
        let paths =
            ["a/m-Q8_0.gguf", "a/mmproj-F32.gguf", "b/mmproj-Q8_0.gguf", "mmproj-Q8_0.gguf"];
        assert_eq!(picked(&paths, "o/r"), "a/m-Q8_0.gguf a/mmproj-F32.gguf");
    }

    #[test]
    fn a_model_without_gguf_is_a_folder_with_its_weights_once() {
        let paths = [
            ".gitattributes",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
        ];
        assert_eq!(
            picked(&paths, "o/r"),
            ".gitattributes config.json model-00001-of-00002.safetensors \
             model-00002-of-00002.safetensors model.safetensors.index.json tokenizer.json tokenizer.model"
        );
        insta::assert_snapshot!(picked(&paths, "o/r:Q8_0"), @"`o/r:Q8_0` names no model in its repository, which has no GGUF file; correct its name");
    }

    #[test]
    fn for_llama_server_a_repository_without_gguf_was_fetched_whole() {
        let entries = entries(&["config.json", "model.safetensors"]);
        let wanted = "o/r".parse().unwrap();
        assert_eq!(pick(&entries, &wanted, Formats::Any).unwrap().len(), 2);
        let fault = pick(&entries, &wanted, Formats::Gguf).unwrap_err();
        insta::assert_snapshot!(fault, @"`o/r` names no model in its repository, which has no GGUF file, and llama-server loads no other; correct its name");
    }

    #[test]
    fn precision_is_the_number_in_the_last_word() {
        assert_eq!(bits("x/m-Q4_K_M.gguf"), 4);
        assert_eq!(bits("m-7B-BF16.gguf"), 16);
        assert_eq!(bits("m-Q8_0-00001-of-00002.gguf"), 8);
        assert_eq!(bits("model.gguf"), 0);
    }
}

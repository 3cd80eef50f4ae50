//! From what a profile names to a file.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    gguf::{self, shard_of},
    hub, inventory,
};
use crate::spec::profile::ModelSource;

/// More files than a folder of models has.
const MAX_IN_FOLDER: usize = 1000;

/// A model file and what belongs to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located {
    /// The file, or the first of several parts.
    pub path: PathBuf,
    /// The projector that lets the model see or hear.
    pub mmproj: Option<PathBuf>,
}

/// Says why there is no model file. Each text is a sentence with what to do about it.
#[derive(Debug, Error)]
pub enum LocateFault {
    /// It is in none of the places.
    #[error(
        "model file `{typed}` was not found (looked at {looked}); correct `model`, or put the file there"
    )]
    NotFound {
        /// What the profile says.
        typed: String,
        /// Where it was looked for, each in backticks.
        looked: String,
    },
    /// It is a folder.
    #[error("model `{}` is a directory; name the .gguf file in it{hint}", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// The file in it, if there is only one.
        hint: String,
    },
    /// It is neither a file nor a folder.
    #[error("model `{}` is not a regular file; name a .gguf file", .0.display())]
    Special(PathBuf),
    /// It is empty.
    #[error("model `{}` is empty; download it again", .0.display())]
    Empty(PathBuf),
    /// It is a link to nowhere.
    #[error("model `{}` is a link to a file that is gone; download it again", .0.display())]
    Dangling(PathBuf),
    /// It may not be read.
    #[error("model `{}` cannot be read; check the owner and mode of the file and its folders", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The repository was never downloaded.
    #[error("model `{}` is not in the Hugging Face cache `{}`; fetch it with `{}`", model, hub.display(), download(model))]
    NotInCache {
        /// The model as the profile names it.
        model: String,
        /// The cache.
        hub: PathBuf,
    },
    /// The repository was downloaded without that file.
    #[error("model `{}` is not in `{}`, which has {found}; correct `model`, or fetch it with `{}`", model, folder.display(), download(model))]
    NotInRepo {
        /// The model as the profile names it.
        model: String,
        /// What there is.
        found: String,
        /// The folder of the repository's files.
        folder: PathBuf,
    },
    /// The hub has told what the revision consists of, and that file is not among it.
    #[error("model `{model}` is not in {place}, which has {found}; correct `model`{or}")]
    NotListed {
        /// The model as the profile names it.
        model: String,
        /// What was looked at: a commit's list holds for ever, a branch's until the hub has a newer one.
        place: &'static str,
        /// The GGUF models that the repository has.
        found: String,
        /// What else could help, with its comma.
        or: String,
    },
}

/// Finds the GGUF file that `source` names. A repository is looked up in the cache at `hub`; nothing
/// is downloaded.
///
/// # Errors
/// [`LocateFault`], each variant as it says.
pub fn locate(source: &ModelSource, hub: &Path) -> Result<Located, LocateFault> {
    let located = match source {
        ModelSource::File { typed, candidates } => {
            let path = find(typed, candidates)?;
            let path = largest_in(&path).unwrap_or(path);
            let mmproj = projector_beside(&path);
            Located { path, mmproj }
        }
        ModelSource::Hub { .. } => hub::find_file(source, hub)?,
    };
    check_file(&located.path)?;
    Ok(located)
}

/// Finds what a command is given for `{model}`: the GGUF file of a source, or a folder of other files.
///
/// # Errors
/// [`LocateFault`].
pub(super) fn locate_any(source: &ModelSource, hub: &Path) -> Result<Located, LocateFault> {
    let path = match source {
        ModelSource::File { typed, candidates } => find(typed, candidates)?,
        ModelSource::Hub { quant, .. } => match hub::find_file(source, hub) {
            Err(LocateFault::NotInRepo { .. } | LocateFault::NotListed { .. })
                if quant.is_none() =>
            {
                hub::snapshot(source, hub)?
            }
            other => return other,
        },
    };
    Ok(Located { path, mmproj: None })
}

/// Gives the GGUF file of a source, or the folder of an embedder or reranker in safetensors.
///
/// # Errors
/// [`LocateFault`].
pub(super) fn locate_or_encoder(source: &ModelSource, hub: &Path) -> Result<Located, LocateFault> {
    locate(source, hub).or_else(|fault| {
        let is_encoder = |path: &Path| {
            let has = |name: &&str| path.join(name).is_file();
            ["config.json", "tokenizer.json"].iter().all(has)
                && ["model.safetensors", "model.safetensors.index.json"].iter().any(has)
        };
        locate_any(source, hub).ok().filter(|found| is_encoder(&found.path)).ok_or(fault)
    })
}

/// Says where a source's model is, or the folder that holds it; of one that is not whole where it is to be.
/// `None` where nothing of it is there.
pub fn whereabouts(source: &ModelSource, hub: &Path) -> Option<PathBuf> {
    let located = locate(source, hub).or_else(|_| locate_any(source, hub));
    located.ok().map(|located| located.path).or_else(|| inventory::place_of(source, hub))
}

fn find(typed: &str, candidates: &[PathBuf]) -> Result<PathBuf, LocateFault> {
    for path in candidates {
        match fs::metadata(path) {
            Ok(_) => return Ok(path.clone()),
            Err(source) if is_absent(&source) => {
                if fs::symlink_metadata(path).is_ok() {
                    return Err(LocateFault::Dangling(path.clone()));
                }
            }
            Err(source) => return Err(LocateFault::Unreadable { path: path.clone(), source }),
        }
    }
    let looked: Vec<_> = candidates.iter().map(|path| format!("`{}`", path.display())).collect();
    Err(LocateFault::NotFound { typed: typed.to_owned(), looked: looked.join(", ") })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn check_file(path: &Path) -> Result<(), LocateFault> {
    let unreadable = |source| LocateFault::Unreadable { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(unreadable)?;
    if found.is_dir() {
        return Err(LocateFault::Directory { path: path.to_owned(), hint: only_model_in(path) });
    }
    if !found.is_file() {
        return Err(LocateFault::Special(path.to_owned()));
    }
    if found.len() == 0 {
        return Err(LocateFault::Empty(path.to_owned()));
    }
    fs::File::open(path).map(drop).map_err(unreadable)
}

/// Finds the largest whole model in a folder, all its parts counted; `None` for what is no folder, and for
/// one without such a model.
fn largest_in(folder: &Path) -> Option<PathBuf> {
    if !folder.is_dir() {
        return None;
    }
    let entries = fs::read_dir(folder).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for name in names.filter(|name| hub::has_gguf_ending(name)).take(MAX_IN_FOLDER) {
        let size = fs::metadata(folder.join(&name)).map_or(0, |found| found.len());
        let first = shard_of(&name).map_or(name, |shard| shard.file_name(1));
        let sum = sizes.entry(first).or_default();
        *sum = sum.saturating_add(size);
    }
    let mut models: Vec<_> = sizes.into_iter().filter(|(name, _)| hub::is_model(name)).collect();
    // Of two of one size the first by its name.
    models.sort_by_key(|(_, size)| Reverse(*size));
    let mut paths = models.into_iter().map(|(name, _)| folder.join(name));
    paths.find(|path| gguf::read(path).is_ok())
}

fn only_model_in(folder: &Path) -> String {
    match names_in(folder, hub::is_model).as_slice() {
        [only] => format!(": `{}`", folder.join(only).display()),
        _ => String::new(),
    }
}

/// Finds `mmproj*.gguf` in a model's folder. In a folder with several models or projectors nothing
/// says which belong together: none is taken.
fn projector_beside(model: &Path) -> Option<PathBuf> {
    let folder = model.parent()?;
    let projectors = names_in(folder, hub::is_projector);
    let [only] = projectors.as_slice() else { return None };
    (names_in(folder, hub::is_model).len() == 1).then(|| folder.join(only))
}

fn names_in(folder: &Path, wanted: fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| wanted(name)).take(3).collect()
}

fn download(model: &str) -> String {
    format!("slotd pull {model}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn source(path: &Path) -> ModelSource {
        ModelSource::File {
            typed: "a.gguf".into(),
            candidates: vec!["/nowhere/a.gguf".into(), path.to_owned()],
        }
    }

    /// The fault's text, with the scratch directory as `DIR`.
    fn fault(path: &Path) -> String {
        let text = locate(&source(path), Path::new("/hub")).unwrap_err().to_string();
        text.replace(&path.parent().unwrap().display().to_string(), "DIR")
    }

    #[test]
    fn the_first_candidate_that_exists_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        fs::write(&path, "x").unwrap();
        let located = locate(&source(&path), Path::new("/hub")).unwrap();
        assert_eq!(located, Located { path, mmproj: None });
    }

    #[test]
    fn each_way_not_to_be_a_file_is_said_in_its_own_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("empty.gguf"), "").unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink("gone", at("link.gguf")).unwrap();

        insta::assert_snapshot!(fault(&at("a.gguf")), @"model file `a.gguf` was not found (looked at `/nowhere/a.gguf`, `DIR/a.gguf`); correct `model`, or put the file there");
        insta::assert_snapshot!(fault(&at("empty.gguf")), @"model `DIR/empty.gguf` is empty; download it again");
        insta::assert_snapshot!(fault(&at("link.gguf")), @"model `DIR/link.gguf` is a link to a file that is gone; download it again");
        insta::assert_snapshot!(fault(&at("folder")), @"model `DIR/folder` is a directory; name the .gguf file in it");

        fs::write(at("folder/b.gguf"), "x").unwrap();
        insta::assert_snapshot!(fault(&at("folder")), @"model `DIR/folder` is a directory; name the .gguf file in it: `DIR/folder/b.gguf`");
    }

    #[test]
    fn of_a_folder_the_largest_whole_model_is_taken_with_its_projector() {
        let folder = tempfile::tempdir().unwrap();
        // A file without tensors, and bytes behind it.
        let write = |name: &str, split: u32, more: usize| {
            let mut file = b"GGUF\x03\0\0\0".to_vec();
            file.extend([0_u64, 1, 11].map(u64::to_le_bytes).concat());
            file.extend(b"split.count");
            file.extend([4_u32, split].map(u32::to_le_bytes).concat());
            file.resize(file.len() + more, 0);
            fs::write(folder.path().join(name), file).unwrap();
        };
        write("small.gguf", 1, 10);
        write("large-00001-of-00002.gguf", 2, 10);
        write("large-00002-of-00002.gguf", 2, 10);
        write("broken-00001-of-00002.gguf", 2, 900);
        write("mmproj-large.gguf", 1, 5000);
        let located = || locate(&source(folder.path()), Path::new("/hub")).unwrap();
        assert_eq!(located().path, folder.path().join("large-00001-of-00002.gguf"));
        assert_eq!(located().mmproj, None, "which of the models it belongs to nothing says");
        fs::remove_file(folder.path().join("small.gguf")).unwrap();
        fs::remove_file(folder.path().join("broken-00001-of-00002.gguf")).unwrap();
        assert_eq!(located().mmproj, Some(folder.path().join("mmproj-large.gguf")));
        fs::remove_file(folder.path().join("large-00002-of-00002.gguf")).unwrap();
        assert!(matches!(
            locate(&source(folder.path()), Path::new("/hub")),
            Err(LocateFault::Directory { .. })
        ));
    }

    #[test]
    fn a_projector_is_taken_only_where_it_can_belong_to_no_other_model() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-a.gguf"] {
            fs::write(at(name), "x").unwrap();
        }
        let mmproj = || {
            let model = at("a-00001-of-00002.gguf");
            locate(&source(&model), Path::new("/hub")).unwrap().mmproj
        };
        assert_eq!(mmproj(), Some(at("mmproj-a.gguf")));
        fs::write(at("b.gguf"), "x").unwrap();
        assert_eq!(mmproj(), None);
    }
}

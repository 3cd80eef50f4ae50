//! What the model of a slot lacks, before anything is loaded: by what is on the disk alone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    entry::{Entry, Fault, Format, Gap, Source, Wholeness},
    files::{Seen, list},
    group::{Numbered, Place, has_ending},
    headers::Headers,
    hub::{Repo, choose, commit_of, is_model},
    tree::Tree,
};
use crate::{
    models::hub::{is_pinned, unlisted},
    spec::{Bytes, profile::ModelSource},
};

/// What has to be fetched before a model can be loaded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lacking {
    /// The model as the profile names it.
    pub model: String,
    /// One sentence: what is missing, and how to get it.
    pub message: String,
    /// The files, where they are known.
    pub missing: Vec<Gap>,
    /// How many bytes have to be fetched, where that is known.
    pub missing_bytes: Option<Bytes>,
}

/// Says what the model of `source` lacks; `None` for a whole one, for a damaged one, which fetching
/// what is missing does not mend, and for a file that nobody knows where to fetch. Blocks on disks; opens
/// the files of this model alone, and asks nothing of a network.
pub fn lacking(source: &ModelSource, hub: &Path) -> Option<Lacking> {
    match source {
        ModelSource::File { candidates, .. } => {
            let path = candidates.iter().find(|path| path.symlink_metadata().is_ok())?;
            let entry = beside((Source::Folder, path), &mut Headers::default())?;
            (entry.state == Wholeness::Incomplete)
                .then(|| Lacking::of(source, &entry.gaps, entry.missing_bytes))
        }
        ModelSource::Hub { repo, quant, revision } => {
            let folder = folder_of(hub, repo);
            match in_repo(&folder, quant.as_deref(), revision.as_deref()) {
                Ok(entry) if entry.state == Wholeness::Incomplete => {
                    Some(Lacking::of(source, &entry.gaps, entry.missing_bytes))
                }
                Ok(_) => None,
                Err(gaps) if quant.is_some() => match unlisted(source, hub) {
                    None => Some(Lacking::of_gaps(source, &gaps)),
                    // Of a commit no pull brings it.
                    Some(_) if is_pinned(source) => None,
                    Some(fault) => Some(Lacking {
                        message: fault.to_string(),
                        model: source.typed(),
                        missing: Vec::new(),
                        missing_bytes: None,
                    }),
                },
                Err(gaps) => Some(Lacking::of_gaps(source, &gaps)),
            }
        }
    }
}

impl Lacking {
    fn of_gaps(source: &ModelSource, gaps: &[Gap]) -> Self {
        let sum = gaps.iter().try_fold(0_u64, |sum, gap| Some(sum.saturating_add(gap.bytes?.0)));
        let bytes = sum.filter(|bytes| *bytes > 0).map(Bytes);
        Self::of(source, gaps, bytes)
    }

    fn of(source: &ModelSource, gaps: &[Gap], missing_bytes: Option<Bytes>) -> Self {
        let model = source.typed();
        let what = match gaps {
            [] => "it is not on this machine".to_owned(),
            [only] => only.to_string(),
            [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
        };
        let bytes = missing_bytes.map(|bytes| format!(" ({bytes})")).unwrap_or_default();
        let fetch = match source {
            ModelSource::Hub { .. } => format!("fetch it with `slotd pull {model}`"),
            ModelSource::File { .. } => "put it there".to_owned(),
        };
        let message = format!("model `{model}` has to be downloaded{bytes}: {what}; {fetch}");
        Self { model, message, missing: gaps.to_vec(), missing_bytes }
    }
}

/// The model that a path names, with its other parts.
pub(super) fn beside((source, path): (Source, &Path), headers: &mut Headers) -> Option<Entry> {
    let is_folder = path.is_dir();
    let root: &Path = if is_folder { path } else { path.parent()? };
    let mut files = list(root, |_| false, &mut Vec::new());
    if !is_folder {
        let name = path.file_name()?.to_str()?;
        files.retain(|file| is_same_model(&file.name, name));
    }
    let place = place((source, root), None, None, files);
    let mut models = place.models(headers);
    // A folder is whole by its weights; GGUF files in it are models of their own.
    models.retain(|entry| !is_folder || entry.format != Format::Gguf);
    models.pop().filter(|_| models.is_empty())
}

/// Tells whether two names are parts of one model, or one name.
fn is_same_model(one: &str, other: &str) -> bool {
    match (Numbered::of(one), Numbered::of(other)) {
        (Some(one), Some(other)) => {
            (one.stem, one.count, one.ending) == (other.stem, other.count, other.ending)
        }
        _ => one == other,
    }
}

fn place<'a>(
    (source, root): (Source, &'a Path),
    repo: Option<&'a str>,
    tree: Option<&'a Tree>,
    files: Vec<Seen>,
) -> Place<'a> {
    Place { source, root, repo, revision: None, refs: Vec::new(), tree, files }
}

/// The model that a repository and a quantisation name; else what is known of it.
fn in_repo(folder: &Path, quant: Option<&str>, revision: Option<&str>) -> Result<Entry, Vec<Gap>> {
    let repo = Repo::read(folder).ok_or_else(Vec::new)?;
    let known = commit_of(folder, revision);
    let is_known = known.is_some();
    // A branch is noted when all of it is there.
    let commit = known.or_else(|| repo.begun_commit()).ok_or_else(Vec::new)?;
    let tree = Tree::read(folder, &commit);
    let files = repo.files_of(&commit, tree.as_ref());
    let root: PathBuf = folder.join("snapshots").join(&commit);
    let names: Vec<&str> =
        files.iter().map(|file| file.name.as_str()).filter(|name| is_model(name)).collect();
    let chosen = choose(&names, quant).map(str::to_owned);
    let mut entries = match &chosen {
        Some(chosen) => {
            let of_model =
                files.iter().filter(|file| is_same_model(&file.name, chosen)).cloned().collect();
            place((Source::Hub, &root), Some(&repo.name), tree.as_ref(), of_model)
                .models(&mut Headers::default())
        }
        None if quant.is_none() && names.is_empty() => {
            let others =
                files.iter().filter(|file| !has_ending(&file.name, "gguf")).cloned().collect();
            place((Source::Hub, &root), Some(&repo.name), tree.as_ref(), others)
                .models(&mut Headers::default())
        }
        None => Vec::new(),
    };
    match entries.pop() {
        // Another commit than is asked for, which somebody has fetched by itself.
        Some(entry) if !is_known && entry.state != Wholeness::Incomplete => Err(Vec::new()),
        Some(entry) => Ok(entry),
        None => Err(tree.map(|tree| told(&tree, quant)).unwrap_or_default()),
    }
}

/// Says where the model of `source` is to be, though not all of it is there; `None` where nothing of it is.
pub fn place_of(source: &ModelSource, hub: &Path) -> Option<PathBuf> {
    match source {
        ModelSource::File { candidates, .. } => {
            candidates.iter().find(|path| path.symlink_metadata().is_ok()).cloned()
        }
        ModelSource::Hub { repo, quant, revision } => {
            let folder = folder_of(hub, repo);
            let found = in_repo(&folder, quant.as_deref(), revision.as_deref());
            found.map_or_else(|_| folder.is_dir().then_some(folder), |entry| Some(entry.path))
        }
    }
}

fn folder_of(hub: &Path, repo: &str) -> PathBuf {
    hub.join(format!("models--{}", repo.replace('/', "--")))
}

/// The files of a commit as the hub told them; `None` where that is not kept.
pub fn listed_files(folder: &Path, commit: &str) -> Option<Vec<String>> {
    Tree::read(folder, commit).map(|tree| tree.files.into_keys().collect())
}

/// What the hub has told of a model of which nothing has come.
fn told(tree: &Tree, quant: Option<&str>) -> Vec<Gap> {
    let names: Vec<&str> =
        tree.files.keys().map(String::as_str).filter(|name| is_model(name)).collect();
    let Some(chosen) = choose(&names, quant) else { return Vec::new() };
    let parts = tree.files.iter().filter(|(name, _)| is_same_model(name, chosen));
    parts
        .map(|(name, leaf)| {
            Gap::new(name, Fault::Missing, "is not there").of_bytes(Some(leaf.size()))
        })
        .collect()
}

//! The Hugging Face cache on this machine, offline: `models--org--repo/snapshots/COMMIT/…`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use hf_hub::Repo;

use super::{
    gguf::shard_of,
    inventory::listed_files,
    locate::{LocateFault, Located},
};
use crate::spec::profile::ModelSource;

/// The quantisations that are taken when none is named, best first, before any other.
/// Source: `find_best_model` in `common/download.cpp` of llama.cpp.
const USUAL_QUANTS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// Files that belong to a model and are none. Source: `gguf_filename_is_model`, the same file.
const COMPANIONS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
/// How deep files lie in a snapshot: large quantisations have folders of their own.
const DEPTH: u32 = 2;
/// More files than any repository of GGUF files has.
const MAX_FILES: usize = 10_000;

/// Returns the folder of the Hugging Face cache, by the variables that llama.cpp and
/// `huggingface_hub` read, in their order; `None` where nothing says where it could be.
/// Source: `common/hf-cache.cpp` of llama.cpp.
pub fn hub_cache_dir(environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    const PLACES: [(&str, &str); 6] = [
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ];
    PLACES.iter().find_map(|(name, inside)| {
        let folder = PathBuf::from(environment(name).filter(|value| !value.is_empty())?);
        Some(if inside.is_empty() { folder } else { folder.join(inside) })
    })
}

/// Finds the GGUF file of a repository with a quantisation, and the projector beside it.
pub(super) fn find_file(source: &ModelSource, hub: &Path) -> Result<Located, LocateFault> {
    let snapshot = snapshot(source, hub).map_err(|fault| unlisted(source, hub).unwrap_or(fault))?;
    let names = gguf_names(&snapshot);
    let models: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_model(name)).collect();
    let quant = match source {
        ModelSource::Hub { quant, .. } => quant.as_deref(),
        ModelSource::File { .. } => None,
    };
    let chosen = choose(&models, quant).ok_or_else(|| {
        unlisted(source, hub).unwrap_or_else(|| LocateFault::NotInRepo {
            model: source.typed(),
            found: listed(&models),
            folder: snapshot.clone(),
        })
    })?;
    let path = snapshot.join(chosen);
    if !path.exists() {
        // A link whose blob was never finished, or was cleaned away.
        return Err(LocateFault::Dangling(path));
    }
    let mmproj = projector(&names, chosen).map(|name| snapshot.join(name));
    Ok(Located { path, mmproj: mmproj.filter(|path| path.exists()) })
}

/// Says that the hub's list of the revision that is here names no GGUF file of `source`.
pub(super) fn unlisted(source: &ModelSource, hub: &Path) -> Option<LocateFault> {
    let ModelSource::Hub { repo, quant, revision } = source else { return None };
    let folder = hub.join(Repo::model(repo.clone()).folder_name());
    let names = listed_files(&folder, &commit_of(&folder, revision.as_deref())?)?;
    let models: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_model(name)).collect();
    let is_there = choose(&models, quant.as_deref()).is_some();
    let (model, found) = (source.typed(), listed(&models));
    let (place, or) = match quant {
        Some(_) if !is_pinned(source) => (
            "the revision that is here",
            format!(", or fetch a newer revision with `slotd pull {model}`"),
        ),
        Some(_) | None => ("its repository", String::new()),
    };
    (!is_there).then_some(LocateFault::NotListed { model, place, found, or })
}

/// Tells whether a source names a commit: its list says for ever what a pull could bring.
pub(super) fn is_pinned(source: &ModelSource) -> bool {
    matches!(source, ModelSource::Hub { revision: Some(revision), .. } if is_commit(revision))
}

/// Finds the folder that holds the files of a repository's revision.
pub(super) fn snapshot(source: &ModelSource, hub: &Path) -> Result<PathBuf, LocateFault> {
    let absent = || LocateFault::NotInCache { model: source.typed(), hub: hub.to_owned() };
    let ModelSource::Hub { repo, revision, .. } = source else { return Err(absent()) };
    let folder = hub.join(Repo::model(repo.clone()).folder_name());
    let commit = commit_of(&folder, revision.as_deref()).ok_or_else(absent)?;
    let snapshot = folder.join("snapshots").join(commit);
    if snapshot.is_dir() { Ok(snapshot) } else { Err(absent()) }
}

/// Finds the commit that a revision means by what is on the disk: the one that a branch or tag names,
/// else the commit itself, where something of it is there.
pub(super) fn commit_of(folder: &Path, revision: Option<&str>) -> Option<String> {
    let revision = revision.unwrap_or("main");
    // Some tools end the line, so the library's own look-up, which does not expect that, is not used.
    // `huggingface_hub` files `refs/pr/7` below `refs/refs/pr`.
    match fs::read_to_string(folder.join("refs").join(revision)) {
        Ok(commit) => Some(commit.trim().to_owned()),
        Err(_) => is_commit(revision).then(|| revision.to_owned()),
    }
}

/// Tells whether a revision names one commit for ever.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Lists the GGUF files of a snapshot by their paths inside, sorted.
fn gguf_names(snapshot: &Path) -> Vec<String> {
    let mut names = Vec::new();
    collect(snapshot, "", DEPTH, &mut names);
    names.sort();
    names
}

fn collect(folder: &Path, inside: &str, depth: u32, names: &mut Vec<String>) {
    // What cannot be listed is not there: the fault names what was found.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        if has_gguf_ending(&name) && names.len() < MAX_FILES {
            names.push(name);
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), &name, depth - 1, names);
        }
    }
}

pub(super) fn has_gguf_ending(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// Tells whether a file holds a model, and of a split one the first part.
pub(super) fn is_model(name: &str) -> bool {
    let file = file_name(name);
    let lower = file.to_ascii_lowercase();
    has_gguf_ending(&lower)
        && !COMPANIONS.iter().any(|companion| lower.contains(companion))
        && shard_of(file).is_none_or(|shard| shard.part == 1)
}

pub(super) fn is_projector(name: &str) -> bool {
    let file = file_name(name).to_ascii_lowercase();
    has_gguf_ending(&file) && file.contains("mmproj")
}

fn file_name(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, file)| file)
}

/// Returns the file that a repository's name means without a quantisation, out of those that a revision has;
/// `None` where none of them is a GGUF model.
pub fn usual_model<'a>(names: &[&'a str]) -> Option<&'a str> {
    let models: Vec<_> = names.iter().copied().filter(|name| is_model(name)).collect();
    choose(&models, None)
}

pub(super) fn choose<'a>(models: &[&'a str], quant: Option<&str>) -> Option<&'a str> {
    let with = |quant: &str| models.iter().copied().find(|name| has_quant(name, quant));
    match quant {
        Some(quant) => with(quant),
        None => USUAL_QUANTS.into_iter().find_map(with).or_else(|| models.first().copied()),
    }
}

/// Looks for a quantisation as a word of its own: `F16` is not in `model-BF16.gguf`, and `Q4_K` not
/// in `model-Q4_K_M.gguf`.
fn has_quant(name: &str, quant: &str) -> bool {
    let (name, quant) = (name.to_ascii_uppercase(), quant.to_ascii_uppercase());
    name.match_indices(&quant).any(|(start, _)| {
        let (before, rest) = name.split_at(start);
        let after = rest.get(quant.len()..).unwrap_or_default();
        !before.ends_with(|c: char| c.is_ascii_alphanumeric()) && after.starts_with(['.', '-', '/'])
    })
}

/// Chooses among projectors of a model's own folder, else of the snapshot: half precision first,
/// which all backends have.
fn projector<'a>(names: &'a [String], model: &str) -> Option<&'a str> {
    let folder = |name: &str| name.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let projectors = |of: &str| -> Vec<&'a str> {
        let all = names.iter().map(String::as_str);
        all.filter(|name| is_projector(name) && folder(name) == of).collect()
    };
    let beside = projectors(&folder(model));
    let found = if beside.is_empty() { projectors("") } else { beside };
    let half = found.iter().find(|name| has_quant(name, "F16"));
    half.or(found.first()).copied()
}

pub(super) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "no GGUF file".to_owned(),
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests;

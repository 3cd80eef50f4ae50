//! Plain folders of model files: `model_dirs`, LM Studio's, and llama.cpp's cache of earlier years.

use std::path::Path;

use serde::Deserialize;

use super::{
    entry::{Entry, Fault, Gap, Source},
    files::{Seen, list},
    group::{Place, by_folder, has_ending, read_json},
    headers::Headers,
};

/// Endings of downloads that were not finished.
pub(super) const PARTIAL: [&str; 5] =
    ["downloadInProgress", "incomplete", "part", "partial", "download"];

/// What llama.cpp wrote beside a file that it had fetched. Source: `common/download.cpp` of b6000.
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "ggufFile")]
    model: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    rfilename: String,
    size: Option<u64>,
}

/// Finds the models of a folder and all below it.
pub(super) fn scan(
    (source, root): (Source, &Path),
    headers: &mut Headers,
    space: &mut super::Room,
    faults: &mut Vec<String>,
) -> Vec<Entry> {
    let files = list(root, may_enter, faults);
    for file in &files {
        if let Some(stat) = file.stat() {
            space.add(stat, !is_partial(file));
        }
    }
    let with_headers = files
        .iter()
        .filter(|file| ["gguf", "safetensors"].iter().any(|ending| has_ending(&file.name, ending)));
    let ahead: Vec<_> = with_headers
        .filter_map(|file| Some((file.path.as_path(), file.stat().filter(|stat| stat.size > 0)?)))
        .collect();
    headers.read_ahead(&ahead);
    let mut models = Vec::new();
    for (folder, files) in by_folder(root, files) {
        let place = Place {
            source,
            root: &folder,
            repo: None,
            revision: None,
            refs: Vec::new(),
            tree: None,
            files,
        };
        let mut found = place.models(headers);
        if source == Source::LlamaCpp {
            name_by_manifests(&place, &mut found);
        }
        models.extend(found);
    }
    models
}

/// Caches of other layouts have their own readers; hidden folders are nobody's models.
pub(super) fn may_enter(name: &str) -> bool {
    !name.starts_with('.')
        && !["models--", "datasets--", "spaces--"].iter().any(|start| name.starts_with(start))
}

pub(super) fn is_partial(file: &Seen) -> bool {
    PARTIAL.iter().any(|ending| has_ending(&file.name, ending))
}

/// Gives files of llama.cpp's cache the names that they were fetched by, and compares their sizes with
/// what the hub said: `manifest=ORG=REPO=TAG.json` tells of `ORG_REPO_FILE`.
fn name_by_manifests(place: &Place<'_>, models: &mut [Entry]) {
    for file in &place.files {
        let name = file.name.strip_prefix("manifest=").and_then(|name| name.strip_suffix(".json"));
        let Some((org, rest)) = name.and_then(|name| name.split_once('=')) else { continue };
        let Some((repo, tag)) = rest.split_once('=') else { continue };
        let Some(named) = read_json::<Manifest>(&file.path).and_then(|it| it.model) else {
            continue;
        };
        let path = place.root.join(format!("{org}_{repo}_{}", named.rfilename.replace('/', "_")));
        let Some(entry) = models.iter_mut().find(|entry| entry.path == path) else { continue };
        entry.model = format!("{org}/{repo}:{tag}");
        let short = named.size.filter(|size| entry.files == 1 && entry.size_bytes.0 < *size);
        if let (Some(size), true) = (short, entry.gaps.is_empty()) {
            let message = format!("has {} bytes of {size}", entry.size_bytes.0);
            let gap = Gap::new(&named.rfilename, Fault::Cut, message);
            entry.set_gaps(vec![gap.of_bytes(Some(size))]);
        }
    }
}

//! Ollama's store, read only: `manifests/HOST/NAMESPACE/NAME/TAG` and `blobs/sha256-…`.
//!
//! Source: `manifest/` and `types/model/name.go` of Ollama.

use std::path::Path;

use serde::Deserialize;

use super::{
    entry::{Entry, Fault, Format, Gap, Source},
    files::{list, look},
    group::read_json,
    headers::{Headers, Reading},
    kinds,
};

const LAYER: &str = "application/vnd.ollama.image.";

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    config: Option<Layer>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
}

impl Layer {
    /// `model`, `projector`, `adapter`, `template`, …
    fn what(&self) -> &str {
        self.media_type.strip_prefix(LAYER).unwrap_or(&self.media_type)
    }

    /// The name of its file; a digest that could lead elsewhere is none.
    fn file_name(&self) -> Option<String> {
        let (algorithm, hash) = self.digest.split_once(':')?;
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_plain(algorithm) && is_plain(hash)).then(|| format!("{algorithm}-{hash}"))
    }
}

/// Finds Ollama's models.
pub(super) fn scan(
    store: &Path,
    headers: &mut Headers,
    space: &mut super::Room,
    faults: &mut Vec<String>,
) -> Vec<Entry> {
    let mut models = Vec::new();
    for file in list(&store.join("manifests"), |_| true, faults) {
        let Some(name) = model_name(&file.name) else { continue };
        match read_json::<Manifest>(&file.path) {
            Some(manifest) => models.push(model(store, name, &manifest, headers)),
            None => faults.push(format!("`{}` is no manifest of Ollama's", file.path.display())),
        }
    }
    for blob in list(&store.join("blobs"), |_| false, faults) {
        if let Some(stat) = blob.stat() {
            // Which layers are used nobody but Ollama has to know.
            space.add(stat, !blob.name.contains("-partial"));
        }
    }
    models
}

/// `registry.ollama.ai/library/NAME/TAG` is `NAME:TAG`; other hosts and namespaces are said.
fn model_name(path: &str) -> Option<String> {
    let (rest, tag) = path.rsplit_once('/')?;
    let rest = rest.strip_prefix("registry.ollama.ai/").unwrap_or(rest);
    let rest = rest.strip_prefix("library/").unwrap_or(rest);
    Some(format!("{rest}:{tag}"))
}

fn model(store: &Path, name: String, manifest: &Manifest, headers: &mut Headers) -> Entry {
    let mut entry = Entry { format: Format::Gguf, ..Entry::new(name, Source::Ollama, store) };
    let mut gaps = Vec::new();
    for layer in manifest.layers.iter().chain(&manifest.config) {
        if let Err(gap) = take(&mut entry, layer, &store.join("blobs"), headers) {
            gaps.push(gap);
        }
    }
    entry.set_gaps(gaps);
    entry
}

/// Adds a layer to its model.
fn take(entry: &mut Entry, layer: &Layer, blobs: &Path, headers: &mut Headers) -> Result<(), Gap> {
    let gap =
        |fault, words: String| Gap::new(layer.what(), fault, words).of_bytes(Some(layer.size));
    let Some(file) = layer.file_name() else {
        return Err(gap(Fault::Damaged, format!("has no digest but `{}`", layer.digest)));
    };
    let path = blobs.join(&file);
    let Ok(Some(stat)) = look(&path) else {
        let partial = look(&blobs.join(format!("{file}-partial")));
        let is_begun = matches!(partial, Ok(Some(_)));
        let fault = if is_begun { Fault::Partial } else { Fault::Missing };
        return Err(gap(fault, format!("is not there: `{file}`")));
    };
    entry.files += 1;
    entry.parts.push(path.clone());
    entry.size_bytes.0 = entry.size_bytes.0.saturating_add(stat.size);
    if stat.size != layer.size {
        let fault = if stat.size < layer.size { Fault::Cut } else { Fault::Damaged };
        return Err(gap(fault, format!("has {} bytes of {}: `{file}`", stat.size, layer.size)));
    }
    if layer.what() != "model" {
        return Ok(());
    }
    let reading = headers.read(&path, &stat);
    entry.path = path;
    match reading {
        Reading::Whole(facts) => {
            let pooling = facts.pooling;
            let kind = facts.kind.as_deref();
            entry.kind = kinds::of_gguf(kind, &facts.architecture, pooling, &entry.model);
            entry.describe(&[facts]);
            Ok(())
        }
        broken @ Reading::Broken(..) => broken.gap(&file).map_or(Ok(()), Err),
    }
}

//! Models that profiles name by a path outside every store.

use std::path::Path;

use super::{
    Identified, Room,
    entry::{Entry, Fault, Gap, Source},
    files::{list, look},
    headers::Headers,
    lacking::beside,
    stores::Stores,
};
use crate::spec::Bytes;

/// Adds what slots serve and no store has shown.
pub(super) fn add(
    models: &mut Vec<Entry>,
    users: &[Identified<'_>],
    stores: &Stores,
    (headers, space): (&mut Headers, &mut Room),
) {
    for user in users {
        let path = &user.0.path;
        // What lies in a cache and is no model is not one because a slot names it.
        let is_cached = stores.0.iter().any(|(source, root)| {
            matches!(source, Source::Hub | Source::Ollama) && path.starts_with(root)
        });
        let is_shown = models.iter().any(|model| model.is_used_by(user));
        if !is_cached && !is_shown && path.symlink_metadata().is_ok() {
            models.push(entry(path, headers, space));
        }
    }
}

fn entry(path: &Path, headers: &mut Headers, space: &mut Room) -> Entry {
    let name = path.display().to_string();
    let found = beside((Source::Profile, path), headers);
    let found = found.unwrap_or_else(|| unknown(&name, path));
    let stats = found.parts.iter().filter_map(|part| look(part).ok().flatten());
    stats.for_each(|stat| space.add(&stat, true));
    Entry { model: name, path: path.to_owned(), ..found }
}

/// A file or folder of which nothing is known but what it takes.
fn unknown(name: &str, path: &Path) -> Entry {
    let inside = list(path, |_| false, &mut Vec::new()).into_iter().map(|file| file.path);
    let parts = if path.is_dir() { inside.collect() } else { vec![path.to_owned()] };
    let stats: Vec<_> = parts.iter().filter_map(|part| look(part).ok().flatten()).collect();
    let bytes = stats.iter().fold(0_u64, |sum, stat| sum.saturating_add(stat.size));
    let size_bytes = Bytes(bytes);
    let bare = Entry::new(name.to_owned(), Source::Profile, path);
    let mut entry = Entry { size_bytes, files: stats.len(), parts, ..bare };
    if !path.is_dir() && !path.is_file() {
        let message = "is no regular file".to_owned();
        entry.set_gaps(vec![Gap::new(name, Fault::Damaged, message)]);
    } else if stats.is_empty() {
        let message = "has no files in it".to_owned();
        entry.set_gaps(vec![Gap::new(name, Fault::Missing, message)]);
    }
    entry
}

//! What models are on this machine, what each is for, and whether all of it is there.
//!
//! Owns the look at the stores. It reads folders and the beginnings of files, never weights, asks
//! nothing of a network, and changes nothing but its own memory of headers ([`Headers`]). Nothing that a
//! disk holds can break it: what cannot be read is one line of the answer.
//!
//! ```text
//! stores   which folders          files    what the disk has, loops and links seen through
//! hub, ollama, folders            group    which files make a model; what is missing
//! headers  what files say         kinds    what that means
//! ```

mod busy;
mod clean;
mod empty;
mod entry;
mod files;
mod folders;
mod group;
mod hands;
mod headers;
mod hub;
mod kinds;
mod lacking;
mod ollama;
mod outside;
mod stores;
mod tree;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use self::files::Stat;
pub use self::{
    clean::{
        Plan, Removal, Revisions, Rubbish, USUAL_AGE, Wish, freeable, plan as clean_plan, remove,
    },
    entry::{Entry, Fault, Format, Gap, Inventory, Kind, Source, Store, Wholeness},
    headers::Headers,
    lacking::{Lacking, lacking, listed_files, place_of},
    stores::Stores,
    verify::Hashes,
};
use crate::spec::{Bytes, SlotName};

/// A slot that serves a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// The slot.
    pub slot: SlotName,
    /// The model's file or folder.
    pub path: PathBuf,
    /// Whether an engine has it in memory.
    pub is_loaded: bool,
}

/// One with the device and inode of the model, where that is there.
type Identified<'a> = (&'a User, Option<(u64, u64)>);

/// Files that take room, each once.
#[derive(Debug, Default)]
struct Room {
    /// Size and whether it is used, by device and inode.
    files: BTreeMap<(u64, u64), (u64, bool)>,
}

impl Room {
    fn add(&mut self, stat: &Stat, is_used: bool) {
        let (_, used) = self.files.entry(stat.identity).or_insert((stat.size, false));
        *used |= is_used;
    }

    /// Takes in another's files: those that either uses are used.
    fn take_in(&mut self, other: Self) {
        for (identity, (size, is_used)) in other.files {
            let (_, used) = self.files.entry(identity).or_insert((size, false));
            *used |= is_used;
        }
    }

    fn sum(&self, wanted: impl Fn(bool) -> bool) -> Bytes {
        let sizes = self.files.values().filter(|(_, used)| wanted(*used)).map(|(size, _)| *size);
        Bytes(sizes.fold(0, u64::saturating_add))
    }
}

/// Looks at every store. Blocks on disks; a machine with thousands of files takes some tens of
/// milliseconds once their headers are known.
pub fn scan(stores: &Stores, headers: &mut Headers, users: &[User]) -> Inventory {
    let mut inventory = Inventory::default();
    let mut space = Room::default();
    // What one store has shown is not shown again as another's.
    let mut shown: BTreeSet<(Option<String>, (u64, u64))> = BTreeSet::new();
    for (source, path) in &stores.0 {
        let faults = &mut inventory.faults;
        let found = match source {
            Source::Hub => hub::scan(path, headers, &mut space, faults),
            Source::Ollama => ollama::scan(path, headers, &mut space, faults),
            // No store is one of a profile's.
            Source::Profile => Vec::new(),
            Source::Folder | Source::LmStudio | Source::LlamaCpp => {
                folders::scan((*source, path), headers, &mut space, faults)
            }
        };
        // Of one store every name is shown, those that share a file too.
        let mut own = Vec::new();
        let is_new = |entry: &Entry| {
            let Some(identity) = identity(&entry.path) else { return true };
            own.push((entry.revision.clone(), identity));
            // Two revisions of one repository may be one file.
            !shown.contains(&(entry.revision.clone(), identity))
        };
        let new: Vec<Entry> = found.into_iter().filter(is_new).collect();
        shown.extend(own);
        if path.is_dir() {
            let store = Store { source: *source, path: path.clone(), models: new.len() };
            inventory.stores.push(store);
        }
        inventory.models.extend(new);
    }
    let users: Vec<_> = users.iter().map(|user| (user, identity(&user.path))).collect();
    outside::add(&mut inventory.models, &users, stores, (headers, &mut space));
    for entry in inventory.models.iter_mut().filter(|_| !users.is_empty()) {
        entry.find_users(&users);
    }
    inventory.models.sort_by(|one, other| {
        (&one.model, one.source, &one.path).cmp(&(&other.model, other.source, &other.path))
    });
    inventory.size_bytes = space.sum(|_| true);
    inventory.unused_bytes = space.sum(|used| !used);
    inventory
}

impl Entry {
    fn find_users(&mut self, users: &[Identified<'_>]) {
        for used in users {
            if self.is_used_by(used) {
                self.slots.push(used.0.slot.clone());
                self.is_loaded |= used.0.is_loaded;
            }
        }
    }

    fn is_used_by(&self, (user, file): &Identified<'_>) -> bool {
        self.parts.contains(&user.path)
            || user.path == self.path
            || (file.is_some() && identity(&self.path) == *file)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    Some(identity_of(&std::fs::metadata(path).ok()?))
}

fn identity_of(found: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests;

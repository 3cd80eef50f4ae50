//! The profiles in force: what worked is kept while its file is faulty.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use super::{fault::Fault, load::Loaded, names::Sharing};
use crate::spec::{SlotName, profile::Profile};

/// Holds the profiles in force and remembers which faults were reported.
#[derive(Debug, Default)]
pub struct Keeper {
    profiles: BTreeMap<SlotName, Arc<Profile>>,
    faults: Vec<Fault>,
    contents: BTreeMap<PathBuf, u64>,
}

impl Keeper {
    /// Takes what is on disk now, by [`merge`]'s rules, and returns the faults to report: those of a
    /// file whose content or whose faults differ from the last time. One bad edit is reported once,
    /// however often the directory is read.
    pub fn apply(&mut self, loaded: Loaded) -> Vec<Fault> {
        self.profiles = merge(&self.profiles, &loaded);
        let news = loaded.faults.iter().filter(|fault| self.is_news(fault, &loaded)).cloned();
        let news = news.collect();
        self.faults = loaded.faults;
        self.contents = loaded.contents;
        news
    }

    /// Returns the profiles in force.
    pub fn profiles(&self) -> &BTreeMap<SlotName, Arc<Profile>> {
        &self.profiles
    }

    /// Returns the faults that stand, reported or not.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn is_news(&self, fault: &Fault, loaded: &Loaded) -> bool {
        let is_same_content = fault
            .file
            .as_ref()
            .is_none_or(|file| self.contents.get(file) == loaded.contents.get(file));
        !is_same_content || !self.faults.contains(fault)
    }
}

/// Says which profiles are in force after `loaded` was found on disk, where `previous` were before:
///
/// 1. A file without faults gives its profile. Where it says what it said, the `Arc` is the same.
/// 2. A file with faults keeps the profile that worked; so does a directory that cannot be read.
/// 3. A file that is gone takes its profile with it.
/// 4. A name leads to one slot, unless it is a route of all that have it: a kept profile gives up a
///    name that a new one has taken.
pub fn merge(
    previous: &BTreeMap<SlotName, Arc<Profile>>,
    loaded: &Loaded,
) -> BTreeMap<SlotName, Arc<Profile>> {
    let mut merged: BTreeMap<_, _> = loaded
        .profiles
        .iter()
        .map(|(slot, profile)| {
            let same = previous.get(slot).filter(|old| *old == profile);
            (slot.clone(), Arc::clone(same.unwrap_or(profile))) // (1)
        })
        .collect();
    let kept: Vec<_> = previous
        .iter()
        .filter(|(slot, profile)| !merged.contains_key(*slot) && is_kept(profile, &loaded.faults))
        .collect();
    let names = |of: fn(&Profile) -> &Vec<String>| -> BTreeSet<String> {
        merged.values().flat_map(|profile| of(profile).iter().cloned()).collect()
    };
    let (aliases, routes) = (names(|profile| &profile.aliases), names(|profile| &profile.routes));
    merged.extend(kept.into_iter().map(|(slot, profile)| {
        let is_taken = |name: &str, sharing| {
            aliases.contains(name) || (sharing == Sharing::Alone && routes.contains(name))
        };
        (slot.clone(), without(profile, is_taken))
    }));
    let slots: BTreeSet<SlotName> = merged.keys().cloned().collect();
    for profile in merged.values_mut() {
        *profile = without(profile, |name, _| slots.contains(name));
    }
    merged
}

/// Tells whether a fault stands between a profile that worked and its file. (2) (3)
fn is_kept(profile: &Profile, faults: &[Fault]) -> bool {
    let slot = profile.slot.as_str();
    faults.iter().filter_map(|fault| fault.file.as_deref()).any(|file| {
        let is_its_file = file
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".toml"))
            == Some(slot);
        is_its_file || profile.source.parent() == Some(file)
    })
}

/// Takes names out of a profile. (4)
fn without(profile: &Arc<Profile>, is_taken: impl Fn(&str, Sharing) -> bool) -> Arc<Profile> {
    let is_free = |name: &String, sharing| !is_taken(name, sharing);
    let (alias, route) = (Sharing::Alone, Sharing::Shared);
    if profile.aliases.iter().all(|name| is_free(name, alias))
        && profile.routes.iter().all(|name| is_free(name, route))
    {
        return Arc::clone(profile);
    }
    let mut profile = Profile::clone(profile);
    profile.aliases.retain(|name| is_free(name, alias));
    profile.routes.retain(|name| is_free(name, route));
    Arc::new(profile)
}

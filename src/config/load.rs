//! Reads whole directories of profiles, and finds what files say against each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Context,
    daemon::{self, FILE_NAME},
    disk,
    fault::Fault,
    names::{Claim, Sharing},
    profile, rules,
};
use crate::spec::{NameFault, SlotName, profile::Profile, rule::Rule};

/// What was found on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The profile of every file without a fault.
    pub profiles: BTreeMap<SlotName, Arc<Profile>>,
    /// Every fault, sorted by file and place. A file with one contributes no profile.
    pub faults: Vec<Fault>,
    /// A digest of each file's content: equal for equal bytes, and of no other meaning.
    pub contents: BTreeMap<PathBuf, u64>,
    /// The rules; `None` where their file has a fault.
    pub rules: Option<Vec<Rule>>,
}

/// Reads the profiles of `directories`: each `NAME.toml` directly inside describes the slot `NAME`.
/// Blocks on the disk.
///
/// Two files that claim one slot name, and two that claim one alias, are both at fault: which of the
/// two is meant only a person can say. An alias that is another slot's name is the alias's fault.
pub fn load(directories: &[PathBuf], context: &Context) -> Loaded {
    let mut survey = Survey::default();
    for directory in directories {
        survey.add_directory(directory, context);
    }
    survey.rules.clone_from(&context.rules);
    survey.finish()
}

/// Returns the slots that have a file in `directories`, be it with faults; `None` where one of them cannot be
/// read. Blocks on the disk.
pub fn slots_on_disk(directories: &[PathBuf]) -> Option<BTreeSet<SlotName>> {
    let mut slots = BTreeSet::new();
    for directory in directories {
        let files = disk::list(directory).ok()?;
        slots.extend(files.iter().filter_map(|file| slot_of(file).ok()));
    }
    Some(slots)
}

/// Reads files and directories as [`load()`] does, for a check by a person: a file is named one by
/// one, a directory stands for the profiles in it, with the rules beside it. A file named `slotd.toml` is
/// read as the daemon's own, one named `rules.toml` as rules.
pub fn validate(paths: &[PathBuf], context: &Context) -> Loaded {
    let mut survey = Survey::default();
    for path in paths {
        // A folder that is not there is told as one: no profile has a name without its ending.
        if path.is_dir() || (!path.exists() && path.extension().is_none()) {
            survey.add_directory(path, context);
            let is_beside = |rules: &PathBuf| rules.parent() == path.parent();
            if let Some(rules) = context.rules.clone().filter(is_beside) {
                survey.rules = Some(rules);
            }
        } else if path.file_name().is_some_and(|name| name == rules::FILE_NAME) {
            survey.rules = Some(path.clone());
            survey.name_slots_beside(path);
        } else if path.file_name().is_some_and(|name| name == FILE_NAME) {
            survey.add_settings(path, context);
        } else {
            survey.add_file(path, context);
        }
    }
    survey.finish()
}

/// The files seen so far.
#[derive(Debug, Default)]
struct Survey {
    /// Same file by another way in: looked at once.
    seen: BTreeSet<PathBuf>,
    files: Vec<Seen>,
    faults: Vec<Fault>,
    contents: BTreeMap<PathBuf, u64>,
    /// Where rules are, if they are to be read.
    rules: Option<PathBuf>,
    /// Slots that rules may name, besides those of `files`.
    named: BTreeSet<SlotName>,
}

/// One file that has a slot's name.
#[derive(Debug)]
struct Seen {
    slot: SlotName,
    file: PathBuf,
    profile: Option<Profile>,
    claims: Vec<Claim>,
}

impl Survey {
    fn add_directory(&mut self, directory: &Path, context: &Context) {
        match disk::list(directory) {
            Ok(files) => files.iter().for_each(|file| self.add_file(file, context)),
            Err(fault) => self.faults.push(*fault),
        }
    }

    fn add_file(&mut self, file: &Path, context: &Context) {
        let canonical = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        if !self.seen.insert(canonical) {
            return;
        }
        let found = disk::read(file);
        self.contents.insert(file.to_owned(), found.digest);
        let slot = match slot_of(file) {
            Ok(slot) => slot,
            Err(fault) => return self.faults.push(*fault),
        };
        let (profile, claims) = match found.text {
            Ok(text) => {
                let mut reading = profile::read(file, &slot, &text, context);
                self.faults.append(&mut reading.faults);
                (reading.profile, reading.claims)
            }
            Err(fault) => {
                self.faults.push(*fault);
                (None, Vec::new())
            }
        };
        self.files.push(Seen { slot, file: file.to_owned(), profile, claims });
    }

    fn add_settings(&mut self, file: &Path, context: &Context) {
        let found = disk::read(file);
        self.contents.insert(file.to_owned(), found.digest);
        match found.text {
            Ok(text) => self.faults.extend(daemon::check(file, &text, context.home.as_deref())),
            Err(fault) => self.faults.push(*fault),
        }
    }

    /// Takes the names of slots from the folder of profiles beside a file of rules.
    fn name_slots_beside(&mut self, rules: &Path) {
        let folder = rules.parent().unwrap_or(Path::new("")).join("profiles");
        let files = disk::list(&folder).unwrap_or_default();
        self.named.extend(files.iter().filter_map(|file| slot_of(file).ok()));
    }

    /// Reads the rules; none where there is no such file.
    fn read_rules(&mut self) -> Option<Vec<Rule>> {
        let Some(file) = self.rules.take().filter(|file| file.exists()) else {
            return Some(Vec::new());
        };
        let found = disk::read(&file);
        self.contents.insert(file.clone(), found.digest);
        let mut slots = std::mem::take(&mut self.named);
        slots.extend(self.files.iter().map(|seen| seen.slot.clone()));
        let read = found.text.map_err(|fault| vec![*fault]);
        match read.and_then(|text| rules::read(&file, &text, &slots)) {
            Ok(rules) => Some(rules),
            Err(faults) => {
                self.faults.extend(faults);
                None
            }
        }
    }

    fn finish(mut self) -> Loaded {
        let rules = self.read_rules();
        self.refuse_same_slot();
        self.refuse_same_name();
        let refused: BTreeSet<&Path> =
            self.faults.iter().filter_map(|fault| fault.file.as_deref()).collect();
        let profiles = self
            .files
            .into_iter()
            .filter(|seen| !refused.contains(seen.file.as_path()))
            .filter_map(|seen| seen.profile.map(|profile| (seen.slot, Arc::new(profile))))
            .collect();
        self.faults.sort();
        Loaded { profiles, faults: self.faults, contents: self.contents, rules }
    }

    fn refuse_same_slot(&mut self) {
        for seen in &self.files {
            for other in self.files.iter().filter(|other| other.slot == seen.slot) {
                if other.file != seen.file {
                    let message = format!(
                        "the slot `{}` has a second profile, {}",
                        seen.slot,
                        other.file.display()
                    );
                    let hint = "keep one of the two, or rename one: neither is used";
                    self.faults.push(Fault::of_file(&seen.file, message).with_hint(hint));
                }
            }
        }
    }

    fn refuse_same_name(&mut self) {
        let mut holders: BTreeMap<&str, Vec<(&Seen, &Claim)>> = BTreeMap::new();
        for seen in &self.files {
            for claim in &seen.claims {
                holders.entry(&claim.name).or_default().push((seen, claim));
            }
        }
        let mut faults = Vec::new();
        for (name, holders) in holders {
            for holder in &holders {
                let slot = self.files.iter().find(|other| other.slot.as_str() == name);
                let message = match (slot, twin(holder, &holders)) {
                    (Some(slot), _) => {
                        format!("`{name}` is the name of the slot of {}", slot.file.display())
                    }
                    (None, Some(twin)) => format!("`{name}` is {twin}"),
                    (None, None) => continue,
                };
                let fault = Fault { message, ..holder.1.place.clone() };
                let hint = "a name leads to one slot: take it out of one file, or make it one of \
                            `routes` in each";
                faults.push(fault.with_hint(hint));
            }
        }
        self.faults.append(&mut faults);
    }
}

/// Says who else claims a name that not all have as a route.
fn twin((seen, claim): &(&Seen, &Claim), holders: &[(&Seen, &Claim)]) -> Option<String> {
    let (other, theirs) = holders.iter().find(|(other, theirs)| {
        let is_shared = [claim, theirs].iter().all(|c| c.sharing == Sharing::Shared);
        other.slot != seen.slot && !is_shared
    })?;
    let article = if theirs.sharing == Sharing::Alone { "an" } else { "a" };
    let too = if theirs.sharing == claim.sharing { " too" } else { "" };
    Some(format!("{article} {} in {}{too}", theirs.sharing.noun(), other.file.display()))
}

/// Reads the slot's name from the name of its file.
fn slot_of(file: &Path) -> Result<SlotName, Box<Fault>> {
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(".toml") else {
        let hint = "rename it: `NAME.toml` describes the slot `NAME`";
        return Err(Box::new(Fault::of_file(file, "is not named `NAME.toml`").with_hint(hint)));
    };
    if name == FILE_NAME {
        let hint = format!("rename it; the daemon's own `{FILE_NAME}` stands outside");
        let message = "is the name of the daemon's own file, not of a profile";
        return Err(Box::new(Fault::of_file(file, message).with_hint(hint)));
    }
    let named = stem.parse().and_then(|slot: SlotName| match slot.stands_in_for() {
        // That name is the daemon's own to give.
        Some(_) => Err(NameFault::BadCharacter('~')),
        None => Ok(slot),
    });
    named.map_err(|fault: NameFault| {
        let hint = format!("rename the file, to `{}.toml` say", fitting(stem));
        let message = format!("the file's name is the slot's name: {fault}");
        Box::new(Fault::of_file(file, message).with_hint(hint))
    })
}

/// Makes a slot name out of a text that is none.
fn fitting(stem: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fitted: String =
        stem.chars().map(|c| if is_allowed(c) { c } else { '-' }).take(40).collect();
    match fitted.trim_start_matches(['.', '_', '-']) {
        "" => "slot".to_owned(),
        fitted => fitted.to_owned(),
    }
}

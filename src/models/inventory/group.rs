//! Which files of a folder make a model, and whether they are all there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    entry::{Entry, Fault, Format, Gap, Kind, Source},
    files::{Presence, Seen},
    headers::{Facts, Headers, Reading},
    kinds::{self, Config},
    tree::Tree,
};
use crate::{models::safetensors, spec::Bytes};

/// A file name has five digits for its part; no model has so many.
const MAX_PARTS: u64 = 1024;
const MAX_CONFIG: u64 = 4 << 20;
const MAX_TEXT: u64 = 4 << 10;
const INDEX: &str = ".index.json";
/// Endings of files that a model cannot be used without, besides its weights.
const NEEDED: [&str; 4] = ["json", "txt", "model", "jinja"];

/// Files of one folder, and what is known of it besides.
pub(super) struct Place<'a> {
    pub(super) source: Source,
    /// The folder itself.
    pub(super) root: &'a Path,
    /// In the Hugging Face cache, the repository.
    pub(super) repo: Option<&'a str>,
    pub(super) revision: Option<&'a str>,
    pub(super) refs: Vec<String>,
    /// What the hub said of the commit.
    pub(super) tree: Option<&'a Tree>,
    /// By its sorted names.
    pub(super) files: Vec<Seen>,
}

/// A part of a model by its name: what stands before the numbers, which part, of how many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Numbered<'a> {
    pub(super) stem: &'a str,
    pub(super) part: u64,
    pub(super) count: u64,
    pub(super) ending: &'a str,
}

impl<'a> Numbered<'a> {
    /// Takes `NAME-00001-of-00003.ENDING` apart.
    pub(super) fn of(name: &'a str) -> Option<Self> {
        let (rest, ending) = name.rsplit_once('.')?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let number = |text: &str| {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { text.parse::<u64>().ok() } else { None }
        };
        let (part, count) = (number(part)?, number(count)?);
        (1..=count).contains(&part).then_some(Self { stem, part, count, ending })
    }

    fn name(&self, part: u64) -> String {
        format!("{}-{part:05}-of-{:05}.{}", self.stem, self.count, self.ending)
    }
}

impl Place<'_> {
    /// Finds the models.
    pub(super) fn models(&self, headers: &mut Headers) -> Vec<Entry> {
        let mut models = Vec::new();
        for names in self.gguf_models() {
            models.extend(self.gguf(&names, headers));
        }
        models.extend(self.weights(headers));
        for file in &self.files {
            models.extend(self.whisper(file, headers));
        }
        models
    }

    fn find(&self, name: &str) -> Option<&Seen> {
        let place = self.files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()?;
        self.files.get(place)
    }

    fn expected(&self, name: &str) -> Option<u64> {
        self.tree?.size_of(name)
    }

    /// The names of each model's files, the first part first.
    fn gguf_models(&self) -> Vec<Vec<String>> {
        let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in self.files.iter().filter(|file| has_ending(&file.name, "gguf")) {
            match Numbered::of(&file.name) {
                Some(numbered) if numbered.count <= MAX_PARTS => {
                    let names = || (1..=numbered.count).map(|part| numbered.name(part)).collect();
                    models.entry(numbered.name(1)).or_insert_with(names);
                }
                Some(_) | None => drop(models.insert(file.name.clone(), vec![file.name.clone()])),
            }
        }
        models.into_values().collect()
    }

    fn gguf(&self, names: &[String], headers: &mut Headers) -> Option<Entry> {
        let first = names.first()?;
        let mut gaps = Vec::new();
        let mut read = Vec::new();
        for name in names {
            match self.reading(name, headers) {
                Ok(Reading::Whole(facts)) => read.push(facts),
                Ok(broken) => gaps.extend(broken.gap(name)),
                Err(gap) => gaps.push(gap),
            }
        }
        let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
        if let Some(facts) = read.iter().find(|facts| facts.parts.max(1) != count) {
            let message = match count {
                1 => "is a part of a split model, and its name does not say which".to_owned(),
                _ => format!("says that it is split into {} files, its name {count}", facts.parts),
            };
            gaps.push(Gap::new(first, Fault::Damaged, message));
        }
        let facts = read.first().cloned().unwrap_or_default();
        let kind = kinds::of_gguf(facts.kind.as_deref(), &facts.architecture, facts.pooling, {
            first.rsplit_once('/').map_or(first, |(_, name)| name)
        });
        let mut entry = self.entry(Format::Gguf, kind, names);
        entry.model = self.gguf_name(first, facts.quantisation.as_deref());
        entry.path = self.root.join(first);
        entry.describe(&read);
        entry.set_gaps(gaps);
        Some(entry)
    }

    /// `org/repo:QUANT` where that finds the file again, else the path.
    fn gguf_name(&self, name: &str, quantisation: Option<&str>) -> String {
        let Some(repo) = self.repo else { return self.root.join(name).display().to_string() };
        let all = self.files.iter().map(|file| file.name.as_str());
        let models: Vec<&str> = all.filter(|name| super::hub::is_model(name)).collect();
        let finds = |quant: &&str| super::hub::choose(&models, Some(quant)) == Some(name);
        if let Some(quant) = quantisation.filter(finds) {
            return format!("{repo}:{quant}");
        }
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let stem = Numbered::of(name).map_or(stem, |numbered| numbered.stem);
        let last = stem.rsplit(['-', '.', '/']).next().filter(|word| !word.is_empty());
        if let Some(quant) = last.filter(finds) {
            return format!("{repo}:{quant}");
        }
        match models.as_slice() {
            [only] if *only == name => repo.to_owned(),
            _ => format!("{repo}/{name}"),
        }
    }

    /// What a file's header says, or what is wrong before that.
    fn reading(&self, name: &str, headers: &mut Headers) -> Result<Reading, Gap> {
        let stat = self.presence(name)?;
        Ok(headers.read(stat.0, stat.1))
    }

    /// Where a file is, or why it cannot be used.
    fn presence(&self, name: &str) -> Result<(&Path, &super::files::Stat), Gap> {
        let expected = self.expected(name);
        let gap = |fault, message: String| Gap::new(name, fault, message).of_bytes(expected);
        let Some(file) = self.find(name) else {
            return Err(gap(Fault::Missing, "is not there".to_owned()));
        };
        let stat = match &file.presence {
            Presence::There(stat) => stat,
            Presence::Dangling => {
                return Err(gap(Fault::Dangling, "is a link to a file that is gone".to_owned()));
            }
            Presence::Unreadable(why) => {
                return Err(Gap::new(name, Fault::Unreadable, format!("cannot be read: {why}")));
            }
            Presence::Awaited { have: None } => {
                return Err(gap(Fault::Missing, "is not there".to_owned()));
            }
            Presence::Awaited { have: Some(have) } => {
                let of = expected.map(|all| format!(" of {}", Bytes(all))).unwrap_or_default();
                let message = format!("is not downloaded to its end: {}{of}", Bytes(*have));
                let left = expected.map(|all| all.saturating_sub(*have));
                return Err(Gap::new(name, Fault::Partial, message).of_bytes(left));
            }
        };
        match expected {
            Some(0) => {}
            _ if stat.size == 0 => return Err(gap(Fault::Empty, "is empty".to_owned())),
            Some(all) if stat.size < all => {
                let message = format!("has {} bytes of {all}", stat.size);
                return Err(gap(Fault::Cut, message));
            }
            Some(all) if stat.size > all => {
                let message = format!("has {} bytes, and should have {all}", stat.size);
                return Err(gap(Fault::Damaged, message));
            }
            Some(_) | None => {}
        }
        Ok((&file.path, stat))
    }

    /// A model in safetensors or `PyTorch` files: all of the folder is one.
    fn weights(&self, headers: &mut Headers) -> Option<Entry> {
        let config = self.config();
        let mut gaps = Vec::new();
        let (format, names) = [Format::Safetensors, Format::Pytorch]
            .into_iter()
            .map(|format| (format, self.parts(format, &mut gaps)))
            .find(|(_, names)| !names.is_empty())
            .or_else(|| self.no_weights(config.as_ref()))?;
        let mut read = Vec::new();
        for name in &names {
            match self.reading(name, headers) {
                Ok(Reading::Whole(facts)) => read.push(facts),
                Ok(broken) => gaps.extend(broken.gap(name)),
                Err(gap) => gaps.push(gap),
            }
        }
        if names.is_empty() {
            gaps.push(Gap::new(".", Fault::Missing, "has no file with weights"));
        }
        let beside: BTreeSet<&str> = self
            .needed()
            .into_iter()
            .filter(|name| !names.iter().any(|part| part == name))
            .collect();
        gaps.extend(beside.iter().filter_map(|name| self.presence(name).err()));
        let of_sentences = self.find("modules.json").is_some();
        let kind = config.as_ref().map_or(Kind::Other, |config| config.kind(of_sentences));
        let all: Vec<String> = self
            .files
            .iter()
            .map(|file| file.name.clone())
            .filter(|name| !has_ending(name, "gguf"))
            .collect();
        let mut entry = self.entry(format, kind, &all);
        entry.describe(&read);
        if let Some(config) = &config {
            entry.architecture = config.architecture();
            entry.context_length = config.context_length();
            entry.quantisation = config.quantisation().or(entry.quantisation);
        }
        // A missing part and the name that is not beside the others are told once.
        gaps.sort_by(|one, other| one.file.cmp(&other.file));
        gaps.dedup_by(|one, other| one.file == other.file);
        entry.set_gaps(gaps);
        Some(entry)
    }

    /// The files of a format that are there or have to be: by an index, by their numbers, by themselves.
    fn parts(&self, format: Format, gaps: &mut Vec<Gap>) -> Vec<String> {
        let mut names = BTreeSet::new();
        for file in &self.files {
            let name = file.name.strip_suffix(INDEX).unwrap_or(&file.name);
            if !is_part(name, format) {
                continue;
            }
            if name.len() < file.name.len() {
                match self.index(file) {
                    Ok(parts) => names.extend(parts),
                    Err(gap) => gaps.push(gap),
                }
                continue;
            }
            names.insert(file.name.clone());
            let numbered = Numbered::of(&file.name).filter(|part| part.count <= MAX_PARTS);
            if let Some(numbered) = numbered {
                names.extend((1..=numbered.count).map(|part| numbered.name(part)));
            }
        }
        names.into_iter().collect()
    }

    /// The files that an index names.
    fn index(&self, file: &Seen) -> Result<Vec<String>, Gap> {
        let (path, _) = self.presence(&file.name)?;
        let damaged = |words: String| Gap::new(&file.name, Fault::Damaged, words);
        let index = safetensors::read_index(path).map_err(|fault| {
            if let safetensors::HeaderFault::Io(error) = fault {
                return Gap::new(&file.name, Fault::Unreadable, format!("cannot be read: {error}"));
            }
            damaged(fault.to_string())
        })?;
        let folder = file.folder();
        let named = index.parts.keys().map(|name| {
            let name = name.display();
            if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
        });
        Ok(named.collect())
    }

    /// A folder that stands for a model and has no weights: what the hub says should be there.
    fn no_weights(&self, config: Option<&Config>) -> Option<(Format, Vec<String>)> {
        let is_other = self.files.iter().any(|file| {
            let name = file.file_name();
            has_ending(name, "gguf")
                || has_ending(name, "onnx")
                || has_ending(name, "npz")
                || is_whisper(name)
        });
        if is_other || !config?.is_of_model() {
            return None;
        }
        let named = self.tree.into_iter().flat_map(|tree| tree.files.keys());
        let of = |ending: &str| {
            named.clone().filter(|name| has_ending(name, ending)).cloned().collect::<Vec<_>>()
        };
        let safe = of("safetensors");
        if safe.is_empty() {
            Some((Format::Other, Vec::new()))
        } else {
            Some((Format::Safetensors, safe))
        }
    }

    /// The small files without which weights are of no use, where the hub has told of them.
    fn needed(&self) -> Vec<&str> {
        let named = self.tree.into_iter().flat_map(|tree| tree.files.keys());
        let is_needed = |name: &&String| {
            !name.contains('/') && NEEDED.iter().any(|ending| has_ending(name, ending))
        };
        let torch = |name: &str| name.starts_with("pytorch_model") || name.starts_with("tf_model");
        named.filter(is_needed).map(String::as_str).filter(|name| !torch(name)).collect()
    }

    fn config(&self) -> Option<Config> {
        let usual = ["adapter_config.json", "config.json", "model_index.json"];
        usual.into_iter().find_map(|name| {
            let path = self.find(name).filter(|file| file.stat().is_some())?;
            read_json(&path.path)
        })
    }

    /// Whisper.cpp's own format, one file a model.
    fn whisper(&self, file: &Seen, headers: &mut Headers) -> Option<Entry> {
        if !is_whisper(file.file_name()) {
            return None;
        }
        let names = [file.name.clone()];
        let reading = self.reading(&file.name, headers);
        let mut entry = self.entry(Format::Ggml, Kind::Whisper, &names);
        entry.path = self.root.join(&file.name);
        let name = &file.name;
        entry.model = self
            .repo
            .map_or_else(|| entry.path.display().to_string(), |repo| format!("{repo}/{name}"));
        match reading {
            Ok(Reading::Whole(facts)) if facts.architecture.is_empty() => {
                let message = "is not a file of whisper.cpp; download it again";
                entry.set_gaps(vec![Gap::new(name, Fault::Damaged, message)]);
            }
            Ok(reading) => entry.set_gaps(reading.gap(name).into_iter().collect()),
            Err(gap) => entry.set_gaps(vec![gap]),
        }
        entry.architecture = Some("whisper".to_owned());
        Some(entry)
    }

    pub(super) fn entry(&self, format: Format, kind: Kind, names: &[String]) -> Entry {
        let stats = names.iter().filter_map(|name| self.find(name)?.stat());
        let mut counted = BTreeSet::new();
        let mut size = 0_u64;
        for stat in stats {
            if counted.insert(stat.identity) {
                size = size.saturating_add(stat.size);
            }
        }
        let model = self.repo.map_or_else(|| self.root.display().to_string(), str::to_owned);
        Entry {
            format,
            kind,
            size_bytes: Bytes(size),
            files: counted.len(),
            parts: names.iter().map(|name| self.root.join(name)).collect(),
            revision: self.revision.map(str::to_owned),
            refs: self.refs.clone(),
            ..Entry::new(model, self.source, self.root)
        }
    }
}

impl Entry {
    /// Takes over what the files say.
    pub(super) fn describe(&mut self, read: &[Facts]) {
        let parameters = read.iter().map(|facts| facts.parameters).fold(0, u64::saturating_add);
        self.parameters = Some(parameters).filter(|parameters| *parameters > 0);
        let Some(first) = read.first() else { return };
        self.architecture = Some(first.architecture.clone()).filter(|name| !name.is_empty());
        self.quantisation = self.quantisation.take().or_else(|| first.quantisation.clone());
        self.context_length = first.context_length;
    }
}

/// Tells whether a file has weights of a format, or would have, were it not an index.
fn is_part(name: &str, format: Format) -> bool {
    match format {
        Format::Safetensors => has_ending(name, "safetensors"),
        Format::Pytorch => {
            let file = name.rsplit('/').next().unwrap_or(name);
            file.starts_with("pytorch_model") && has_ending(file, "bin")
        }
        Format::Gguf | Format::Ggml | Format::Other => false,
    }
}

pub(super) fn has_ending(name: &str, ending: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

fn is_whisper(name: &str) -> bool {
    name.starts_with("ggml-") && has_ending(name, "bin")
}

/// Reads a small JSON file; `None` for one that cannot be understood.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let read = || -> io::Result<T> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_CONFIG).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().ok()
}

/// Reads a short text, or the beginning of a long one.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// The folders that files of a store lie in, each with its own files.
pub(super) fn by_folder(root: &Path, files: Vec<Seen>) -> BTreeMap<PathBuf, Vec<Seen>> {
    let mut folders: BTreeMap<PathBuf, Vec<Seen>> = BTreeMap::new();
    for file in files {
        let folder = root.join(file.folder());
        let name = file.file_name().to_owned();
        folders.entry(folder).or_default().push(Seen { name, ..file });
    }
    for files in folders.values_mut() {
        files.sort_by(|one, other| one.name.cmp(&other.name));
    }
    folders
}

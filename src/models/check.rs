//! The checks before a spawn.

use std::{
    error::Error,
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    choose::Engine,
    encoder,
    engines::Asked,
    gguf::{self, Header, HeaderFault},
    inventory,
    locate::{LocateFault, Located, locate, locate_any, locate_or_encoder},
    mend::with_command,
    port, safetensors,
};
use crate::{
    engine::{
        CoreShare, Endpoint, EngineKind, Estimate, Flags, LadderInput, Launch, LaunchFault,
        LaunchInput, Machine, NeedInput, ladder, launch, need, peak_key, wants_port,
    },
    spec::{
        Bytes,
        death::Verdict,
        ladder::Rung,
        model::ModelFacts,
        profile::{EngineChoice, ModelSource, Profile},
    },
};

/// The architectures that the candle worker knows in GGUF files.
const CANDLE_ARCHITECTURES: [&str; 5] = ["llama", "qwen2", "qwen3", "gemma3", "phi3"];

/// Where programs and models are.
#[derive(Clone, Debug)]
pub struct Places {
    /// `llama_server` of slotd.toml.
    pub llama_server: Option<PathBuf>,
    /// slotd's own program.
    pub own_program: PathBuf,
    /// slotd's cache, with `engines/`.
    pub cache_dir: PathBuf,
    /// The Hugging Face cache, where there can be one.
    pub hub_cache: Option<PathBuf>,
    /// The daemon's environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Checks slots before they are started. One for the daemon: it remembers what programs can do.
#[derive(Debug)]
pub struct Checks {
    pub(super) places: Places,
    pub(super) asked: Asked,
}

/// What the checks found: all that a command line is made from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checked {
    /// The engine.
    pub kind: EngineKind,
    /// Its program.
    pub program: PathBuf,
    /// What it says of its version; of llama-server only.
    pub version: Option<String>,
    /// The options that it takes.
    pub flags: Flags,
    /// The model, where the profile names one.
    pub model: Option<PathBuf>,
    /// The projector beside it.
    pub mmproj: Option<PathBuf>,
    /// What the model's file says of itself; of GGUF files only.
    pub header: Option<Header>,
    /// What the folder of the worker's encoder says of itself.
    pub encoder: Option<ModelFacts>,
    /// What the model's file takes on the disk; all parts of a split one.
    pub files: Option<Bytes>,
    /// What the projector takes there.
    pub projector: Option<Bytes>,
}

/// Says why a slot is not started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The cause.
    pub verdict: Verdict,
    /// One sentence: what, where, what to do.
    pub reason: String,
    /// The engine and its program, where the choice had been made.
    pub engine: Option<(EngineKind, PathBuf)>,
}

impl Checked {
    /// Returns the name under which a command serves its model, which it insists on in requests: the
    /// path where its arguments had it filled in, else what the profile calls it.
    pub fn insisted_name(&self, profile: &Profile) -> Option<String> {
        let EngineChoice::Command(words) = &profile.engine else { return None };
        let is_filled_in = words.iter().any(|word| word.contains("{model}"));
        match &self.model {
            Some(path) if is_filled_in => Some(path.display().to_string()),
            Some(_) | None => profile.model.as_ref().map(ModelSource::typed),
        }
    }

    fn layers(&self) -> Option<u32> {
        self.header.as_ref()?.layers.and_then(|layers| u32::try_from(layers).ok())
    }

    /// Makes the slot's ladder.
    pub fn ladder(&self, profile: &Profile, has_gpu: bool) -> Vec<Rung> {
        let header = self.header.as_ref();
        let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
        ladder(&LadderInput {
            profile,
            kind: self.kind,
            flags: &self.flags,
            trained_context: small(header.and_then(|header| header.context_length)),
            layers: self.layers(),
            has_gpu,
        })
    }

    /// Works out what the engine will take on `rung`, once it serves with its caches full. Pure.
    pub fn estimate(&self, (profile, rung): (&Profile, &Rung), has_gpu: bool) -> Estimate {
        need(&NeedInput {
            profile,
            rung,
            kind: self.kind,
            flags: &self.flags,
            facts: self.header.as_ref().map(|header| &header.facts).or(self.encoder.as_ref()),
            files: self.files,
            projector: self.projector,
            has_gpu,
        })
    }

    /// Returns the name under which the peak of memory of such a start is remembered: the same for the
    /// same model's file, program, and arguments. Blocks on the disk; `None` for what cannot be started.
    pub fn peak_key(&self, (profile, rung): (&Profile, &Rung)) -> Option<String> {
        // Where it listens and how many threads it has says nothing about its memory.
        let endpoint = if wants_port(&profile.engine) {
            Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        } else {
            Endpoint::Unix("peak.sock".into())
        };
        let machine = Machine { cores: 1, has_gpu: false };
        let cores = CoreShare { machine, threads: 1 };
        let launch = self.launch((profile, rung), cores, &endpoint, &[]).ok()?;
        let model = self.model.as_deref().map(state_of).unwrap_or_default();
        let mmproj = self.mmproj.as_deref().map(state_of).unwrap_or_default();
        let files = format!("{model}\n{mmproj}\n{}\n{:?}", state_of(&self.program), self.files);
        Some(peak_key(&launch, self.version.as_deref(), &files))
    }

    /// Makes the command line.
    ///
    /// # Errors
    /// [`LaunchFault`]; [`Refused::of_launch`] says it as a check does.
    pub fn launch(
        &self,
        (profile, rung): (&Profile, &Rung),
        cores: CoreShare,
        endpoint: &Endpoint,
        environment: &[(OsString, OsString)],
    ) -> Result<Launch, LaunchFault> {
        launch(&LaunchInput {
            profile,
            rung,
            kind: self.kind,
            program: &self.program,
            model: self.model.as_deref(),
            mmproj: self.mmproj.as_deref(),
            pooling: self.header.as_ref().and_then(|header| header.pooling),
            facts: self.header.as_ref().map(|header| &header.facts),
            flags: &self.flags,
            layers: self.layers(),
            cores,
            endpoint,
            environment,
        })
    }
}

impl Refused {
    pub(super) fn new(verdict: Verdict, reason: String) -> Self {
        Self { verdict, reason, engine: None }
    }

    /// Says why a command line could not be made.
    pub fn of_launch(fault: &LaunchFault, checked: &Checked) -> Self {
        Self {
            engine: Some((checked.kind, checked.program.clone())),
            ..Self::new(Verdict::BadConfig, fault.to_string())
        }
    }
}

impl Checks {
    /// Makes the checks of a daemon; nothing is looked at yet.
    pub fn new(places: Places) -> Self {
        Self { places, asked: Asked::default() }
    }

    /// Checks everything that can be checked before `profile` is started: an engine is there and
    /// runs, the model is there and whole, the engine knows it, the port is free. Blocks on disks and
    /// on a program's `--help` for up to ten seconds: call it off the async threads.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn run(&self, profile: &Profile, endpoint: &Endpoint) -> Result<Checked, Refused> {
        let engine = self.engine(profile)?;
        let chosen = (engine.kind, engine.program.clone());
        let checked = self.model(profile, engine).and_then(|checked| {
            check_port(endpoint)?;
            Ok(checked)
        });
        checked.map_err(|refused| {
            let (verdict, reason) = match self.to_be_fetched(profile, &refused) {
                Some(reason) => (Verdict::ModelNotFetched, reason),
                None => (refused.verdict, with_remedy(profile, refused.reason)),
            };
            Refused { engine: Some(chosen), verdict, reason }
        })
    }

    /// Says of a model of the hub that is not there what has to be fetched, with its bytes.
    fn to_be_fetched(&self, profile: &Profile, refused: &Refused) -> Option<String> {
        let source = profile.model.as_ref().filter(|_| refused.verdict == Verdict::MissingFile)?;
        let is_of_hub = matches!(source, ModelSource::Hub { .. });
        let lacking = is_of_hub.then(|| inventory::lacking(source, self.hub())).flatten()?;
        Some(lacking.message)
    }

    fn model(&self, profile: &Profile, engine: Engine) -> Result<Checked, Refused> {
        // Of GGUF files the header's reader says more; a command may be given anything.
        let lacks = |source| inventory::lacking(source, self.hub());
        if let (EngineKind::Command, Some(source)) = (engine.kind, &profile.model)
            && let Some(lacking) = lacks(source).filter(|lacking| !lacking.missing.is_empty())
        {
            return Err(Refused::new(Verdict::MissingFile, lacking.message));
        }
        let (located, header) = match &profile.model {
            Some(source) => {
                let located = self.locate(source, engine.kind)?;
                let header = read_header(&located.path, engine.kind)?;
                check_parts(&located.path, engine.kind)?;
                (Some(located), header)
            }
            None => (None, None),
        };
        let Engine { kind, program, version, flags } = engine;
        let (model, mmproj) =
            located.map_or((None, None), |Located { path, mmproj }| (Some(path), mmproj));
        let files = match &header {
            Some(header) => Some(header.tensor_bytes),
            None => model.as_deref().and_then(weights_of),
        };
        let projector = mmproj.as_deref().and_then(size_of);
        let folder = model.as_deref().filter(|path| kind == EngineKind::Candle && path.is_dir());
        let encoder = folder.and_then(encoder::facts);
        Ok(Checked {
            kind,
            program,
            version,
            flags,
            model,
            mmproj,
            header,
            encoder,
            files,
            projector,
        })
    }

    pub(super) fn hub(&self) -> &Path {
        self.places.hub_cache.as_deref().unwrap_or(Path::new(""))
    }

    fn locate(&self, source: &ModelSource, kind: EngineKind) -> Result<Located, Refused> {
        let hub = self.hub();
        let located = match kind {
            EngineKind::Command => locate_any(source, hub),
            EngineKind::LlamaServer => locate(source, hub),
            EngineKind::Candle => locate_or_encoder(source, hub),
        };
        located.map_err(|fault| {
            let verdict = match fault {
                LocateFault::Empty(_) => Verdict::BadModel,
                LocateFault::Directory { .. } | LocateFault::Special(_) => Verdict::BadConfig,
                LocateFault::NotFound { .. }
                | LocateFault::Dangling(_)
                | LocateFault::Unreadable { .. }
                | LocateFault::NotInCache { .. }
                | LocateFault::NotInRepo { .. }
                | LocateFault::NotListed { .. } => Verdict::MissingFile,
            };
            Refused::new(verdict, whole(&fault))
        })
    }
}

/// Adds the command that mends a damaged model of the hub.
fn with_remedy(profile: &Profile, reason: String) -> String {
    match &profile.model {
        Some(source @ ModelSource::Hub { .. }) => with_command(reason, &source.typed()),
        Some(ModelSource::File { .. }) | None => reason,
    }
}

/// Tells a file apart from others, and from itself after a change.
fn state_of(path: &Path) -> String {
    let found = fs::metadata(path).ok();
    let changed = found.as_ref().and_then(|found| found.modified().ok());
    format!("{} {:?} {changed:?}", path.display(), found.map(|found| found.len()))
}

/// What the weights take in safetensors files, alone or in a folder; else what the file takes.
fn weights_of(path: &Path) -> Option<Bytes> {
    // Whether a damaged one will do is for the command to say.
    safetensors::read_model(path).ok().map(|model| model.bytes()).or_else(|| size_of(path))
}

/// Says whether all files are there that the index of the worker's folder names.
fn check_parts(path: &Path, kind: EngineKind) -> Result<(), Refused> {
    let has_index = path.is_dir() && !path.join("model.safetensors").is_file();
    if kind != EngineKind::Candle || !has_index {
        return Ok(());
    }
    match safetensors::read_model(path) {
        Err(fault @ safetensors::HeaderFault::MissingPart { .. }) => {
            let reason = format!("model `{}` {fault}", path.display());
            Err(Refused::new(Verdict::MissingFile, reason))
        }
        // The worker says what else is wrong.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// `None` for a folder, and for what cannot be looked at.
fn size_of(path: &Path) -> Option<Bytes> {
    let found = fs::metadata(path).ok()?;
    found.is_file().then_some(Bytes(found.len()))
}

/// Reads the header of a GGUF file. A command may serve other kinds of files.
fn read_header(path: &Path, kind: EngineKind) -> Result<Option<Header>, Refused> {
    let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let is_other = match kind {
        EngineKind::Command => !is_gguf,
        // Its embedders are folders.
        EngineKind::Candle => path.is_dir(),
        EngineKind::LlamaServer => false,
    };
    if is_other {
        return Ok(None);
    }
    let header = gguf::read(path).map_err(|fault| {
        let reason = format!("model `{}` {}", path.display(), whole(&fault));
        Refused::new(verdict_of(&fault), reason)
    })?;
    let is_known = CANDLE_ARCHITECTURES.contains(&header.architecture.as_str());
    if kind == EngineKind::Candle && !is_known {
        let reason = format!(
            "model `{}` has the architecture `{}`, and the candle worker knows only `{}`; use \
             llama-server (`make engine` builds it)",
            path.display(),
            header.architecture,
            CANDLE_ARCHITECTURES.join("`, `")
        );
        return Err(Refused::new(Verdict::BadModel, reason));
    }
    Ok(Some(header))
}

fn verdict_of(fault: &HeaderFault) -> Verdict {
    match fault {
        HeaderFault::Io(error) if error.kind() == io::ErrorKind::NotFound => Verdict::MissingFile,
        HeaderFault::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Verdict::MissingFile
        }
        HeaderFault::MissingPart { .. } | HeaderFault::LfsPointer => Verdict::MissingFile,
        HeaderFault::NotFirstPart { .. } => Verdict::BadConfig,
        HeaderFault::Io(_)
        | HeaderFault::Empty
        | HeaderFault::NotGguf { .. }
        | HeaderFault::Version(_)
        | HeaderFault::BigEndian
        | HeaderFault::CutHeader { .. }
        | HeaderFault::CutTensor { .. }
        | HeaderFault::Damaged(_)
        | HeaderFault::BadPart { .. } => Verdict::BadModel,
    }
}

fn check_port(endpoint: &Endpoint) -> Result<(), Refused> {
    let Endpoint::Tcp(address) = endpoint else { return Ok(()) };
    if port::is_free(*address) {
        return Ok(());
    }
    let by = port::holder(*address)
        .map_or_else(|| "another program".to_owned(), |holder| holder.to_string());
    let reason = format!(
        "address {address} is taken by {by}; stop it, or load the slot again for another port"
    );
    Err(Refused::new(Verdict::PortBusy, reason))
}

/// Says a fault with its causes.
fn whole(fault: &dyn Error) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;

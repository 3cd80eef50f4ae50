//! What a profile means, once it has been checked.
//!
//! `config` is the only place that makes a [`Profile`] from what was typed.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Endpoint, SlotName, ladder::LadderChoice, requests::Requests, residence::Residence};

/// Describes one slot: which engine serves which model, with what limits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Profile {
    /// The slot, from the file's name.
    pub slot: SlotName,
    /// The file that the profile was read from.
    pub source: PathBuf,
    /// The model to serve; only [`EngineChoice::Command`] can do without one, and
    /// [`EngineChoice::External`] has none.
    pub model: Option<ModelSource>,
    /// Which engine serves it.
    pub engine: EngineChoice,
    /// The argument vector, with the placeholders of [`EngineChoice::Command`], of a program that ends
    /// the engine; empty where signals do.
    #[serde(default)]
    pub stop_command: Vec<String>,
    /// More arguments for the engine, after slotd's own.
    pub args: Vec<String>,
    /// Environment variables for the engine, on top of the allow-list.
    pub env: BTreeMap<String, String>,
    /// Other names that clients may put into `model`.
    pub aliases: Vec<String>,
    /// Names that this slot serves together with every other slot that lists them.
    #[serde(default)]
    pub routes: Vec<String>,
    /// Whether a stream that its engine broke off is continued by another one.
    #[serde(default)]
    pub resume: bool,
    /// What the slot is offered for; empty means all that the engine can do.
    pub capabilities: Vec<Capability>,
    /// Context length of one sequence, in tokens; the engine's own default without it.
    pub context: Option<u32>,
    /// How many requests the engine works on at once; the engine's own default without it.
    pub parallel: Option<u32>,
    /// CPU threads of the engine; its share of the machine's cores without it.
    pub threads: Option<u32>,
    /// Layers to hold on the GPU; the engine's own default without it.
    pub gpu_layers: Option<u32>,
    /// What it may come down to where memory is short.
    #[serde(default)]
    pub ladder: LadderChoice,
    /// Loaded when the daemon starts, and kept loaded.
    pub autostart: bool,
    /// Retried for ever after deaths.
    pub essential: bool,
    /// Restarts in a row without a healthy run in between before the slot has failed.
    pub max_restarts: u32,
    /// How long a load may take.
    pub start_timeout: Duration,
    /// How long in-flight requests, and then the engine after `SIGTERM`, are given to end.
    pub stop_timeout: Duration,
    /// How long an engine may show no sign of life before it is replaced; never without it.
    #[serde(default)]
    pub hang_timeout: Option<Duration>,
    /// How long without a request before the slot is unloaded; never without it.
    pub idle_timeout: Option<Duration>,
    /// What becomes of its engine when the daemon ends.
    #[serde(default)]
    pub on_exit: OnExit,
    /// Whether its model is fetched where it is not whole on the disk.
    #[serde(default)]
    pub pull: Pull,
    /// What its stay in memory is worth.
    #[serde(default)]
    pub residence: Residence,
    /// How its requests are treated.
    #[serde(default)]
    pub requests: Requests,
}

/// What becomes of an engine when the daemon ends, however that comes about.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// It ends too.
    #[default]
    Stop,
    /// Once it has been ready, it goes on, and the next daemon adopts it.
    Keep,
}

/// What becomes of a start whose model is not whole on the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// It fails, and says how to fetch the model.
    #[default]
    Never,
    /// The model is fetched from the hub first.
    Auto,
}

/// Names a model.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ModelSource {
    /// A GGUF file. A relative path was looked up beside the profile and in the model directories,
    /// in the order of `candidates`; the first that exists is used.
    File {
        /// What was typed.
        typed: String,
        /// Where it may lie, best first; never empty.
        candidates: Vec<PathBuf>,
    },
    /// A repository of the Hugging Face hub, looked up in the hub's cache on this machine.
    Hub {
        /// `org/repo`.
        repo: String,
        /// The quantisation, `Q4_K_M` say, matched without case against the file names.
        quant: Option<String>,
        /// A branch, a tag or a commit; `main` without it.
        #[serde(default)]
        revision: Option<String>,
    },
}

impl ModelSource {
    /// Returns the model as the profile names it.
    pub fn typed(&self) -> String {
        match self {
            Self::File { typed, .. } => typed.clone(),
            Self::Hub { repo, quant, revision } => {
                let quant = quant.iter().map(|quant| format!(":{quant}"));
                let revision = revision.iter().map(|revision| format!("@{revision}"));
                repo.to_owned() + &quant.chain(revision).collect::<String>()
            }
        }
    }
}

/// Says which engine serves a slot.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum EngineChoice {
    /// `llama-server` where one is found, else the candle worker.
    Auto,
    /// `llama-server`.
    LlamaServer,
    /// The candle worker inside slotd.
    Candle,
    /// Any program: its argument vector with `{port}`, `{socket}` and `{model}` to be filled in.
    Command(Vec<String>),
    /// One that somebody else runs.
    External(External),
}

/// An engine that somebody else runs: slotd knows where it is, and neither starts nor ends it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct External {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The name that it knows its model by; any model will do without it.
    pub model: Option<String>,
}

impl EngineChoice {
    /// Returns the name that profiles use.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::LlamaServer => "llama-server",
            Self::Candle => "candle",
            Self::Command(_) => "command",
            Self::External(_) => "external",
        }
    }
}

/// One kind of work that a slot is offered for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
    /// `/v1/embeddings`.
    Embed,
    /// `/v1/rerank`.
    Rerank,
    /// `/v1/audio/transcriptions`.
    Transcribe,
    /// `/v1/audio/speech`.
    Speech,
    /// `/v1/images/…`.
    Image,
}

impl Capability {
    /// Every capability, in the order they are shown.
    pub const ALL: [Self; 7] = [
        Self::Chat,
        Self::Completion,
        Self::Embed,
        Self::Rerank,
        Self::Transcribe,
        Self::Speech,
        Self::Image,
    ];

    /// Returns the name that profiles and routes use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Transcribe => "transcribe",
            Self::Speech => "speech",
            Self::Image => "image",
        }
    }

    /// Tells whether engines have it without being asked for it.
    fn is_usual(self) -> bool {
        matches!(self, Self::Chat | Self::Completion | Self::Embed)
    }
}

impl Profile {
    /// Returns where the engine is, if somebody else runs it.
    pub fn external(&self) -> Option<&External> {
        match &self.engine {
            EngineChoice::External(external) => Some(external),
            EngineChoice::Auto
            | EngineChoice::LlamaServer
            | EngineChoice::Candle
            | EngineChoice::Command(_) => None,
        }
    }

    /// Tells whether somebody else runs the engine.
    pub fn is_external(&self) -> bool {
        self.external().is_some()
    }

    /// Tells whether it is kept loaded though nobody asks.
    pub fn is_kept(&self) -> bool {
        self.autostart || self.essential
    }

    /// Returns the model as the profile names it.
    pub fn model_name(&self) -> Option<String> {
        let named = self.model.as_ref().map(ModelSource::typed);
        named.or_else(|| self.external()?.model.clone())
    }

    /// Tells whether the slot is offered for `capability`.
    pub fn offers(&self, capability: Capability) -> bool {
        let is_ours = matches!(
            self.engine,
            EngineChoice::Auto | EngineChoice::LlamaServer | EngineChoice::Candle
        );
        // What a foreign program can do is not known.
        self.may(capability) || (self.capabilities.is_empty() && !is_ours)
    }

    /// Tells whether the slot is a likely one for `capability`: its profile names it, or names none
    /// and engines usually have it.
    pub fn may(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
            || (self.capabilities.is_empty() && capability.is_usual())
    }

    /// Tells whether an engine started for `self` serves `other` as well: both would start the same
    /// child. Aliases, limits and timeouts can change under a running engine.
    pub fn starts_same_engine(&self, other: &Self) -> bool {
        self.model == other.model
            && self.engine == other.engine
            && self.stop_command == other.stop_command
            && self.args == other.args
            && self.env == other.env
            && self.capabilities == other.capabilities
            && self.context == other.context
            && self.parallel == other.parallel
            && self.threads == other.threads
            && self.gpu_layers == other.gpu_layers
            && self.ladder == other.ladder
            && self.on_exit == other.on_exit
    }
}

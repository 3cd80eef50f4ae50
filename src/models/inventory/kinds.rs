//! What a model is for, by what its files say.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::entry::Kind;
use crate::{models::gguf::Header, spec::profile::Capability};

/// Pooling of models that give scores. Source: `enum llama_pooling_type`.
const RANK: u32 = 4;

/// Says what a model does alone, by the header of its file; nothing of one that writes text, or does something
/// else. Names of files are no proof.
pub(in crate::models) fn sole_of_header(header: &Header) -> Option<Capability> {
    let general_type = header.general_type.as_deref();
    sole(of_gguf(general_type, &header.architecture, header.pooling, ""))
}

/// Says what a model does alone, by the `config.json` of its folder.
pub(in crate::models) fn sole_of_folder(folder: &Path) -> Option<Capability> {
    let config = fs::read(folder.join("config.json")).ok()?;
    let config: Config = serde_json::from_slice(&config).ok()?;
    sole(config.kind(folder.join("modules.json").exists()))
}

fn sole(kind: Kind) -> Option<Capability> {
    match kind {
        Kind::Embed => Some(Capability::Embed),
        Kind::Rerank => Some(Capability::Rerank),
        Kind::Chat
        | Kind::Whisper
        | Kind::Speech
        | Kind::Image
        | Kind::Projector
        | Kind::Adapter
        | Kind::Draft
        | Kind::Other => None,
    }
}

/// What a `config.json` says that an inventory shows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(super) struct Config {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    /// Of classifiers: the names of the classes.
    id2label: Option<BTreeMap<String, Value>>,
    /// Of adapters.
    peft_type: Option<String>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    max_position_embeddings: Option<u64>,
    #[serde(rename = "text_config")]
    text: Option<Box<Config>>,
    #[serde(rename = "quantization_config")]
    quantised: Option<Quantisation>,
    /// Of what MLX has quantised.
    quantization: Option<Quantisation>,
    /// Of pipelines for pictures.
    #[serde(rename = "_class_name")]
    pipeline: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Quantisation {
    quant_method: Option<String>,
    bits: Option<u64>,
}

impl Config {
    /// Returns `model_type`, else the class that reads it.
    pub(super) fn architecture(&self) -> Option<String> {
        let class = || self.architectures.as_ref()?.first().cloned();
        self.model_type.clone().or_else(class).or_else(|| self.pipeline.clone())
    }

    /// Tells whether it stands for a model that has weights.
    pub(super) fn is_of_model(&self) -> bool {
        self.model_type.is_some() || self.architectures.is_some() || self.peft_type.is_some()
    }

    pub(super) fn context_length(&self) -> Option<u64> {
        let inner = || self.text.as_ref()?.max_position_embeddings;
        self.max_position_embeddings.or_else(inner)
    }

    /// Returns how the weights are kept, such as `awq 4-bit` or `bfloat16`.
    pub(super) fn quantisation(&self) -> Option<String> {
        let of = |quantisation: &Quantisation| {
            let method = quantisation.quant_method.clone();
            match (method, quantisation.bits) {
                (Some(method), Some(bits)) => Some(format!("{method} {bits}-bit")),
                (Some(method), None) => Some(method),
                (None, Some(bits)) => Some(format!("{bits}-bit")),
                (None, None) => None,
            }
        };
        let quantised = self.quantised.as_ref().or(self.quantization.as_ref()).and_then(of);
        let inner = || self.text.as_ref().and_then(|inner| inner.quantisation());
        quantised.or_else(|| self.torch_dtype.clone().or(self.dtype.clone())).or_else(inner)
    }

    /// Returns what the model is for. `is_of_sentences`: sentence-transformers' files lie beside it.
    pub(super) fn kind(&self, is_of_sentences: bool) -> Kind {
        if self.peft_type.is_some() {
            return Kind::Adapter;
        }
        if self.pipeline.is_some() {
            return Kind::Image;
        }
        let class = self.architectures.as_deref().unwrap_or_default().first();
        let class = class.map(String::as_str).unwrap_or_default();
        let model_type = self.model_type.as_deref().unwrap_or_default();
        if class.contains("Whisper") || class.contains("SpeechSeq2Seq") || class.ends_with("ForCTC")
        {
            Kind::Whisper
        } else if class.contains("TextToSpeech") || matches!(model_type, "kokoro" | "bark" | "vits")
        {
            Kind::Speech
        } else if class.ends_with("ForSequenceClassification") {
            // Several classes are moods or languages, not how well a document answers.
            let has_several = self.id2label.as_ref().is_some_and(|labels| labels.len() > 1);
            if has_several { Kind::Other } else { Kind::Rerank }
        } else if is_of_sentences || matches!(model_type, "bert" | "xlm-roberta" | "nomic_bert") {
            Kind::Embed
        } else if class.ends_with("ForCausalLM")
            || class.ends_with("ForConditionalGeneration")
            || class.ends_with("LMHeadModel")
        {
            Kind::Chat
        } else {
            Kind::Other
        }
    }
}

/// Returns what a GGUF file is for, by `general.type`, its architecture, how it pools, and its name.
/// Source: `gguf-py/gguf/constants.py`, `GGUFType`; `tools/mtmd/clip.cpp` for projectors.
pub(super) fn of_gguf(
    kind: Option<&str>,
    architecture: &str,
    pooling: Option<u32>,
    file_name: &str,
) -> Kind {
    const EMBED: [&str; 8] = [
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "gemma-embedding",
    ];
    const DRAFT: [&str; 4] = ["mtp-", "eagle3-", "dflash-", "dspark-"];
    const IMAGE: [&str; 8] = ["flux", "sd1", "sd3", "sdxl", "lumina2", "wan", "qwen_image", "ltxv"];
    let name = file_name.to_ascii_lowercase();
    match kind {
        Some("adapter") => return Kind::Adapter,
        Some("mmproj") => return Kind::Projector,
        Some("imatrix" | "vocab") => return Kind::Other,
        Some(_) | None => {}
    }
    if architecture == "clip" {
        Kind::Projector
    } else if architecture == "whisper" {
        Kind::Whisper
    } else if IMAGE.contains(&architecture) {
        Kind::Image
    } else if pooling == Some(RANK) || name.contains("rerank") {
        Kind::Rerank
    } else if EMBED.contains(&architecture) || pooling.is_some_and(|pooling| pooling > 0) {
        Kind::Embed
    } else if DRAFT.iter().any(|start| name.contains(start)) {
        Kind::Draft
    } else if matches!(architecture, "wavtokenizer-dec" | "outetts") {
        Kind::Speech
    } else if name.contains("imatrix") {
        Kind::Other
    } else {
        Kind::Chat
    }
}

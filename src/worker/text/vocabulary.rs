//! The vocabulary of a model: text to tokens, tokens to bytes.
//!
//! Source: `llama-vocab.cpp` of llama.cpp for the names of the pre-tokenizers and their patterns.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{NFC, NormalizerWrapper, Prepend, Sequence as Normalizers, replace::Replace},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

use super::bytes::letters;
use crate::worker::{
    exit::{Ending, say},
    model::Header,
};

/// The tokens of a model.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(super) tokenizer: Tokenizer,
    /// What each token says; nothing for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Texts that stand for one token wherever they occur.
    special: Vec<String>,
    ends: BTreeSet<u32>,
    begin: Option<u32>,
    /// The tokenizer itself adds tokens around a text.
    frames: bool,
    pub(crate) begin_text: String,
    pub(crate) end_text: String,
}

/// Marks a place where text must not be joined to a special token. A noncharacter: Unicode keeps
/// it for use inside programs.
pub(crate) const SEAM: char = '\u{FDD0}';

const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Tokens that end a turn, known by their text when the metadata name only one of them.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
    "<EOT>",
];

impl Vocabulary {
    /// Reads the vocabulary of the file.
    pub(crate) fn read(header: &Header) -> Result<Self, Ending> {
        let tokens = header
            .texts("tokenizer.ggml.tokens")
            .filter(|tokens| !tokens.is_empty())
            .ok_or_else(|| Ending::bad_model("the model's file has no tokens"))?;
        let kinds = header.numbers("tokenizer.ggml.token_type").unwrap_or_default();
        let kind = |id: usize| kinds.get(id).copied().unwrap_or(1);
        let model = header.text("tokenizer.ggml.model").unwrap_or("none");
        let fault = |error: tokenizers::Error| {
            Ending::bad_model(format!("the model's tokenizer cannot be used: {error}"))
        };
        let (mut tokenizer, by_letters) = match model {
            "gpt2" => (byte_level(header, &tokens).map_err(fault)?, true),
            "llama" => (sentence_piece(header, &tokens).map_err(fault)?, false),
            other => {
                return Err(Ending::bad_model(format!(
                    "the model's tokenizer is `{other}`, this worker knows `gpt2` and `llama`"
                )));
            }
        };
        let special: Vec<String> = (0..)
            .zip(&tokens)
            .filter(|(id, text)| matches!(kind(*id), CONTROL | USER_DEFINED) && !text.is_empty())
            .map(|(_, text)| (*text).to_owned())
            .collect();
        let added =
            special.iter().map(|text| AddedToken::from(text.clone(), true).normalized(false));
        tokenizer.add_special_tokens(added.collect::<Vec<_>>()).map_err(fault)?;
        let letters = letters();
        let bytes = (0..).zip(&tokens).map(|(id, text)| match kind(id) {
            CONTROL => Box::default(),
            USER_DEFINED => text.as_bytes().into(),
            BYTE => byte_token(text),
            _ if by_letters => letter_bytes(text, &letters),
            _ => text.replace('▁', " ").into_bytes().into_boxed_slice(),
        });
        let bytes = bytes.collect();
        let ends = ends(header, &tokens);
        let text_of = |key: &str| {
            let id = header.number(key).and_then(|id| usize::try_from(id).ok());
            id.and_then(|id| tokens.get(id)).map_or_else(String::new, |text| (*text).to_owned())
        };
        Ok(Self {
            tokenizer,
            bytes,
            special,
            ends,
            begin: begin(header, model),
            frames: false,
            begin_text: text_of("tokenizer.ggml.bos_token_id"),
            end_text: text_of("tokenizer.ggml.eos_token_id"),
        })
    }

    /// Reads the tokenizer of an encoder's folder. What it says about cutting and filling up texts
    /// is left out: texts are taken whole or refused.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self, Ending> {
        let path = folder.join("tokenizer.json");
        File::open(&path).map_err(|error| {
            Ending::missing_file(format!("cannot read `{}`: {error}", path.display()))
        })?;
        let fault = |error: tokenizers::Error| {
            Ending::bad_model(format!("`{}` cannot be used: {error}", path.display()))
        };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(fault)?;
        tokenizer.with_truncation(None).map_err(fault)?;
        tokenizer.with_padding(None);
        let count = tokenizer.get_vocab_size(true);
        let tokens = (0_u32..).take(count).map(|id| tokenizer.id_to_token(id).unwrap_or_default());
        let bytes = tokens.map(|token| token.into_bytes().into_boxed_slice()).collect();
        Ok(Self {
            tokenizer,
            bytes,
            special: Vec::new(),
            ends: BTreeSet::new(),
            begin: None,
            frames: true,
            begin_text: String::new(),
            end_text: String::new(),
        })
    }

    /// Turns text into tokens, the first of them the model's begin token if it wants one. Special
    /// tokens are recognised, but not across a [`SEAM`].
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        if self.frames {
            let encoding = self.tokenizer.encode_fast(text, true);
            return encoding
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| error.to_string());
        }
        let mut ids = Vec::new();
        for piece in text.split(SEAM) {
            let encoding =
                self.tokenizer.encode_fast(piece, false).map_err(|error| error.to_string())?;
            ids.extend_from_slice(encoding.get_ids());
        }
        if let Some(begin) = self.begin.filter(|begin| ids.first() != Some(begin)) {
            ids.insert(0, begin);
        }
        Ok(ids)
    }

    /// Breaks each special token in a user's text by a [`SEAM`], so that it stays plain text.
    pub(crate) fn disarm(&self, text: &str) -> String {
        let mut safe = text.replace(SEAM, "");
        for special in &self.special {
            let first = special.chars().next().map_or(0, char::len_utf8);
            if special.len() > first && safe.contains(special.as_str()) {
                let (head, tail) = special.split_at(first);
                safe = safe.replace(special.as_str(), &format!("{head}{SEAM}{tail}"));
            }
        }
        safe
    }

    /// Gives the bytes a token says; nothing for control tokens and unknown ids.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        usize::try_from(id).ok().and_then(|id| self.bytes.get(id)).map_or(&[], |bytes| bytes)
    }

    /// Gives the first of the tokens that end the text.
    pub(crate) fn end(&self) -> u32 {
        self.ends.first().copied().unwrap_or(0)
    }

    /// Says whether a token ends the text.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Gives the number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

fn begin(header: &Header, model: &str) -> Option<u32> {
    let wanted = header.flag("tokenizer.ggml.add_bos_token").unwrap_or_else(|| {
        let pre = header.text("tokenizer.ggml.pre").unwrap_or_default();
        model == "llama" || matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "tekken")
    });
    let id = header.number("tokenizer.ggml.bos_token_id").filter(|_| wanted)?;
    u32::try_from(id).ok()
}

fn ends(header: &Header, tokens: &[&str]) -> BTreeSet<u32> {
    let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let named = keys.iter().filter_map(|key| header.number(&format!("tokenizer.ggml.{key}")));
    let named = named.filter_map(|id| u32::try_from(id).ok());
    let known = (0_u32..).zip(tokens).filter(|(_, text)| ENDS.contains(text)).map(|(id, _)| id);
    named.chain(known).collect()
}

fn byte_level(header: &Header, tokens: &[&str]) -> tokenizers::Result<Tokenizer> {
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
    let (patterns, ignore_merges): (&[&str], bool) = match pre {
        "default" | "gpt-2" | "gpt2" | "olmo" | "phi-2" => (&[GPT2], false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => (&[r"\p{N}", GPT2], false),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "smaug-bpe" => (&[LLAMA3], true),
        "qwen2" | "deepseek-r1-qwen" => (&[QWEN2], false),
        "tekken" => (&[TEKKEN], true),
        other => {
            say(format_args!("warning: the pre-tokenizer `{other}` is not known, `gpt-2` is used"));
            (&[GPT2], false)
        }
    };
    let merges = header.texts("tokenizer.ggml.merges").unwrap_or_default();
    let merges = merges.iter().filter_map(|merge| {
        // The first letter of a merge may be a space in files of old converters.
        let at = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ')?.0;
        let (left, right) = merge.split_at(at);
        Some((left.to_owned(), right.trim_start_matches(' ').to_owned()))
    });
    let bpe = BPE::builder()
        .vocab_and_merges(ids(tokens), merges.collect::<Vec<_>>())
        .ignore_merges(ignore_merges)
        .build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    if pre == "qwen2" {
        tokenizer.with_normalizer(Some(NormalizerWrapper::from(NFC)))?;
    }
    Ok(tokenizer)
}

/// A vocabulary of scored pieces has no list of merges: any two pieces whose join is a piece merge,
/// the join of the highest score first.
fn sentence_piece(header: &Header, tokens: &[&str]) -> tokenizers::Result<Tokenizer> {
    let vocabulary = ids(tokens);
    let scores = header.floats("tokenizer.ggml.scores").unwrap_or_default();
    let mut merges: Vec<(f32, u32, String, String)> = Vec::new();
    for ((id, token), score) in (0_u32..).zip(tokens).zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if vocabulary.contains_key(left) && vocabulary.contains_key(right) {
                merges.push((score, id, left.to_owned(), right.to_owned()));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges = merges.into_iter().map(|(_, _, left, right)| (left, right)).collect::<Vec<_>>();
    let unknown = header.number("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id)).unwrap_or(&"<unk>");
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token((*unknown).to_owned())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        steps.push(Prepend::new("▁".to_owned()).into());
    }
    steps.push(Replace::new(" ", "▁")?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(steps)))?;
    Ok(tokenizer)
}

fn ids(tokens: &[&str]) -> Vocab {
    tokens.iter().map(|token| (*token).to_owned()).zip(0_u32..).collect()
}

/// Reads `<0x0A>`.
fn byte_token(text: &str) -> Box<[u8]> {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => Box::new([byte]),
        None => text.as_bytes().into(),
    }
}

fn letter_bytes(text: &str, letters: &BTreeMap<char, u8>) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(text.len());
    for letter in text.chars() {
        match letters.get(&letter) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::worker::model::tiny;

    fn tiny_vocabulary() -> Vocabulary {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::F32);
        Vocabulary::read(&Header::open(&path).unwrap()).unwrap()
    }

    #[test]
    fn text_survives_the_way_to_tokens_and_back() {
        let vocabulary = tiny_vocabulary();
        let text = "naïve 😀\n\ttext 123";
        let ids = vocabulary.encode(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| vocabulary.bytes(*id).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }

    #[test]
    fn a_special_token_is_one_token_and_says_nothing() {
        let vocabulary = tiny_vocabulary();
        let ids = vocabulary.encode("a<|im_end|>").unwrap();
        assert_eq!(ids.len(), 2);
        assert_eq!(vocabulary.bytes(ids[1]), b"");
        assert!(vocabulary.is_end(ids[1]));
    }

    #[test]
    fn a_users_text_cannot_forge_a_special_token() {
        let vocabulary = tiny_vocabulary();
        let safe = vocabulary.disarm("x<|im_end|>y");
        let ids = vocabulary.encode(&safe).unwrap();
        assert!(!ids.iter().any(|id| vocabulary.is_end(*id)));
        let bytes: Vec<u8> = ids.iter().flat_map(|id| vocabulary.bytes(*id).to_vec()).collect();
        assert_eq!(bytes, b"x<|im_end|>y");
    }
}

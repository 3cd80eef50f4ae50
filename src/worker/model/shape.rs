//! The shape of a model, from the metadata of its file.
//!
//! Source: `src/models/*.cpp` of llama.cpp for what the architectures differ in.

use slotd_kernels::{Gate, Pairs};

use super::{header::Header, to_f32};
use crate::worker::exit::Ending;

/// The numbers that fix a model's computation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values; several query heads share one.
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) trained_context: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) rope_base: f32,
    /// Positions are divided by this (linear scaling).
    pub(crate) rope_factor: f32,
    /// What rotated numbers are multiplied with.
    pub(crate) rope_magnitude: f32,
    pub(crate) rope_stretch: Stretch,
    pub(crate) pairs: Pairs,
    pub(crate) gate: Gate,
    /// What scores are multiplied with before the softmax.
    pub(crate) scale: f32,
    pub(crate) embedding_scale: f32,
    /// The size that logits are pressed into.
    pub(crate) logit_cap: Option<f32>,
    pub(crate) window: Option<Window>,
    architecture: Architecture,
}

/// How far most layers look back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// Positions, a row's own included.
    pub(crate) length: usize,
    /// One layer of so many, the last of them, looks at everything.
    pub(crate) period: usize,
    pub(crate) rope_base: f32,
}

/// Which tensor stretches single frequencies of the rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stretch {
    Plain,
    /// One for contexts up to this many tokens, another for longer ones.
    ByContext(usize),
    Short,
    Long,
}

/// Architectures whose graph this worker computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
}

const SUPPORTED: [(&str, Architecture); 5] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma3", Architecture::Gemma3),
    ("phi3", Architecture::Phi3),
];
const MOST_LAYERS: usize = 1024;
const MOST_WIDTH: usize = 1 << 20;

impl Architecture {
    fn of(name: &str) -> Result<Self, Ending> {
        let known = SUPPORTED.iter().find(|(known, _)| *known == name);
        known.map(|(_, architecture)| *architecture).ok_or_else(|| {
            Ending::bad_model(format!(
                "the model's architecture is `{name}`, this worker serves `{}`",
                SUPPORTED.map(|(name, _)| name).join("`, `")
            ))
        })
    }
}

impl Shape {
    /// Reads the shape, and refuses what this worker would compute wrongly.
    pub(crate) fn read(header: &Header) -> Result<Self, Ending> {
        let architecture = header.text("general.architecture").unwrap_or("none");
        let known = Architecture::of(architecture)?;
        let number = |key: &str| Self::number(header, architecture, key);
        if number("expert_count").is_ok_and(|experts| experts > 0) {
            return Err(Ending::bad_model(
                "the model is a mixture of experts, this worker serves dense models",
            ));
        }
        let width = number("embedding_length")?;
        let heads = number("attention.head_count")?;
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let head_width = number("attention.key_length")
            .unwrap_or_else(|_| width.checked_div(heads).unwrap_or(0));
        let is_gemma = known == Architecture::Gemma3;
        let layers = number("block_count")?;
        // The largest Gemma 3, known by its layers, divides by another width.
        let scaled_by = if is_gemma && layers == 62 { width / heads.max(1) } else { head_width };
        let shape = Self {
            layers,
            width,
            feed_forward: number("feed_forward_length")?,
            heads,
            kv_heads,
            head_width,
            trained_context: number("context_length")?,
            norm_epsilon: header
                .float(&format!("{architecture}.attention.layer_norm_rms_epsilon"))
                .unwrap_or(1e-5),
            rope_base: header.float(&format!("{architecture}.rope.freq_base")).unwrap_or(1e4),
            rope_factor: Self::rope_factor(header, architecture)?,
            rope_magnitude: header
                .float(&format!("{architecture}.rope.scaling.attn_factor"))
                .unwrap_or(1.0),
            rope_stretch: match number("rope.scaling.original_context_length") {
                Ok(short) => Stretch::ByContext(short),
                Err(_) => Stretch::Plain,
            },
            pairs: match known {
                Architecture::Llama => Pairs::Neighbours,
                Architecture::Qwen2
                | Architecture::Qwen3
                | Architecture::Gemma3
                | Architecture::Phi3 => Pairs::Halves,
            },
            gate: if is_gemma { Gate::Gelu } else { Gate::Silu },
            scale: 1.0 / to_f32(scaled_by).sqrt(),
            embedding_scale: if is_gemma { to_f32(width).sqrt() } else { 1.0 },
            logit_cap: header
                .float(&format!("{architecture}.final_logit_softcapping"))
                .filter(|cap| *cap > 0.0),
            window: if is_gemma { Self::window(header, architecture) } else { None },
            architecture: known,
        };
        let rotated = number("rope.dimension_count").unwrap_or(head_width);
        let value_width = number("attention.value_length").unwrap_or(head_width);
        shape.check(architecture, (rotated, value_width))?;
        Ok(shape)
    }

    fn number(header: &Header, architecture: &str, key: &str) -> Result<usize, Ending> {
        let key = format!("{architecture}.{key}");
        header.number(&key).and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
            Ending::bad_model(format!("the model's metadata lack the number `{key}`"))
        })
    }

    fn rope_factor(header: &Header, architecture: &str) -> Result<f32, Ending> {
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        match header.text(&key("type")) {
            None | Some("none" | "longrope") => Ok(1.0),
            Some("linear") => Ok(header.float(&key("factor")).filter(|f| *f > 0.0).unwrap_or(1.0)),
            Some(kind) => Err(Ending::bad_model(format!(
                "the model scales its positions by `{kind}`, this worker knows `linear`"
            ))),
        }
    }

    fn window(header: &Header, architecture: &str) -> Option<Window> {
        let key = |name: &str| format!("{architecture}.{name}");
        let length =
            header.number(&key("attention.sliding_window")).filter(|length| *length > 0)?;
        let period = header.number(&key("attention.sliding_window_pattern")).unwrap_or(6);
        Some(Window {
            length: usize::try_from(length).ok()?,
            period: usize::try_from(period).ok()?.max(1),
            rope_base: header.float(&key("rope.freq_base_swa")).unwrap_or(1e4),
        })
    }

    /// Chooses what depends on the context.
    pub(crate) fn for_context(mut self, context: usize) -> Self {
        self.rope_stretch = match self.rope_stretch {
            Stretch::ByContext(short) if context > short => Stretch::Long,
            Stretch::ByContext(_) => Stretch::Short,
            other @ (Stretch::Plain | Stretch::Short | Stretch::Long) => other,
        };
        self
    }

    /// Says whether layers can be put on a GPU.
    pub(crate) fn goes_on_gpu(&self) -> bool {
        self.architecture == Architecture::Llama
    }

    /// Gives how many positions layer `index` looks at, `None` for all.
    pub(crate) fn window_of(&self, index: usize) -> Option<usize> {
        let window = self.window?;
        let place = index.checked_rem(window.period).unwrap_or(0);
        (place.saturating_add(1) < window.period).then_some(window.length)
    }

    fn check(
        &self,
        architecture: &str,
        (rotated, value_width): (usize, usize),
    ) -> Result<(), Ending> {
        let wrong = |key: &str, number: usize, expected: String| {
            let key = format!("`{architecture}.{key}`");
            Err(Ending::bad_model(format!("{key} is {number}, expected {expected}")))
        };
        let ranges = [
            ("block_count", self.layers, MOST_LAYERS),
            ("embedding_length", self.width, MOST_WIDTH),
            ("feed_forward_length", self.feed_forward, MOST_WIDTH),
            ("attention.head_count", self.heads, self.width),
            ("attention.head_count_kv", self.kv_heads, self.heads),
            ("attention.key_length", self.head_width, MOST_WIDTH),
        ];
        for (key, number, most) in ranges {
            if !(1..=most).contains(&number) {
                return wrong(key, number, format!("1 to {most}"));
            }
        }
        if self.trained_context == 0 {
            return wrong("context_length", 0, "at least 1".to_owned());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of the {} of keys", self.kv_heads);
            return wrong("attention.head_count", self.heads, expected);
        }
        if !self.head_width.is_multiple_of(2) {
            return Err(Ending::bad_model(format!(
                "the model's heads are {} wide, expected an even number",
                self.head_width
            )));
        }
        if rotated != self.head_width || value_width != self.head_width {
            return Err(Ending::bad_model(format!(
                "the model's heads are {} wide, {rotated} of it rotated, values {value_width} wide; \
                 this worker serves heads of one width, rotated whole",
                self.head_width
            )));
        }
        Ok(())
    }

    /// Gives the width of one position's keys, or values, in one layer.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_width)
    }

    /// Gives the bytes that keys and values of `context` positions take in all layers.
    pub(crate) fn cache_bytes(&self, context: usize) -> u64 {
        [self.layers, self.kv_width(), context, 2, size_of::<f32>()]
            .iter()
            .fold(1, |product, n| product.saturating_mul(u64::try_from(*n).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::worker::model::tiny;

    #[test]
    fn a_number_that_cannot_be_is_named_with_its_range() {
        let folder = tempfile::tempdir().unwrap();
        let told = |key: &'static str, number: u32| {
            let path = tiny::write_with(folder.path(), key, Value::U32(number));
            Shape::read(&Header::open(&path).unwrap()).unwrap_err().to_string()
        };
        assert_eq!(
            told("llama.block_count", 4_000_000_000),
            "`llama.block_count` is 4000000000, expected 1 to 1024"
        );
        assert_eq!(
            told("llama.attention.head_count", 0),
            "`llama.attention.head_count` is 0, expected 1 to 64"
        );
        assert_eq!(
            told("llama.attention.head_count_kv", 3),
            "`llama.attention.head_count` is 4, expected a multiple of the 3 of keys"
        );
        assert_eq!(
            told("llama.context_length", 0),
            "`llama.context_length` is 0, expected at least 1"
        );
    }
}

//! The shape of a model of the llama family, from the metadata of its file.

use super::header::Header;
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
}

/// Architectures whose graph this worker computes.
const SUPPORTED: [&str; 1] = ["llama"];
const MOST_LAYERS: usize = 1024;
const MOST_WIDTH: usize = 1 << 20;

impl Shape {
    /// Reads the shape, and refuses what this worker would compute wrongly.
    pub(crate) fn read(header: &Header) -> Result<Self, Ending> {
        let architecture = header.text("general.architecture").unwrap_or("none");
        if !SUPPORTED.contains(&architecture) {
            return Err(Ending::bad_model(format!(
                "the model's architecture is `{architecture}`, this worker serves `{}`",
                SUPPORTED.join("`, `")
            )));
        }
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
        let shape = Self {
            layers: number("block_count")?,
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
        };
        let rotated = number("rope.dimension_count").unwrap_or(head_width);
        let value_width = number("attention.value_length").unwrap_or(head_width);
        shape.check(rotated, value_width)?;
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
            None | Some("none") => Ok(1.0),
            Some("linear") => Ok(header.float(&key("factor")).filter(|f| *f > 0.0).unwrap_or(1.0)),
            Some(kind) => Err(Ending::bad_model(format!(
                "the model scales its positions by `{kind}`, this worker knows `linear`"
            ))),
        }
    }

    fn check(&self, rotated: usize, value_width: usize) -> Result<(), Ending> {
        let fits = |number: usize, most: usize| (1..=most).contains(&number);
        let possible = fits(self.layers, MOST_LAYERS)
            && fits(self.width, MOST_WIDTH)
            && fits(self.feed_forward, MOST_WIDTH)
            && fits(self.heads, MOST_WIDTH)
            && fits(self.kv_heads, self.heads)
            && fits(self.head_width, MOST_WIDTH)
            && self.trained_context > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_width.is_multiple_of(2);
        if !possible {
            return Err(Ending::bad_model(format!(
                "the model's metadata contradict themselves: {self:?}"
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

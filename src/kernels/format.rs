//! How weights lie in a file.
//!
//! Source: `ggml-common.h` of ggml for the blocks, `ggml.h` for their numbers.

/// A format of weights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What a format's weights become before they are multiplied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Floats,
    /// `scale · q + min`, `q` without a sign, scale and min for each 32.
    Shifted,
    /// `scale · q`, `q` with a sign, a scale for each 32.
    Signed,
    /// `scale · step · q + min`, `q` without a sign, step and min for each 16.
    Halves,
}

impl Format {
    /// Gives weights a block and bytes a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Gives the bytes of `width` weights.
    pub fn row_bytes(self, width: usize) -> usize {
        let (weights, bytes) = self.block();
        width / weights * bytes
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => Kind::Floats,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q4K | Self::Q5K => {
                Kind::Shifted
            }
            Self::Q8_0 => Kind::Signed,
            Self::Q2K | Self::Q3K | Self::Q6K => Kind::Halves,
        }
    }
}

//! The ladder of a slot: less and less memory for the same model.
//!
//! A rung says what it changes against the profile as it was written, not against the rung above it.
//! The first rung changes nothing. `engine::ladder` makes the list, `supervisor::ladder` moves on it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::profile::Profile;

/// One rung: what it changes against the profile; `None` leaves the profile's own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rung {
    /// What people call it; made from the changes where nobody named it.
    pub name: Option<String>,
    /// Layers to hold on the GPU.
    pub gpu_layers: Option<u32>,
    /// Context length of one sequence, in tokens.
    pub context: Option<u32>,
    /// How many requests the engine works on at once.
    pub parallel: Option<u32>,
    /// What the keys and values of attention are kept as; of llama-server only.
    pub cache_type: Option<CacheType>,
}

/// How the numbers of a KV cache are kept.
/// Source: `--cache-type-k` of llama.cpp b11434, those that are of use.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheType {
    /// 16 bits, the engine's own default.
    F16,
    /// 8.5 bits.
    Q8_0,
    /// 4.5 bits.
    Q4_0,
}

/// What a profile says about its ladder.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LadderChoice {
    /// Nothing: slotd makes the rungs, and lowers only what the profile leaves open.
    #[default]
    Unsaid,
    /// slotd makes the rungs, and may lower what the profile sets too.
    Auto,
    /// The profile as it is, and nothing else.
    Off,
    /// The profile as it is, then these, best first; never empty.
    Rungs(Vec<Rung>),
    /// This one, and nothing else.
    Pinned(Rung),
}

/// Where a slot stands on its ladder, for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RungView {
    /// Which rung, from 0, the best.
    pub index: usize,
    /// How many rungs there are; 0 while that is not known.
    pub of: usize,
    /// What it is called.
    pub name: String,
}

impl CacheType {
    /// Every type, largest first.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::Q4_0];

    /// Returns the name that profiles and llama-server use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl Rung {
    /// Returns what people call it.
    pub fn name(&self) -> Cow<'_, str> {
        match &self.name {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(self.described()),
        }
    }

    /// Returns `profile` with what this rung changes. The type of the cache is no key of a profile.
    pub fn apply(&self, profile: &Profile) -> Profile {
        Profile {
            gpu_layers: self.gpu_layers.or(profile.gpu_layers),
            context: self.context.or(profile.context),
            parallel: self.parallel.or(profile.parallel),
            ..profile.clone()
        }
    }

    /// Tells whether all that this rung does beyond `above` is to move layers into host memory.
    pub fn only_moves_layers_off_the_gpu(&self, above: &Self) -> bool {
        let alike = Self { name: None, gpu_layers: None, ..self.clone() }
            == Self { name: None, gpu_layers: None, ..above.clone() };
        alike && self.gpu_layers != above.gpu_layers
    }

    fn described(&self) -> String {
        let parts = [
            self.cache_type.map(|cache| format!("{} cache", cache.as_str())),
            self.parallel.map(|parallel| format!("parallel {parallel}")),
            self.context.map(|context| format!("context {context}")),
            self.gpu_layers.map(|layers| match layers {
                0 => "on the CPU".to_owned(),
                layers => format!("{layers} GPU layers"),
            }),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "as written".to_owned() } else { parts.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_without_a_name_is_called_by_what_it_changes() {
        assert_eq!(Rung::default().name(), "as written");
        let low = Rung {
            gpu_layers: Some(0),
            context: Some(2048),
            parallel: Some(1),
            cache_type: Some(CacheType::Q8_0),
            ..Rung::default()
        };
        assert_eq!(low.name(), "q8_0 cache, parallel 1, context 2048, on the CPU");
        assert_eq!(Rung { name: Some("small".to_owned()), ..low }.name(), "small");
        assert_eq!(Rung { gpu_layers: Some(12), ..Rung::default() }.name(), "12 GPU layers");
    }

    #[test]
    fn moving_layers_alone_frees_no_host_memory() {
        let above = Rung { parallel: Some(1), ..Rung::default() };
        let moved = Rung { gpu_layers: Some(0), ..above.clone() };
        assert!(moved.only_moves_layers_off_the_gpu(&above));
        assert!(!above.only_moves_layers_off_the_gpu(&above));
        let smaller = Rung { context: Some(1024), ..moved };
        assert!(!smaller.only_moves_layers_off_the_gpu(&above));
    }
}

//! Which GPUs a person lets slotd use: `CUDA_VISIBLE_DEVICES` of the daemon itself.
//!
//! Source: CUDA's programming guide, environment variables. An index is taken in the order of bus addresses
//! (`CUDA_DEVICE_ORDER=PCI_BUS_ID`), which is the driver's.

/// What the variable says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Visible(Vec<Name>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Name {
    Index(u32),
    /// A UUID, or the beginning of one.
    Uuid(String),
}

impl Visible {
    /// Reads a list such as `0,2` or `GPU-8932f937`. What follows a word that names no GPU does not count.
    pub(super) fn read(text: &str) -> Self {
        let name = |word: &str| match word.trim().parse() {
            Ok(index) => Some(Name::Index(index)),
            Err(_) if word.trim().starts_with("GPU-") => Some(Name::Uuid(word.trim().to_owned())),
            Err(_) => None,
        };
        Self(text.split(',').map_while(name).collect())
    }

    /// Tells whether a GPU is named.
    pub(super) fn names(&self, index: u32, uuid: &str) -> bool {
        self.0.iter().any(|name| match name {
            Name::Index(named) => *named == index,
            Name::Uuid(prefix) => uuid.starts_with(prefix.as_str()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_by_its_index_or_the_beginning_of_its_uuid() {
        let visible = Visible::read("2, GPU-89,-1,0");
        assert!(visible.names(2, "GPU-1") && visible.names(0, "GPU-8932"));
        assert!(!visible.names(0, "GPU-1"), "nothing counts after a word that names none");
        assert!(!Visible::read("").names(0, "GPU-1"), "an empty list names none");
    }
}

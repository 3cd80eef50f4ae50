//! What a profile changes in the JSON of its slot's requests.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes to the keys at the top of a request's JSON object. A key stands in one of them at most.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Params {
    /// Added where the request does not have the key.
    pub default: BTreeMap<String, Value>,
    /// Put in the place of what the request says, or added.
    pub set: BTreeMap<String, Value>,
    /// Taken out.
    pub strip: BTreeSet<String>,
}

impl Params {
    /// Tells whether every request stays as it is.
    pub fn is_empty(&self) -> bool {
        self.default.is_empty() && self.set.is_empty() && self.strip.is_empty()
    }

    /// Returns these with those of a variant on top: for a key that both name, the variant's count.
    #[must_use]
    pub fn with(&self, variant: &Self) -> Self {
        let is_free = |key: &String| {
            !variant.default.contains_key(key)
                && !variant.set.contains_key(key)
                && !variant.strip.contains(key)
        };
        let mut all = variant.clone();
        let kept = |values: &BTreeMap<String, Value>| -> BTreeMap<String, Value> {
            let kept = values.iter().filter(|(key, _)| is_free(key));
            kept.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        all.default.extend(kept(&self.default));
        all.set.extend(kept(&self.set));
        all.strip.extend(self.strip.iter().filter(|key| is_free(key)).cloned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_counts_for_the_keys_that_it_names() {
        let map = |pairs: &[(&str, i32)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect()
        };
        let slot = Params {
            default: map(&[("a", 1), ("b", 1)]),
            set: map(&[("c", 1), ("d", 1)]),
            strip: ["e".to_owned(), "f".to_owned()].into(),
        };
        let variant =
            Params { default: map(&[("c", 2)]), set: map(&[("a", 2), ("e", 2)]), strip: [].into() };
        let all = slot.with(&variant);
        assert_eq!(all.default, map(&[("b", 1), ("c", 2)]));
        assert_eq!(all.set, map(&[("a", 2), ("d", 1), ("e", 2)]));
        assert_eq!(all.strip, ["f".to_owned()].into());
    }
}

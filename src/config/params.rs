//! The keys of a profile that change its slot's requests: `params`, and `variants` with some of their own.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde_json::Value;

use super::walk::{At, MayBeEmpty, Walk};
use crate::spec::params::Params;

const KEYS: [&str; 3] = ["default", "set", "strip"];

/// What is changed at the top of a request's JSON object.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
#[expect(dead_code, reason = "read by the schema generator only")]
pub(super) struct ParamsShape {
    /// Added where the request does not have the key.
    #[schemars(with = "BTreeMap<String, Value>", extend("default" = {}))]
    default: BTreeMap<String, Value>,
    /// Put in the place of what the request says, or added.
    #[schemars(with = "BTreeMap<String, Value>", extend("default" = {}))]
    set: BTreeMap<String, Value>,
    /// Taken out.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    strip: Vec<String>,
}

/// Takes `params`.
pub(super) fn take(walk: &mut Walk<'_>) -> Params {
    walk.take_table("params", take_params).unwrap_or_default()
}

/// Takes `variants`.
pub(super) fn take_variants(walk: &mut Walk<'_>) -> Vec<(At<String>, Params)> {
    walk.take_named_tables("variants", take_params).unwrap_or_default()
}

fn take_params(walk: &mut Walk<'_>) -> Params {
    walk.refuse_unknown(&KEYS, better_key);
    let mut seen = BTreeSet::new();
    let mut params = Params::default();
    for (name, value) in walk.take_values("default") {
        if is_fine(walk, &name, &mut seen) {
            params.default.insert(name.value, value);
        }
    }
    for (name, value) in walk.take_values("set") {
        if is_fine(walk, &name, &mut seen) {
            params.set.insert(name.value, value);
        }
    }
    for name in walk.take_texts("strip", MayBeEmpty::No).unwrap_or_default() {
        if is_fine(walk, &name, &mut seen) {
            params.strip.insert(name.value);
        }
    }
    params
}

/// Refuses a key that slotd needs as the client wrote it, and one that stands there twice.
fn is_fine(walk: &mut Walk<'_>, name: &At<String>, seen: &mut BTreeSet<String>) -> bool {
    let typed = name.value.as_str();
    if matches!(typed, "model" | "stream") {
        let message = format!("`{typed}` is the client's to say");
        walk.refuse_value(name, message, "take it out");
        return false;
    }
    if !seen.insert(typed.to_owned()) {
        let message = format!("`{typed}` is there twice among `default`, `set` and `strip`");
        walk.refuse_value(name, message, "keep the one that is meant");
        return false;
    }
    true
}

/// Knows what people type who put a parameter beside the three keys.
fn better_key(typed: &str) -> Option<String> {
    let is_parameter = !matches!(typed, "defaults" | "sets" | "override" | "overrides" | "remove");
    (is_parameter && strsim::jaro_winkler(typed, "default") < 0.8).then(|| {
        "write it below `default` (where the request does not say) or `set` (always)".to_owned()
    })
}

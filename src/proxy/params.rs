//! Parameters that a profile adds to requests, puts in the place of others, or takes out. Every byte
//! that is not concerned stays as it came.

use std::{collections::BTreeSet, fmt, ops::Range};

use bytes::Bytes;
use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::spec::params::Params;

/// One key at the top of an object, and where it and its value stand.
#[derive(Debug)]
struct Entry {
    key: String,
    start: usize,
    value: Range<usize>,
}

/// Applies `params` to a JSON object; `None` if nothing changes, or it is none.
pub(super) fn applied(bytes: &Bytes, params: &Params) -> Option<Bytes> {
    let entries = entries(bytes)?;
    let open = bytes.iter().position(|byte| *byte == b'{')?.saturating_add(1);
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut kept = 0_usize;
    for (at, entry) in entries.iter().enumerate() {
        if params.strip.contains(&entry.key) {
            edits.push((stripped(&entries, at, kept), String::new()));
            continue;
        }
        kept = kept.saturating_add(1);
        if let Some(value) = params.set.get(&entry.key) {
            edits.push((entry.value.clone(), value.to_string()));
        }
    }
    let added = added(&entries, params, kept);
    if edits.is_empty() && added.is_empty() {
        return None;
    }
    let end = entries.last().map_or(open, |entry| entry.value.end);
    edits.push((end..end, added));
    spliced(bytes, &edits)
}

/// Returns what goes with an entry that is taken out: the comma before it, or the one after it where
/// nothing is kept in front.
fn stripped(entries: &[Entry], at: usize, kept: usize) -> Range<usize> {
    let Some(entry) = entries.get(at) else { return 0..0 };
    if kept > 0 {
        let before = at.checked_sub(1).and_then(|before| entries.get(before));
        return before.map_or(entry.start, |before| before.value.end)..entry.value.end;
    }
    let next = at.checked_add(1).and_then(|next| entries.get(next));
    entry.start..next.map_or(entry.value.end, |next| next.start)
}

/// Returns the text of the keys that the object does not have.
fn added(entries: &[Entry], params: &Params, kept: usize) -> String {
    let there: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let missing = params.default.iter().chain(&params.set);
    let mut text = String::new();
    for (key, value) in missing.filter(|(key, _)| !there.contains(key.as_str())) {
        if kept > 0 || !text.is_empty() {
            text.push(',');
        }
        text.push_str(&Value::from(key.as_str()).to_string());
        text.push(':');
        text.push_str(&value.to_string());
    }
    text
}

fn spliced(bytes: &Bytes, edits: &[(Range<usize>, String)]) -> Option<Bytes> {
    let more: usize = edits.iter().map(|(_, text)| text.len()).sum();
    let mut all = Vec::with_capacity(bytes.len().saturating_add(more));
    let mut done = 0;
    for (range, text) in edits {
        all.extend_from_slice(bytes.get(done..range.start)?);
        all.extend_from_slice(text.as_bytes());
        done = range.end;
    }
    all.extend_from_slice(bytes.get(done..)?);
    Some(Bytes::from(all))
}

/// Finds the keys at the top of an object, in their order.
fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let pairs = json.deserialize_map(Pairs).ok()?;
    json.end().ok()?;
    let mut entries = Vec::with_capacity(pairs.len());
    let mut from = bytes.iter().position(|byte| *byte == b'{')?;
    for (key, raw) in pairs {
        // The value was borrowed from the body: where it stands is the distance between the two.
        let raw = raw.get().as_bytes();
        let at = raw.as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
        // Between two values, the first quote is that of the key.
        let start = from + bytes.get(from..at)?.iter().position(|byte| *byte == b'"')?;
        let value = at..at.checked_add(raw.len())?;
        from = value.end;
        entries.push(Entry { key, start, value });
    }
    Some(entries)
}

/// Reads an object's pairs as they stand, those with the same key too.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn params(default: &Value, set: &Value, strip: &[&str]) -> Params {
        let map = |value: &Value| serde_json::from_value(value.clone()).unwrap();
        let strip = strip.iter().map(|key| (*key).to_owned()).collect();
        Params { default: map(default), set: map(set), strip }
    }

    fn after(text: &str, params: &Params) -> Option<String> {
        let changed = applied(&Bytes::copy_from_slice(text.as_bytes()), params)?;
        Some(String::from_utf8(changed.to_vec()).unwrap())
    }

    #[test]
    fn what_is_not_concerned_stays_byte_for_byte() {
        let text =
            "{ \"model\" : \"a\",\n\t\"n\":1e3 , \"temperature\": 0.70, \"x\":{\"top_k\":1} }\n";
        let set = params(&json!({"n": 1, "top_k": 5}), &json!({"temperature": 0}), &[]);
        assert_eq!(
            after(text, &set).unwrap(),
            "{ \"model\" : \"a\",\n\t\"n\":1e3 , \"temperature\": 0, \"x\":{\"top_k\":1},\"top_k\":5 }\n"
        );
        let nothing = params(&json!({"n": 1}), &json!({}), &["logprobs"]);
        assert_eq!(after(text, &nothing), None);
    }

    #[test]
    fn keys_are_taken_out_wherever_they_stand() {
        let all = params(&json!({}), &json!({}), &["a", "b"]);
        for (text, left) in [
            (r#"{"a":1,"c":2}"#, r#"{"c":2}"#),
            (r#"{"c":2,"a":1}"#, r#"{"c":2}"#),
            (r#"{"a":1,"b":[2,{"a":3}],"c":2}"#, r#"{"c":2}"#),
            (r#"{"c":2 , "a":1, "b":2}"#, r#"{"c":2}"#),
            (r#"{"a":1,"c":2,"b":2,"d":3,"a":"\",\""}"#, r#"{"c":2,"d":3}"#),
            (r#"{ "a":1 }"#, "{  }"),
            (r#"{"\u0061":1,"c":2}"#, r#"{"c":2}"#),
        ] {
            assert_eq!(after(text, &all).unwrap(), left, "{text}");
        }
    }

    #[test]
    fn every_mixture_is_valid_and_says_what_is_meant() {
        let mixed = params(&json!({"d": 1, "a": 9}), &json!({"s": "x\"y", "c": [1]}), &["t", "u"]);
        let keys = ["a", "c", "d", "s", "t", "u"];
        for choice in 0..64_u32 {
            let has = |at: usize| choice >> at & 1 == 1;
            let there = keys.iter().enumerate().filter(|(at, _)| has(*at));
            let object: serde_json::Map<_, _> =
                there.map(|(_, key)| ((*key).to_owned(), json!("client"))).collect();
            let text = Value::Object(object.clone()).to_string();
            let changed: Value = serde_json::from_str(&after(&text, &mixed).unwrap()).unwrap();
            let of = |key: &str, other: Value| object.get(key).cloned().unwrap_or(other);
            let meant =
                json!({"a": of("a", json!(9)), "c": [1], "d": of("d", json!(1)), "s": "x\"y"});
            assert_eq!(changed, meant, "{text}");
        }
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        let set = params(&json!({}), &json!({"a": 1}), &[]);
        for text in ["", "[]", "{", "--x\r\n{}", "3"] {
            assert_eq!(after(text, &set), None, "{text}");
        }
        assert_eq!(after(" {} ", &set).unwrap(), " {\"a\":1} ");
    }
}

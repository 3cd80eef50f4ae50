//! Schemas by chance, as applications write them: objects, arrays, enumerations, bounds.

use serde_json::{Map, Value, json};

use super::Random;

const NAMES: [&str; 10] =
    ["name", "age", "city", "tags", "price", "in_stock", "kind", "parts", "note", "id"];
const WORDS: [&str; 8] = ["red", "green", "blue", "small", "large", "new", "used", "other"];

/// An object, `depth` levels deep at most.
pub(super) fn object(random: &mut Random, depth: u64) -> Value {
    let mut properties = Map::new();
    let count = 1 + random.below(4);
    while properties.len() < usize::try_from(count).unwrap() {
        let name = NAMES[index(random, NAMES.len())];
        if !properties.contains_key(name) {
            properties.insert(name.to_owned(), value(random, depth));
        }
    }
    let names: Vec<String> = properties.keys().cloned().collect();
    let required: Vec<String> = names.into_iter().filter(|_| random.below(3) > 0).collect();
    json!({ "type": "object", "properties": properties, "required": required,
        "additionalProperties": false })
}

fn value(random: &mut Random, depth: u64) -> Value {
    match random.below(if depth == 0 { 8 } else { 11 }) {
        0 => json!({ "type": "string", "maxLength": 4 + random.below(20) }),
        1 => {
            let from = index(random, WORDS.len() - 3);
            json!({ "type": "string", "enum": WORDS[from..from + 3] })
        }
        2 => {
            let least = random.below(100);
            json!({ "type": "integer", "minimum": least, "maximum": least + 1 + random.below(1000) })
        }
        3 => json!({ "type": "boolean" }),
        4 => json!({ "type": ["string", "null"], "maxLength": 12 }),
        5 => json!({ "type": "string", "pattern": "^[A-Z][a-z]{1,6}-[0-9]{2}$" }),
        6 => json!({ "type": "string", "format": "date" }),
        7 => json!({ "const": WORDS[index(random, WORDS.len())] }),
        8 => object(random, depth - 1),
        9 => json!({ "anyOf": [value(random, depth - 1), { "type": "null" }] }),
        _ => {
            let least = random.below(2);
            json!({ "type": "array", "items": value(random, depth - 1),
                "minItems": least, "maxItems": least + 1 + random.below(2) })
        }
    }
}

fn index(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(u64::try_from(end).unwrap())).unwrap()
}

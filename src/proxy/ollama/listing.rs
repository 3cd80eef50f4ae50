//! Models as Ollama lists them: `/api/tags`, `/api/ps`, `/api/show`. It wakes nothing.

use hyper::{Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::super::{
    depth, listing,
    reply::{Body, Fault, json_response},
    routes::{Route, RouteTable},
};
use crate::spec::{
    date::rfc3339,
    profile::{Capability, EngineChoice, ModelSource, Profile},
};

/// What names without a tag are listed with.
const LATEST: &str = ":latest";
/// When a model was made is not known; clients read a time there.
const UNKNOWN_TIME: u64 = 0;
/// The last moment that every client can read: a model that stays.
const NEVER: &str = "9999-12-31T23:59:59Z";
/// The word for an architecture that is not known; clients look up the context by it.
const ARCHITECTURE: &str = "llm";

/// What of a slot's work this API has a word for.
const HAS: [Capability; 3] = [Capability::Chat, Capability::Completion, Capability::Embed];

/// Finds a model by a name as Ollama's clients write it: with or without the tag `latest`.
pub(super) fn find<'a>(table: &RouteTable, name: &'a str) -> Option<&'a str> {
    let untagged = name.strip_suffix(LATEST);
    [Some(name), untagged].into_iter().flatten().find(|name| table.find(name).is_some())
}

/// Returns a name without the tag `latest`.
pub(super) fn untagged(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}

/// Lists every name that can be asked for what this API has.
pub(super) fn tags(table: &RouteTable) -> Response<Body> {
    let models: Vec<Value> = table
        .listed()
        .filter(|(_, route)| HAS.iter().any(|capability| route.takes(*capability)))
        .map(|(name, route)| {
            let mut entry = entry(name, route);
            entry.insert("modified_at".to_owned(), rfc3339(UNKNOWN_TIME).into());
            Value::Object(entry)
        })
        .collect();
    json_response(StatusCode::OK, &json!({"models": models}))
}

/// Lists slots whose engines take requests.
pub(super) fn ps(table: &RouteTable, unix_ms: u64) -> Response<Body> {
    let ready = table.slots().filter_map(|(slot, route)| {
        let gate = route.gate.as_ref()?;
        let mut entry = entry(slot.as_str(), route);
        let until = route.profile.idle_timeout.map(|idle| {
            let rest = idle.saturating_sub(gate.idle_for());
            rfc3339(unix_ms.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX / 2)))
        });
        entry.insert("expires_at".to_owned(), until.unwrap_or_else(|| NEVER.to_owned()).into());
        // Not known apart from the rest.
        entry.insert("size_vram".to_owned(), 0.into());
        entry.insert("context_length".to_owned(), route.profile.context.unwrap_or(0).into());
        Some(Value::Object(entry))
    });
    json_response(StatusCode::OK, &json!({"models": ready.collect::<Vec<_>>()}))
}

/// Shows one model.
pub(super) fn show(table: &RouteTable, body: &[u8]) -> Result<Response<Body>, Fault> {
    #[derive(Deserialize)]
    struct Asked {
        model: Option<String>,
        /// What older clients send.
        name: Option<String>,
    }
    let asked: Asked = read(body)?;
    let name = asked.model.filter(|name| !name.is_empty()).or(asked.name).unwrap_or_default();
    let route = find(table, &name)
        .and_then(|name| table.find(name))
        .ok_or_else(|| listing::unknown(table, &name))?;
    let profile = &route.profile;
    let mut info = Map::new();
    info.insert("general.architecture".to_owned(), ARCHITECTURE.into());
    info.insert("general.basename".to_owned(), typed(profile).into());
    if let Some(context) = profile.context {
        info.insert(format!("{ARCHITECTURE}.context_length"), context.into());
    }
    let shown = json!({
        "modelfile": format!("# slot `{}` of slotd\nFROM {}\n", route.slot, typed(profile)),
        "parameters": "",
        "template": "",
        "license": "",
        "details": details(profile),
        "model_info": info,
        "capabilities": capabilities(route),
        "modified_at": rfc3339(UNKNOWN_TIME),
    });
    Ok(json_response(StatusCode::OK, &shown))
}

/// Reads the body of a request.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    let invalid = |message| Fault::bad_request(None, "invalid_json", message);
    depth::check(body)?;
    // Asked first: a list would be read as the fields in their order.
    if matches!(body.trim_ascii_start().first(), Some(first) if *first != b'{') {
        return Err(invalid("the request body is no JSON object".to_owned()));
    }
    serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the request body cannot be read: {error}")))
}

fn entry(name: &str, route: &Route) -> Map<String, Value> {
    // A colon before the last slash is one of a host's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    let tagged = if last.contains(':') { name.to_owned() } else { format!("{name}{LATEST}") };
    let entry = json!({
        "name": tagged,
        "model": tagged,
        // What is resident; of a model that is not loaded nothing is known without a look at it.
        "size": route.rss.map_or(0, |rss| rss.0),
        // Tells slots apart: names of the same one have the same.
        "digest": digest(route.slot.as_str()),
        "details": details(&route.profile),
    });
    entry.as_object().cloned().unwrap_or_default()
}

fn digest(slot: &str) -> String {
    let digest = Sha256::digest(slot.as_bytes());
    let halves = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.filter_map(|half| char::from_digit(u32::from(half), 16)).collect()
}

fn details(profile: &Profile) -> Value {
    let quant = match &profile.model {
        Some(ModelSource::Hub { quant: Some(quant), .. }) => quant.as_str(),
        Some(ModelSource::Hub { quant: None, .. } | ModelSource::File { .. }) | None => "",
    };
    let format = match profile.engine {
        EngineChoice::Command(_) | EngineChoice::External(_) => "",
        EngineChoice::Auto | EngineChoice::LlamaServer | EngineChoice::Candle => "gguf",
    };
    json!({
        "parent_model": "", "format": format, "family": "", "families": [],
        "parameter_size": "", "quantization_level": quant,
    })
}

/// What a slot can do, in Ollama's words. Whether a model was taught tools only its template says;
/// engines that take them pass for able.
fn capabilities(route: &Route) -> Vec<&'static str> {
    let profile = &route.profile;
    let mut words = Vec::new();
    if route.offers(Capability::Chat) || route.offers(Capability::Completion) {
        words.push("completion");
    }
    if route.offers(Capability::Chat) && profile.engine != EngineChoice::Candle {
        words.push("tools");
    }
    if profile.args.iter().any(|arg| arg.starts_with("--mmproj")) {
        words.push("vision");
    }
    if route.offers(Capability::Embed) {
        words.push("embedding");
    }
    words
}

fn typed(profile: &Profile) -> String {
    profile.model.as_ref().map_or_else(|| profile.slot.to_string(), ModelSource::typed)
}

//! `GET /v1/models`: everything a client may ask for, loaded or not. It wakes nothing.

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Shared,
    reply::{Body, Fault, json_response},
    routes::{Route, RouteTable},
};
use crate::spec::profile::Capability;

/// How many names an error lists at most.
const SHOWN: usize = 20;

/// Lists every slot and alias, and what the fall-through upstream is known to have.
pub(super) fn all(shared: &Shared) -> Response<Body> {
    let table = shared.routes.load();
    let elsewhere = shared.fall_through.iter().flat_map(|upstream| upstream.names());
    let elsewhere = elsewhere.filter(|name| table.find(name).is_none()).map(entry_elsewhere);
    let data: Vec<Value> =
        table.listed().map(|(name, route)| entry(name, route)).chain(elsewhere).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// Shows one model by any name that leads to it.
pub(super) fn one(shared: &Shared, name: &str) -> Response<Body> {
    let table = shared.routes.load();
    let mut elsewhere = shared.fall_through.iter().flat_map(|upstream| upstream.names());
    match table.find(name) {
        Some(route) => json_response(StatusCode::OK, &entry(name, route)),
        None if elsewhere.any(|one| one == name) => {
            json_response(StatusCode::OK, &entry_elsewhere(name))
        }
        None => unknown(&table, name).response(),
    }
}

/// Shows a model of the fall-through upstream, which is not asked.
fn entry_elsewhere(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "fall-through"})
}

/// Says that no slot answers to `name`, and what there is.
pub(super) fn unknown(table: &RouteTable, name: &str) -> Fault {
    // It may be a megabyte: cut before anything is compared with it or told about it.
    let name: String = name.chars().take(100).collect();
    let listed: Vec<_> = table.listed().map(|(name, _)| format!("`{name}`")).collect();
    let there_is = match listed.len().checked_sub(SHOWN) {
        None | Some(0) if listed.is_empty() => "no slot is configured".to_owned(),
        None | Some(0) => format!("there is {}", listed.join(", ")),
        Some(more) => {
            let shown: Vec<_> = listed.into_iter().take(SHOWN).collect();
            format!("there is {} and {more} more, see `GET /v1/models`", shown.join(", "))
        }
    };
    let nearest =
        table.nearest(&name).map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
    Fault::unknown_model(format!("model `{name}` is not served here; {nearest}{there_is}"))
}

fn entry(name: &str, route: &Route) -> Value {
    let profile = &route.profile;
    let capabilities: Vec<_> = Capability::ALL
        .into_iter()
        .filter(|capability| route.offers(*capability))
        .map(Capability::as_str)
        .collect();
    json!({
        "id": name,
        "object": "model",
        // When a model was made is not known; the key must be there.
        "created": 0,
        "owned_by": "slotd",
        "slot": route.slot,
        "state": route.state,
        "engine": route.engine_word(),
        "rung": route.rung,
        "model": profile.model_name(),
        "aliases": profile.aliases,
        "routes": profile.routes,
        "capabilities": capabilities,
    })
}

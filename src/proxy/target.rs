//! Which slot a request is for, and which path of its engine.

use std::sync::Arc;

use hyper::Uri;

use super::{
    body::Asked,
    listing,
    replicas::Candidates,
    reply::Fault,
    routes::{Replicas, Route, RouteTable},
    surface::{UPSTREAM, Work},
};
use crate::spec::{SlotName, profile::Profile};

/// The slots that may serve, and a path of their engines.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) candidates: Candidates,
    pub(super) path: Uri,
    /// What the slot's requests are treated by.
    pub(super) profile: Arc<Profile>,
}

/// Finds the slot that is to do some work.
///
/// 1. The request names a model: that one, and no other.
/// 2. It names none: the only slot that can do the work.
pub(super) fn of_work(
    table: &RouteTable,
    asked: &Asked,
    (uri, work): (&Uri, Work),
) -> Result<Target, Fault> {
    let is_fit = |route: &Route| !work.is_unknown_to(route.engine_word());
    let replicas = match &asked.model {
        Some(model) => table.replicas(model).ok_or_else(|| listing::unknown(table, model))?, // (1)
        None => table
            .only(work.capability, is_fit)
            .and_then(|route| table.replicas(route.slot.as_str()))
            .ok_or_else(|| {
                if work.is_kept() {
                    unknown_response(table, work)
                } else {
                    nobody_named(table, work, uri.path())
                }
            })?, // (2)
    };
    let can = |slot: &&SlotName| {
        let route = table.slot(slot);
        route.is_some_and(|route| is_fit(route) && route.takes(work.capability))
    };
    let mut fit: Vec<SlotName> = replicas.slots.iter().filter(can).cloned().collect();
    // They are sent the same path: one by which another engine knows the work is left out.
    let known_as = |slot: &SlotName| table.slot(slot).map(|route| path_at(route, uri));
    if let Some(path) = fit.first().and_then(known_as) {
        fit.retain(|slot| known_as(slot).as_ref() == Some(&path));
    }
    let replicas = match fit.first().and_then(|slot| table.slot(slot)) {
        Some(first) => Replicas { first, slots: &fit, ..replicas },
        // The refusals below say why.
        None => replicas,
    };
    let route = replicas.first;
    if !is_fit(route) {
        let message = format!(
            "slot `{}` runs on `{}`, which has no `{}`; {}",
            route.slot,
            route.engine_word(),
            uri.path(),
            who_can(table, work)
        );
        return Err(Fault::not_found("path_not_served", message));
    }
    if !route.takes(work.capability) {
        let says = match route.sole {
            Some(sole) => format!("its model does `{}` alone", sole.as_str()),
            None => "`capabilities` in its profile says for what".to_owned(),
        };
        let message = format!(
            "slot `{}` is not offered for `{}`; {says}; {}",
            route.slot,
            work.capability.as_str(),
            who_can(table, work)
        );
        return Err(Fault::bad_request(Some("model"), "capability_not_offered", message));
    }
    let body = asked.payload.in_memory().map(|bytes| &bytes[..]).unwrap_or_default();
    let candidates = Candidates::new(&replicas, body);
    Ok(Target { candidates, path: path_at(route, uri), profile: Arc::clone(&route.profile) })
}

/// Finds the slot that a path below [`UPSTREAM`] names, by any of its names, also one with slashes.
pub(super) fn of_path(table: &RouteTable, uri: &Uri) -> Result<Target, Fault> {
    let rest = uri.path().strip_prefix(UPSTREAM).unwrap_or_default();
    let ends = rest.match_indices('/').map(|(at, _)| at).chain([rest.len()]);
    for (name, path) in ends.take(8).filter_map(|end| rest.split_at_checked(end)) {
        let Some(replicas) = table.replicas(&decoded(name)) else { continue };
        let path = if path.is_empty() { "/" } else { path };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{path}{query}").parse().map_err(|_| {
            Fault::bad_request(None, "bad_path", "the rest of the path is none".to_owned())
        })?;
        let profile = Arc::clone(&replicas.first.profile);
        return Ok(Target { candidates: Candidates::new(&replicas, &[]), path, profile });
    }
    let name = rest.split('/').next().unwrap_or_default();
    Err(listing::unknown(table, &decoded(name)))
}

/// Returns the path as the engine knows it. An absolute form names a host, which is not the engine's.
fn path_at(route: &Route, uri: &Uri) -> Uri {
    let is_ours = matches!(route.engine_word(), "llama-server" | "auto" | "candle");
    if is_ours && uri.path() == "/v2/rerank" {
        return Uri::from_static("/v1/rerank");
    }
    uri.path_and_query().cloned().map_or_else(|| uri.clone(), Uri::from)
}

/// slotd keeps no responses, and which engine may is not known.
fn unknown_response(table: &RouteTable, work: Work) -> Fault {
    let message = format!(
        "slotd keeps no responses, and which engine may have this one is not known: name its slot as \
         `?model=` if it keeps them; {}",
        who_can(table, work)
    );
    Fault::not_found("response_not_found", message)
}

fn nobody_named(table: &RouteTable, work: Work, path: &str) -> Fault {
    let message = format!(
        "the request names no `model`, and `{path}` has not exactly one slot; {}",
        who_can(table, work)
    );
    Fault::bad_request(Some("model"), "missing_model", message)
}

/// Names the slots that can do some work, or says what a profile for it has to say.
fn who_can(table: &RouteTable, work: Work) -> String {
    const SHOWN: usize = 8;
    let is_fit = |route: &Route| !work.is_unknown_to(route.engine_word());
    let able: Vec<String> = table
        .offered(work.capability, is_fit)
        .take(SHOWN)
        .map(|route| format!("`{}`", route.slot))
        .collect();
    if able.is_empty() {
        return format!(
            "no slot can: it takes a profile with `capabilities = [\"{}\"]` and an engine that has it",
            work.capability.as_str()
        );
    }
    format!("slots that can: {}", able.join(", "))
}

/// Undoes percent-encoding; what is no encoding stays as it is.
pub(super) fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digits = [*high, *low];
                std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_decoded_and_odd_percent_signs_stay() {
        assert_eq!(decoded("org%2Frepo%3AQ4"), "org/repo:Q4");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }
}

//! A request's place in a trace: taken from the client, passed on to the engine, told back.
//!
//! Only who traces gets this; nothing is made up for the others.
//! Source: W3C Trace Context, `traceparent`, version 00.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Puts slotd's own span in the place of the client's: the engine's parent. Returns what the client
/// is told. One that is not valid is taken out.
pub(super) fn continue_trace(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let theirs = headers.remove(TRACEPARENT)?;
    let ours = child(theirs.to_str().ok()?, new_id())?;
    let value = HeaderValue::try_from(ours).ok()?;
    headers.insert(TRACEPARENT, value.clone());
    Some(value)
}

fn child(parent: &str, span: u64) -> Option<String> {
    let fields: Vec<&str> = parent.split('-').collect();
    let [version @ "00", trace, parent, flags] = fields.as_slice() else { return None };
    let is_hex = |field: &str, length: usize| {
        field.len() == length && field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |field: &str, length| is_hex(field, length) && field.bytes().any(|b| b != b'0');
    let is_valid = is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    is_valid.then(|| format!("{version}-{trace}-{span:016x}-{flags}"))
}

/// Not all zeros, and not the same twice.
fn new_id() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    HASHER.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_stays_and_the_span_is_ours() {
        let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let ours = "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ff-01";
        assert_eq!(child(theirs, 255).as_deref(), Some(ours));
        for odd in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(child(odd, 255), None, "{odd}");
        }
        assert_ne!(new_id(), new_id());
    }
}

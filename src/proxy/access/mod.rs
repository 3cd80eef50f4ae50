//! Who may speak to the endpoint: what the request calls this machine, which page it comes from,
//! which key it has.
//!
//! ```text
//! request ─▶ site (Host, Origin) ─▶ preflight? answered ─▶ key (role of the path) ─▶ route
//! ```

mod site;
mod turns;

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hyper::{
    HeaderMap, Method, Request,
    header::{AUTHORIZATION, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL},
};

use self::site::{Page, Site};
pub use self::turns::Turns;
pub(super) use self::{
    site::{is_preflight, let_read, preflight},
    turns::Turn,
};
use super::{reply::Fault, tls::Certificate};
use crate::{
    config::keys::{Key, Keys, Role},
    spec::control::is_control,
};

/// Paths that anybody may read: they tell whether the daemon lives, and nothing else.
const OPEN: [&str; 5] = ["/", "/health", "/healthz", "/livez", "/readyz"];
/// What stands before a key among the protocols of a web socket.
const SUBPROTOCOL_KEY: &[u8] = b"openai-insecure-api-key.";
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The key that a request came with.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) name: Arc<str>,
    /// How many requests it may have in flight.
    most: Option<u32>,
}

/// A key has as many requests in flight as it may.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoTurn;

/// Who asks models.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// Nobody is asked for a key.
    Anybody,
    /// The one with this key.
    Known(Caller),
    /// Somebody without the key that it takes.
    Nobody,
}

/// What decides who may speak to the endpoint; the default is this machine alone, without keys.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The keys in force; replaced whole by the runtime.
    pub keys: Arc<ArcSwap<Keys>>,
    /// Names of this machine besides those of loopback, in lower case.
    pub hosts: Vec<String>,
    /// Origins of pages that may ask and read the answer.
    pub origins: Vec<String>,
    /// How many requests each key may have in flight whose own line does not say.
    pub max_in_flight: Option<u32>,
    /// How many it has.
    pub turns: Arc<Turns>,
    /// What the endpoint shows its clients, where it speaks TLS; replaced whole by the runtime.
    pub certificate: Option<Arc<ArcSwap<Certificate>>>,
}

impl Access {
    /// Refuses requests that were not meant for this machine, or come from pages that may not ask.
    /// Returns the page's origin if it may read the answer. `local` is where the connection arrived.
    pub(super) fn page<T>(
        &self,
        request: &Request<T>,
        local: Option<IpAddr>,
    ) -> Result<Page, Fault> {
        let site = Site { hosts: &self.hosts, origins: &self.origins, local };
        site.check(request.uri(), request.headers())
    }

    /// Tells whether a `Host` names this machine.
    pub(super) fn is_host(&self, host: &str, local: Option<IpAddr>) -> bool {
        Site { hosts: &self.hosts, origins: &self.origins, local }.is_ours(host)
    }

    /// Looks for the key of somebody who asks models, by the values of `authorization` and `x-api-key`.
    pub(super) fn asker(
        &self,
        (authorization, x_api_key): (Option<&[u8]>, Option<&[u8]>),
    ) -> Asker {
        let keys = self.keys.load();
        if **keys == Keys::Unasked {
            return Asker::Anybody;
        }
        let shown = [authorization.and_then(bearer), x_api_key].into_iter().flatten();
        let shown = shown.map(<[u8]>::trim_ascii).filter(|key| !key.is_empty());
        let key = shown.filter_map(|key| keys.find(key)).find(|key| key.role == Role::Infer);
        key.map_or(Asker::Nobody, |key| Asker::Known(self.known(key)))
    }

    fn known(&self, key: &Key) -> Caller {
        Caller { name: Arc::clone(&key.name), most: key.max_in_flight.or(self.max_in_flight) }
    }

    /// Refuses requests whose key does not open their path. Returns the key.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Option<Caller>, Fault> {
        let Some(role) = needed(request.method(), request.uri().path()) else { return Ok(None) };
        let keys = self.keys.load();
        if **keys == Keys::Unasked && role == Role::Infer {
            return Ok(None);
        }
        let shown: Vec<&[u8]> = presented(request.headers()).collect();
        if shown.is_empty() {
            return Err(refused("missing_api_key", role, "a key is needed"));
        }
        // A client may send what it always sends in one header, and the right key in another.
        let known: Vec<&Key> = shown.into_iter().filter_map(|key| keys.find(key)).collect();
        match (known.iter().find(|key| key.role == role), known.first()) {
            (Some(key), _) => Ok(Some(self.known(key))),
            (None, Some(key)) => Err(wrong_role(key, role)),
            (None, None) => Err(refused("invalid_api_key", role, "the key is not known here")),
        }
    }

    /// Counts a request of a key if there is a turn for it. Nothing is counted, nobody is refused if not.
    pub(super) fn free_turn(&self, caller: Option<&Caller>) -> Result<Option<Arc<Turn>>, NoTurn> {
        let Some((caller, most)) = caller.and_then(|caller| Some((caller, caller.most?))) else {
            return Ok(None);
        };
        self.turns.try_take(&caller.name, most).map(Some).ok_or(NoTurn)
    }

    /// Counts a request of a key, until the turn is let go of.
    pub(super) fn turn(&self, caller: Option<&Caller>) -> Result<Option<Arc<Turn>>, Fault> {
        let Some((caller, most)) = caller.and_then(|caller| Some((caller, caller.most?))) else {
            return Ok(None);
        };
        let turn = self.turns.take(&caller.name, most);
        turn.map(Some).ok_or_else(|| Fault::key_is_busy(&caller.name, most))
    }
}

fn refused(code: &'static str, role: Role, what: &str) -> Fault {
    let option = match role {
        Role::Infer => "",
        Role::Admin => "--admin ",
    };
    let message = format!(
        "{what}: send `Authorization: Bearer KEY` or `x-api-key: KEY`; `slotd key new {option}NAME` \
         makes one, in the file that `keys` in slotd.toml names"
    );
    Fault::unauthorized(code, message)
}

/// Which role a request needs; a path that nobody thought of needs a key.
fn needed(method: &Method, path: &str) -> Option<Role> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    if is_read && OPEN.contains(&path) {
        return None;
    }
    Some(if is_control(path) { Role::Admin } else { Role::Infer })
}

/// Returns the key in a value of `authorization`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

/// Returns the keys that a request shows, one a header at most.
fn presented(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let plain = headers.get(X_API_KEY).map(HeaderValue::as_bytes);
    let keys = [bearer, plain, subprotocol_key(headers)].into_iter().flatten();
    keys.map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}

/// Web pages cannot set headers of a web socket; OpenAI's clients put the key among its protocols.
/// Source: openai-node, `src/realtime/websocket.ts`.
fn subprotocol_key(headers: &HeaderMap) -> Option<&[u8]> {
    let protocols = headers.get(SEC_WEBSOCKET_PROTOCOL)?.as_bytes().split(|byte| *byte == b',');
    protocols.map(<[u8]>::trim_ascii).find_map(|one| one.strip_prefix(SUBPROTOCOL_KEY))
}

/// Takes a key out of a web socket's protocols.
pub(super) fn without_key(protocols: &HeaderValue) -> Option<HeaderValue> {
    let kept: Vec<&[u8]> = protocols
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|one| !one.starts_with(SUBPROTOCOL_KEY))
        .collect();
    HeaderValue::from_bytes(&kept.join(&b", "[..])).ok().filter(|kept| !kept.is_empty())
}

fn wrong_role(key: &Key, role: Role) -> Fault {
    let message = match role {
        Role::Infer => format!(
            "the key `{}` gives orders to the daemon; asking models takes one of `slotd key new NAME`",
            key.name
        ),
        Role::Admin => format!(
            "the key `{}` asks models; orders take one of `slotd key new --admin NAME`",
            key.name
        ),
    };
    Fault::forbidden("wrong_role", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_but_those_of_health_needs_a_key() {
        for (method, path, role) in [
            (Method::GET, "/health", None),
            (Method::HEAD, "/", None),
            (Method::POST, "/health", Some(Role::Infer)),
            (Method::GET, "/health/", Some(Role::Infer)),
            (Method::GET, "/v1/models", Some(Role::Infer)),
            (Method::POST, "/v1/chat/completions", Some(Role::Infer)),
            (Method::GET, "/nobody/thought/of", Some(Role::Infer)),
            (Method::GET, "/v1/slots", Some(Role::Admin)),
            (Method::POST, "/v1/slots/chat/load", Some(Role::Admin)),
            (Method::POST, "/v1/daemon/upgrade", Some(Role::Admin)),
            (Method::DELETE, "/v1/requests/3", Some(Role::Admin)),
            (Method::POST, "/v1/plan", Some(Role::Admin)),
            (Method::GET, "/v1/inventory", Some(Role::Admin)),
            (Method::DELETE, "/v1/pulls/3", Some(Role::Admin)),
            (Method::POST, "/v1/fit", Some(Role::Admin)),
            (Method::GET, "/v1/slotsx", Some(Role::Infer)),
            (Method::GET, "/v1/../v1/slots", Some(Role::Infer)),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let of = |name: &'static str, value: &'static str| {
            let headers = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
            presented(&headers.into_iter().collect()).next().map(<[u8]>::to_vec)
        };
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("authorization", "bEaReR  k "),
            ("x-api-key", " k"),
            ("sec-websocket-protocol", "realtime, openai-insecure-api-key.k, b"),
        ] {
            assert_eq!(of(name, value).as_deref(), Some(b"k".as_slice()), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "k"),
            ("authorization", "Basic k"),
            ("authorization", "Bearer"),
            ("authorization", "Bearer "),
            ("x-api-key", ""),
            ("cookie", "k"),
            ("sec-websocket-protocol", "realtime, k"),
        ] {
            assert_eq!(of(name, value), None, "{name}: {value}");
        }
    }
}

//! Who may speak to the endpoint: what the request calls this machine, which page it comes from,
//! which key it has.
//!
//! ```text
//! request ─▶ site (Host, Origin) ─▶ preflight? answered ─▶ key (role of the path) ─▶ route
//! ```

mod site;

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hyper::{
    Method, Request,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};

use self::site::{Page, Site};
pub(super) use self::site::{is_preflight, let_read, preflight};
use super::{reply::Fault, tls::Certificate};
use crate::config::keys::{Key, Keys, Role};

/// Paths that anybody may read: they tell whether the daemon lives, and nothing else.
const OPEN: [&str; 5] = ["/", "/health", "/healthz", "/livez", "/readyz"];
/// Paths of orders, and what is below them.
const CONTROL: [&str; 2] = ["/v1/slots", "/v1/daemon"];
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The name of the key that a request came with.
#[derive(Clone, Debug)]
pub(super) struct KeyName(pub(super) Arc<str>);

/// Who asks models.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Caller {
    /// Nobody is asked for a key.
    Anybody,
    /// The one whose key has this name.
    Known(Arc<str>),
    /// Somebody without the key that it takes.
    Unknown,
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

    /// Tells whether somebody with these values of `authorization` and `x-api-key` may ask models.
    pub(super) fn caller_of(&self, values: (Option<&[u8]>, Option<&[u8]>)) -> Caller {
        let keys = self.keys.load();
        if **keys == Keys::Unasked {
            return Caller::Anybody;
        }
        match presented(values).and_then(|presented| keys.find(presented)) {
            Some(key) if key.role == Role::Infer => Caller::Known(key.name.as_str().into()),
            Some(_) | None => Caller::Unknown,
        }
    }

    /// Refuses requests whose key does not open their path. Returns the name of the key.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Option<String>, Fault> {
        let Some(role) = needed(request.method(), request.uri().path()) else { return Ok(None) };
        let keys = self.keys.load();
        if **keys == Keys::Unasked && role == Role::Infer {
            return Ok(None);
        }
        let headers = request.headers();
        let value = |name| headers.get(name).map(HeaderValue::as_bytes);
        let Some(presented) = presented((value(AUTHORIZATION), value(X_API_KEY))) else {
            return Err(refused("missing_api_key", role, "a key is needed"));
        };
        match keys.find(presented) {
            Some(key) if key.role == role => Ok(Some(key.name.clone())),
            Some(key) => Err(wrong_role(key, role)),
            None => Err(refused("invalid_api_key", role, "the key is not known here")),
        }
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

/// Tells whether a path is one of the control API's.
pub(super) fn is_control(path: &str) -> bool {
    CONTROL.iter().any(|control| {
        path.strip_prefix(control).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Returns the key that a request shows.
fn presented<'a>(
    (authorization, x_api_key): (Option<&'a [u8]>, Option<&'a [u8]>),
) -> Option<&'a [u8]> {
    let bearer = authorization.and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| x_api_key.map(<[u8]>::trim_ascii)).filter(|key| !key.is_empty())
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
            (Method::GET, "/v1/slotsx", Some(Role::Infer)),
            (Method::GET, "/v1/../v1/slots", Some(Role::Infer)),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let of = |name: &str, value: &'static str| {
            let value_of = |one| (name == one).then_some(value.as_bytes());
            presented((value_of("authorization"), value_of("x-api-key"))).map(<[u8]>::to_vec)
        };
        for (name, value) in
            [("authorization", "Bearer k"), ("authorization", "bEaReR  k "), ("x-api-key", " k")]
        {
            assert_eq!(of(name, value).as_deref(), Some(b"k".as_slice()), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "k"),
            ("authorization", "Basic k"),
            ("authorization", "Bearer"),
            ("authorization", "Bearer "),
            ("x-api-key", ""),
            ("cookie", "k"),
        ] {
            assert_eq!(of(name, value), None, "{name}: {value}");
        }
    }
}

//! Whom a request means, and which page it comes from.
//!
//! A page of another site reaches this machine by a name that it made point here (its own name is
//! then the `Host`), or by a cross-site request (its own name is then the `Origin`). An address
//! cannot be pointed elsewhere, so that the one that a connection came to is a fine `Host`.
//!
//! Source: RFC 9112 section 3.2; the Fetch standard, sections 3.2 (CORS) and 3.4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderName, HeaderValue, ORIGIN, VARY,
    },
    http::uri::Authority,
};

use super::super::reply::{Body, Fault, insert, text};

const PRIVATE_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");
/// The most bytes of names of headers that a preflight is answered with.
const MOST_NAMES: usize = 4096;

/// The page that asks, if it may read the answer.
pub(in super::super) type Page = Option<HeaderValue>;

/// What a listener goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    /// Names of this machine besides those of loopback, in lower case.
    pub(super) hosts: &'a [String],
    /// Origins of pages that may ask and read the answer.
    pub(super) origins: &'a [String],
    /// The address that the connection came to.
    pub(super) local: Option<IpAddr>,
}

impl Site<'_> {
    /// Refuses requests whose `Host` or `Origin` is none of ours.
    pub(super) fn check(self, uri: &Uri, headers: &HeaderMap) -> Result<Page, Fault> {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            let message = "a request has exactly one `Host` header".to_owned();
            return Err(Fault::bad_request(None, "host_refused", message));
        };
        let host = host.to_str().unwrap_or_default();
        if !self.is_ours(host) {
            let message = "the `Host` header does not name this machine (localhost, 127.0.0.1, \
                           [::1], the address that it listens on, or one of `allowed_hosts` in \
                           slotd.toml)";
            let status = StatusCode::FORBIDDEN;
            return Err(Fault::refused(status, "host_refused", message.to_owned()));
        }
        let target = uri.authority().map(Authority::as_str);
        if target.is_some_and(|target| !target.eq_ignore_ascii_case(host)) {
            let message = "the request's target names another host than its `Host` header";
            return Err(Fault::bad_request(None, "host_refused", message.to_owned()));
        }
        self.check_page(host, headers)
    }

    fn check_page(self, host: &str, headers: &HeaderMap) -> Result<Page, Fault> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let (origin, second) = (origins.next(), origins.next());
        let text = origin.and_then(|origin| origin.to_str().ok());
        if second.is_none() && text.is_some_and(|text| self.origins.iter().any(|o| o == text)) {
            return Ok(origin.cloned());
        }
        let is_from_elsewhere = match (origin, text) {
            (None, _) => headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site"),
            (Some(_), text) => !text.is_some_and(|text| is_local_page(text, host)),
        };
        if is_from_elsewhere || second.is_some() {
            let message = "web pages from elsewhere may not ask; `cors_origins` in slotd.toml \
                           lists those that may (`Origin` header)";
            let status = StatusCode::FORBIDDEN;
            return Err(Fault::refused(status, "origin_refused", message.to_owned()));
        }
        Ok(None)
    }

    /// Reads `name` or `name:port`.
    pub(super) fn is_ours(self, authority: &str) -> bool {
        let name = name_of(authority);
        is_loopback(name)
            || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
            || address_of(name).is_some_and(|address| {
                self.local.is_some_and(|local| local.to_canonical() == address)
            })
    }
}

/// Tells whether a page is of this machine, or of the very host that it asks.
fn is_local_page(origin: &str, host: &str) -> bool {
    let authority = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    authority.is_some_and(|authority| {
        is_loopback(name_of(authority)) || authority.eq_ignore_ascii_case(host)
    })
}

fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => authority,
    }
}

fn address_of(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || address_of(name).is_some_and(|address| address.is_loopback())
}

/// Tells whether a browser asks what a page may send.
pub(in super::super) fn is_preflight<T>(request: &Request<T>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers a preflight of a page that may ask: every header that it wants to send, but cookies, which
/// are never asked for.
pub(in super::super) fn preflight<T>(request: &Request<T>) -> Response<Body> {
    let asked = request.headers();
    let mut response = text(StatusCode::NO_CONTENT, "");
    let headers = response.headers_mut();
    headers.clear();
    insert(headers, ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE, OPTIONS");
    insert(headers, ACCESS_CONTROL_ALLOW_HEADERS, &names(asked));
    insert(headers, ACCESS_CONTROL_MAX_AGE, "86400");
    if asked.get(PRIVATE_ASKED).is_some_and(|asked| asked == "true") {
        insert(headers, PRIVATE_ALLOWED, "true");
    }
    insert(
        headers,
        VARY,
        "access-control-request-method, access-control-request-headers, \
         access-control-request-private-network",
    );
    response
}

/// Lists the headers that a page wants to send, as far as they are names of headers.
fn names(asked: &HeaderMap) -> String {
    let mut names = String::from("authorization, content-type, x-api-key");
    let wanted = asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    for name in wanted.filter_map(|names| names.to_str().ok()).flat_map(|names| names.split(',')) {
        let Ok(name) = HeaderName::from_bytes(name.trim().as_bytes()) else { continue };
        // A star would stand for headers that nobody named.
        let is_there = name == "*" || names.split(", ").any(|there| there == name.as_str());
        if !is_there && names.len() + name.as_str().len() < MOST_NAMES {
            names.push_str(", ");
            names.push_str(name.as_str());
        }
    }
    names
}

/// Lets the page that asked read the answer. Caches are told that another page may not: `origins`
/// says whether any may.
pub(in super::super) fn let_read(headers: &mut HeaderMap, origins: &[String], page: Page) {
    if origins.is_empty() {
        return;
    }
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(page) = page {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, page);
        let exposed = "x-request-id, x-slotd-slot, x-slotd-throttle, x-should-retry, retry-after, retry-after-ms, allow";
        insert(headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Site<'static> = Site { hosts: &[], origins: &[], local: None };

    fn is_this_machine(host: &str) -> bool {
        OURS.is_ours(host)
    }

    fn takes_origin(origin: &str) -> bool {
        is_local_page(origin, "localhost:7568")
    }

    #[test]
    fn only_this_machines_names_are_hosts() {
        let ours =
            ["localhost", "LOCALHOST:7568", "127.0.0.1:1", "127.0.0.2:1", "[::1]:7568", "[::1]"];
        for host in ours {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "localhost.evil.com",
            "evil.com",
            "localhost.",
            "localhost@evil.com",
            "127.0.0.1.evil.com",
            "0x7f.1",
            "2130706433",
            "[::ffff:127.0.0.1]",
            "",
            ":80",
            "localhost:",
            "localhost:80:80",
            "[::1%lo]",
            "[::1",
            "::1",
            "127.1",
            "0177.0.0.1",
            "0",
            "localhost evil.com",
            "localhost,evil.com",
            "localhost/",
            "localhost#",
            "xn--lcalhost",
            "127.0.0.1:99x",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn pages_of_this_machine_may_ask_and_others_may_not() {
        assert!(takes_origin("http://localhost:3000"));
        for origin in ["null", "file://", "http://evil.com", "app://localhost", "http://"] {
            assert!(!takes_origin(origin), "{origin}");
        }
    }

    #[test]
    fn the_address_that_a_connection_came_to_is_a_host_and_its_neighbour_is_none() {
        let local = Some("192.168.1.4".parse().unwrap());
        let hosts = ["gpu-box.lan".to_owned()];
        let site = Site { hosts: &hosts, origins: &[], local };
        for host in ["192.168.1.4", "192.168.1.4:7568", "GPU-box.lan:80", "localhost"] {
            assert!(site.is_ours(host), "{host}");
        }
        for host in ["192.168.1.5", "gpu-box", "a.gpu-box.lan", "gpu-box.lan.", "[::1%1]"] {
            assert!(!site.is_ours(host), "{host}");
        }
        let mapped = Site { local: Some("::ffff:192.168.1.4".parse().unwrap()), ..site };
        assert!(mapped.is_ours("192.168.1.4"));
        assert!(is_local_page("https://gpu-box.lan:7568", "GPU-box.lan:7568"));
        assert!(!is_local_page("https://gpu-box.lan", "gpu-box.lan:7568"));
    }
}

//! Who may speak to a listener on loopback: programs of this machine, not pages of a browser that
//! was talked into it.
//!
//! A page of another site reaches loopback by a name that it made point there (its own name is then
//! the `Host`), or by a cross-site request (its own name is then the `Origin`).

use std::net::SocketAddr;

use hyper::{
    HeaderMap, StatusCode,
    header::{HOST, ORIGIN},
};

use super::reply::Fault;

/// What a listener's address asks of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// The listener is on loopback: requests name this machine.
    ThisMachine,
    /// The listener can be reached from elsewhere, under names that slotd does not know. Pages of
    /// other sites are refused all the same.
    Anyone,
}

impl Access {
    /// Returns what a listener on `address` asks.
    pub(super) fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::ThisMachine } else { Self::Anyone }
    }

    /// Refuses requests whose `Host` or `Origin` is not as it must be.
    pub(super) fn check(self, headers: &HeaderMap) -> Result<(), Fault> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let is_named = match self {
            Self::ThisMachine => host.is_some_and(is_this_machine),
            Self::Anyone => true,
        };
        if hosts.next().is_some() || !is_named {
            let message =
                "the `Host` header does not name this machine (localhost, 127.0.0.1 or [::1])";
            return Err(Fault::refused(StatusCode::FORBIDDEN, "host_refused", message.to_owned()));
        }
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        if origin.to_str().is_ok_and(|origin| self.takes_origin(origin, host)) {
            return Ok(());
        }
        let message = "requests of web pages from elsewhere are refused (`Origin` header)";
        Err(Fault::refused(StatusCode::FORBIDDEN, "origin_refused", message.to_owned()))
    }

    /// A page of this machine, or where the listener is open, of the host that was asked.
    fn takes_origin(self, origin: &str, host: Option<&str>) -> bool {
        let Some(authority) = ["http://", "https://"].iter().find_map(|s| origin.strip_prefix(s))
        else {
            return false;
        };
        is_this_machine(authority) || (self == Self::Anyone && host == Some(authority))
    }
}

/// Reads `name` or `name:port`.
fn is_this_machine(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => authority,
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_hosts() {
        for host in ["localhost", "LOCALHOST:7568", "127.0.0.1:1", "[::1]:7568", "[::1]"] {
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
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn pages_of_this_machine_may_ask_and_others_may_not() {
        let takes = |origin| Access::ThisMachine.takes_origin(origin, Some("localhost:7568"));
        assert!(takes("http://localhost:3000"));
        for origin in ["null", "file://", "http://evil.com", "app://localhost", "http://"] {
            assert!(!takes(origin), "{origin}");
        }
    }

    #[test]
    fn an_open_listener_takes_any_host_and_its_own_pages() {
        let open = Access::of("0.0.0.0:7568".parse().unwrap());
        let header = |name, text| (name, hyper::header::HeaderValue::from_static(text));
        let host = header(HOST, "box:7568");
        let asks = |more: &[_]| {
            let headers: HeaderMap = [host.clone()].into_iter().chain(more.to_vec()).collect();
            open.check(&headers).is_ok()
        };
        assert!(asks(&[]));
        assert!(asks(&[header(ORIGIN, "http://box:7568")]));
        assert!(!asks(&[header(ORIGIN, "http://evil.com")]));
        assert_eq!(Access::of("[::1]:1".parse().unwrap()), Access::ThisMachine);
        assert_eq!(Access::of("[::ffff:127.0.0.1]:1".parse().unwrap()), Access::ThisMachine);
    }
}

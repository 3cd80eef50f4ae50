//! Who may speak to a listener on loopback: programs of this machine, not pages of a browser that
//! was talked into it.
//!
//! A page of another site reaches loopback by a name that it made point there (its own name is then
//! the `Host`), or by a cross-site request (its own name is then the `Origin`).

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::{
    HeaderMap, StatusCode,
    header::{HOST, ORIGIN},
};

use super::reply::Fault;

/// Refuses requests whose `Host` or `Origin` does not name this machine.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let is_named = hosts.next().is_some_and(|host| host.to_str().is_ok_and(is_this_machine));
    if hosts.next().is_some() || !is_named {
        let message =
            "the `Host` header does not name this machine (localhost, 127.0.0.1 or [::1])";
        return Err(Fault::refused(StatusCode::FORBIDDEN, "host_refused", message.to_owned()));
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    if origin.to_str().is_ok_and(takes_origin) {
        return Ok(());
    }
    let message = "requests of web pages from elsewhere are refused (`Origin` header)";
    Err(Fault::refused(StatusCode::FORBIDDEN, "origin_refused", message.to_owned()))
}

fn takes_origin(origin: &str) -> bool {
    let authority = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    authority.is_some_and(is_this_machine)
}

/// Reads `name` or `name:port`.
fn is_this_machine(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => authority,
    };
    let is_loopback = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse().is_ok_and(|address: Ipv6Addr| address.is_loopback()),
        None => name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback()),
    };
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

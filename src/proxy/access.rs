//! Who may speak to a listener on loopback: programs of this machine, not pages of a browser that
//! was talked into it.
//!
//! A page of another site reaches loopback by a name that it made point there (its own name is then
//! the `Host`), or by a cross-site request (its own name is then the `Origin`).

use hyper::{
    HeaderMap, StatusCode,
    header::{HOST, ORIGIN},
};

use super::reply::Fault;

/// Refuses requests whose `Host` or `Origin` is not this machine.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    if hosts.next().is_some() || !host.is_some_and(is_this_machine) {
        let message =
            "the `Host` header does not name this machine (localhost, 127.0.0.1 or [::1])";
        return Err(Fault::refused(StatusCode::FORBIDDEN, "host_refused", message.to_owned()));
    }
    match headers.get(ORIGIN) {
        None => Ok(()),
        Some(origin) if origin.to_str().is_ok_and(is_this_machines_origin) => Ok(()),
        Some(_) => {
            let message = "requests of web pages from elsewhere are refused (`Origin` header)";
            Err(Fault::refused(StatusCode::FORBIDDEN, "origin_refused", message.to_owned()))
        }
    }
}

fn is_this_machines_origin(origin: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(scheme))
        .is_some_and(is_this_machine)
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
        assert!(is_this_machines_origin("http://localhost:3000"));
        for origin in ["null", "file://", "http://evil.com", "app://localhost"] {
            assert!(!is_this_machines_origin(origin), "{origin}");
        }
    }
}

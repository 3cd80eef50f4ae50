//! What a profile says of an engine that somebody else runs: where it is, and which keys mean nothing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    file::{EngineKey, ProfileFile},
    walk::Walk,
};
use crate::spec::Endpoint;

/// What is about an engine that slotd starts, holds and ends.
const UNUSED: [&str; 25] = [
    "command",
    "stop_command",
    "args",
    "env",
    "context",
    "threads",
    "gpu_layers",
    "ladder",
    "autostart",
    "essential",
    "max_restarts",
    "start_timeout",
    "hang_timeout",
    "idle_timeout",
    "on_exit",
    "pull",
    "memory",
    "gpu_memory",
    "pinned",
    "pressure_evict_only",
    "priority",
    "min_residency",
    "when_full",
    "restore",
    "needs",
];
const EXAMPLE: &str =
    "write `url = \"http://127.0.0.1:8080\"`, or `url = \"unix:/path/of/its.sock\"`";

/// Checks everything that hangs together with `engine = "external"`; returns where the engine is.
pub(super) fn check(walk: &mut Walk<'_>, typed: &ProfileFile) -> Option<Endpoint> {
    let at = walk.offset_of_key("url");
    if typed.engine != Some(EngineKey::External) {
        if let (Some(at), Some(_)) = (at, typed.engine) {
            let hint = "add `engine = \"external\"`, or take `url` out";
            walk.refuse(at, "url", "is only used with `engine = \"external\"`", hint);
        }
        return None;
    }
    for key in UNUSED {
        if let Some(at) = walk.offset_of_key(key) {
            let hint = "take it out: whoever runs the engine decides that";
            walk.refuse(at, key, "is not used with `engine = \"external\"`", hint);
        }
    }
    if at.is_none() {
        let message = "missing, `engine = \"external\"` needs to know where the engine is";
        walk.refuse_missing("url", message, EXAMPLE);
    }
    let url = typed.url.as_ref()?;
    match read(&url.value) {
        Ok(endpoint) => Some(endpoint),
        Err((message, hint)) => {
            walk.refuse_value(url, message, hint);
            None
        }
    }
}

/// Reads an address; else says what is wrong, and what to do.
fn read(url: &str) -> Result<Endpoint, (String, &'static str)> {
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if Path::new(path).is_absolute() {
            return Ok(Endpoint::Unix(PathBuf::from(path)));
        }
        return Err((format!("`{path}` is no absolute path"), EXAMPLE));
    }
    if url.starts_with("https:") {
        let hint = "use the engine's plain address, or a proxy on this machine that speaks TLS";
        return Err((format!("`{url}` needs TLS, which slotd does not speak to engines"), hint));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Err((format!("`{url}` is neither `http://…` nor `unix:/…`"), EXAMPLE));
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    // People copy the base URL that they gave to clients.
    if !matches!(path.trim_end_matches('/'), "" | "v1") {
        let hint = "leave the path out: slotd asks for the paths of the OpenAI API itself";
        return Err((format!("`/{path}` is a path, expected a host and a port"), hint));
    }
    if let Ok(address) = host.parse() {
        return Ok(Endpoint::Tcp(address));
    }
    if let Some(port) = host.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    let message = format!("`{host}` is no address with a port");
    Err((message, "write the IP address and the port, `127.0.0.1:8080` say; no name is looked up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_loopback_port_a_socket_or_another_machine() {
        let said = |url| match read(url) {
            Ok(endpoint) => (endpoint.url(), endpoint.is_local()),
            Err((message, _)) => (message, false),
        };
        let is = |url: &str, is_local| (url.to_owned(), is_local);
        assert_eq!(said("http://127.0.0.1:8080"), is("http://127.0.0.1:8080", true));
        assert_eq!(said("http://localhost:8080/v1/"), is("http://127.0.0.1:8080", true));
        assert_eq!(said("http://[::1]:80/"), is("http://[::1]:80", true));
        assert_eq!(said("unix:/run/x.sock"), is("unix:/run/x.sock", true));
        assert_eq!(said("unix:///run/x.sock"), is("unix:/run/x.sock", true));
        assert_eq!(said("http://192.0.2.7:8080"), is("http://192.0.2.7:8080", false));
    }

    #[test]
    fn what_is_no_address_is_told() {
        let said = |url| read(url).unwrap_err().0;
        assert_eq!(said("127.0.0.1:80"), "`127.0.0.1:80` is neither `http://…` nor `unix:/…`");
        assert_eq!(said("http://127.0.0.1"), "`127.0.0.1` is no address with a port");
        assert_eq!(said("http://box:80"), "`box:80` is no address with a port");
        assert_eq!(said("http://[::1]:80/api"), "`/api` is a path, expected a host and a port");
        assert_eq!(said("unix:x.sock"), "`x.sock` is no absolute path");
        let tls = "`https://[::1]:80` needs TLS, which slotd does not speak to engines";
        assert_eq!(said("https://[::1]:80"), tls);
    }
}

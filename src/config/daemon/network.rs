//! Settings of who may reach the endpoint: keys, names of this machine, origins of pages, TLS.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    super::{
        walk::{MayBeEmpty, Walk},
        words::cut,
    },
    Flags,
    directories::{CONFIGURATION, Environment},
    file::Folder,
    whole,
};

/// The name of the file of keys in the configuration's directory.
const KEYS_NAME: &str = "keys";

/// The file of keys, and what it means that it is missing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeysFile {
    /// A setting names it: it has to be there.
    Named(PathBuf),
    /// The usual place: without a file there nobody on this machine is asked for a key.
    Usual(PathBuf),
}

impl KeysFile {
    /// Returns where it is, or would be.
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) | Self::Usual(path) => path,
        }
    }
}

/// Where a certificate and its key are.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct TlsFiles {
    /// The certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    pub(super) fn whole(self) -> Self {
        Self { cert: whole(&self.cert), key: whole(&self.key) }
    }
}

/// Decides which file holds the keys: the flag's, the setting's, or the usual one. That is beside the
/// daemon's file if `--config` names one, else in the configuration directory, else beside the first
/// directory of profiles.
pub(super) fn keys_file(
    flags: &Flags,
    typed: Option<PathBuf>,
    environment: Environment<'_>,
    profiles: Option<&[PathBuf]>,
) -> KeysFile {
    if let Some(named) = flags.keys.clone().or(typed) {
        return KeysFile::Named(whole(&named));
    }
    let named = flags.config.as_deref().and_then(|file| Some(whole(file).parent()?.to_owned()));
    let configuration = named.or_else(|| CONFIGURATION.candidates(environment).into_iter().next());
    let beside = || profiles.and_then(|dirs| Some(dirs.first()?.parent()?.to_owned()));
    KeysFile::Usual(whole(&configuration.or_else(beside).unwrap_or_default().join(KEYS_NAME)))
}

pub(super) fn take_hosts(walk: &mut Walk<'_>) -> Vec<String> {
    let mut hosts = Vec::new();
    for host in walk.take_texts("allowed_hosts", MayBeEmpty::No).unwrap_or_default() {
        if is_host(&host.value) {
            hosts.push(host.value.to_ascii_lowercase());
        } else {
            let message = format!("`{}` is not the name of a host", cut(&host.value));
            let hint = "write the name alone, as `gpu-box.lan`: no scheme, no port, no `*`";
            walk.refuse_value(&host, message, hint);
        }
    }
    hosts
}

fn is_host(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = (1..=253).contains(&text.len()) && text.bytes().all(is_plain);
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    is_name || bracketed.is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

pub(super) fn take_origins(walk: &mut Walk<'_>) -> Vec<String> {
    let mut origins = Vec::new();
    for origin in walk.take_texts("cors_origins", MayBeEmpty::No).unwrap_or_default() {
        if is_origin(&origin.value) {
            origins.push(origin.value);
        } else {
            let message = format!("`{}` is not an origin as browsers write it", cut(&origin.value));
            let hint = "write scheme and host in lower case, and the port if it is not the \
                        scheme's own, without a path: `https://chat.example`; `*` is not taken";
            walk.refuse_value(&origin, message, hint);
        }
    }
    origins
}

/// Tells whether `text` is what a browser can send: any other would never match.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_part = |byte: u8| is_word(byte) || b".:[]_".contains(&byte);
    let usual_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let is_cut = !usual_port.is_empty() && host.ends_with(usual_port);
    !scheme.is_empty()
        && scheme.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'+')
        && !host.is_empty()
        && host.len() <= 260
        && host.bytes().all(is_part)
        && !is_cut
}

pub(super) fn take_tls(walk: &mut Walk<'_>, folder: Folder<'_>) -> Option<TlsFiles> {
    let cert = folder.take(walk, "tls_cert");
    let key = folder.take(walk, "tls_key");
    match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        (Some(_), None) => refuse_lone(walk, "tls_cert", "tls_key"),
        (None, Some(_)) => refuse_lone(walk, "tls_key", "tls_cert"),
        (None, None) => None,
    }
}

fn refuse_lone(walk: &mut Walk<'_>, given: &str, missing: &str) -> Option<TlsFiles> {
    let message = format!("missing, `{given}` is of no use without it");
    walk.refuse_missing(missing, &message, "name both, or none for plain HTTP");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_browser_can_send_is_an_origin() {
        for origin in [
            "https://chat.example",
            "http://192.168.1.4:3000",
            "http://[::1]:3000",
            "chrome-extension://abcdef",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for origin in [
            "*",
            "null",
            "chat.example",
            "https://chat.example/",
            "https://Chat.example",
            "https://*.example",
            "https://chat.example:443",
            "http://chat.example:80",
            "https://",
            "://x",
            "https://a b",
        ] {
            assert!(!is_origin(origin), "{origin}");
        }
    }

    #[test]
    fn a_host_is_a_name_alone() {
        for host in ["gpu-box", "gpu.lan", "192.168.1.4", "[fe80::1]"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "gpu:80", "http://gpu", "*.lan", "a b", "u@gpu", "[::1", "gpu/"] {
            assert!(!is_host(host), "{host}");
        }
    }
}

//! The daemon's own optional file, `slotd.toml`, as it is typed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use toml::de::DeTable;

use super::{
    super::{
        fault::Fault,
        file,
        keys::MOST_IN_FLIGHT,
        syntax,
        walk::{At, MayBeEmpty, Walk},
        words::cut,
    },
    fall_through::{self, FallThrough},
    memory::{self, MemorySettings},
    network::{self, TlsFiles},
    pressure,
};
use crate::spec::{Bytes, pressure::Thresholds};

/// Every key, in the order that documents use.
const KEYS: [&str; 27] = [
    "listen",
    "ollama_listen",
    "keys",
    "allowed_hosts",
    "cors_origins",
    "tls_cert",
    "tls_key",
    "profiles",
    "state_dir",
    "model_dirs",
    "llama_server",
    "queue_limit",
    "queue_timeout",
    "max_body",
    "climb_after",
    "memory_limit",
    "memory_reserve",
    "max_resident",
    "max_resident_per",
    "restore_after",
    "pressure",
    "log_format",
    "access_log",
    "byte_relay",
    "max_in_flight",
    "request_timeout",
    "fall_through",
];

/// Where slotd listens by default.
pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7568);

/// Where Ollama's clients look by default.
pub(super) const OLLAMA: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11434);

const QUEUE_LIMIT: RangeInclusive<u32> = 0..=65_536;
const QUEUE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const CLIMB_AFTER: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(24 * 365);
const MAX_IN_FLIGHT: RangeInclusive<u32> = 1..=MOST_IN_FLIGHT;
const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const MAX_BODY: RangeInclusive<Bytes> = Bytes(1 << 10)..=Bytes(1 << 30);

/// How the daemon writes its own log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// What `slotd.toml` says; `None` where it says nothing. Paths are those of the file: relative ones
/// start in its folder, `~/` is the home directory.
#[derive(Debug, Default)]
pub(super) struct DaemonFile {
    pub(super) listen: Option<SocketAddr>,
    pub(super) ollama_listen: Option<SocketAddr>,
    pub(super) keys: Option<PathBuf>,
    pub(super) allowed_hosts: Vec<String>,
    pub(super) cors_origins: Vec<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) profiles: Option<Vec<PathBuf>>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) model_dirs: Vec<PathBuf>,
    pub(super) llama_server: Option<PathBuf>,
    pub(super) queue_limit: Option<u32>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) max_body: Option<Bytes>,
    pub(super) climb_after: Option<Duration>,
    pub(super) memory: MemorySettings,
    pub(super) pressure: Thresholds,
    pub(super) log_format: Option<LogFormat>,
    pub(super) access_log: Option<bool>,
    pub(super) byte_relay: Option<bool>,
    pub(super) max_in_flight: Option<u32>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) fall_through: Option<FallThrough>,
}

/// Reads the text of a `slotd.toml`.
///
/// # Errors
/// Every fault of the file.
pub(super) fn read(file: &Path, text: &str, home: Option<&Path>) -> Result<DaemonFile, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mended = syntax::mend(text);
    let (table, _) = DeTable::parse_recoverable(&mended.text);
    let mut walk = Walk::new(file, text, &mended, table.get_ref());
    walk.refuse_unknown(&KEYS, better_key);
    let folder = Folder { path: file.parent().unwrap_or(Path::new("")), home };

    let read = DaemonFile {
        listen: take_listen(&mut walk, "listen", LISTEN),
        ollama_listen: take_listen(&mut walk, "ollama_listen", OLLAMA),
        keys: folder.take(&mut walk, "keys"),
        allowed_hosts: network::take_hosts(&mut walk),
        cors_origins: network::take_origins(&mut walk),
        tls: network::take_tls(&mut walk, folder),
        profiles: folder.take_all(&mut walk, "profiles"),
        state_dir: folder.take(&mut walk, "state_dir"),
        model_dirs: folder.take_all(&mut walk, "model_dirs").unwrap_or_default(),
        llama_server: folder.take(&mut walk, "llama_server"),
        queue_limit: walk.take_number(
            "queue_limit",
            &QUEUE_LIMIT,
            "0 refuses what cannot start at once",
        ),
        queue_timeout: walk.take_duration("queue_timeout", &QUEUE_TIMEOUT),
        max_body: walk.take_size("max_body", &MAX_BODY),
        climb_after: walk.take_duration("climb_after", &CLIMB_AFTER),
        memory: memory::take(&mut walk),
        pressure: pressure::take(&mut walk),
        log_format: walk
            .take_choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        access_log: walk.take_flag("access_log"),
        byte_relay: walk.take_flag("byte_relay"),
        max_in_flight: walk.take_number(
            "max_in_flight",
            &MAX_IN_FLIGHT,
            "leave the key out to bound no key",
        ),
        request_timeout: walk.take_duration("request_timeout", &REQUEST_TIMEOUT),
        fall_through: fall_through::take(&mut walk, folder),
    };
    let faults = walk.into_faults();
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

/// Says why `text` is no address to listen on, and what to write instead: `usual`, say.
pub(super) fn parse_listen(text: &str, usual: SocketAddr) -> Result<SocketAddr, (String, String)> {
    let text = cut(text);
    let local = text.replacen("localhost:", "127.0.0.1:", 1);
    let Ok(address) = local.parse::<SocketAddr>() else {
        let message = format!("`{text}` is not an address and a port");
        return Err((message, format!("write `{usual}`; port 0 picks a free one")));
    };
    Ok(address)
}

fn take_listen(walk: &mut Walk<'_>, key: &str, usual: SocketAddr) -> Option<SocketAddr> {
    let text = walk.take_text(key)?;
    parse_listen(&text.value, usual)
        .map_err(|(message, hint)| walk.refuse_value(&text, message, hint))
        .ok()
}

/// Knows keys that belong into a profile.
fn better_key(typed: &str) -> Option<String> {
    let is_of_profile = file::KEYS.contains(&typed);
    is_of_profile
        .then(|| format!("`{typed}` is a key of a profile, a `NAME.toml` in a profiles directory"))
}

/// Where relative paths of the file start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folder<'a> {
    path: &'a Path,
    home: Option<&'a Path>,
}

impl Folder<'_> {
    pub(super) fn take(self, walk: &mut Walk<'_>, key: &str) -> Option<PathBuf> {
        let text = walk.take_text(key)?;
        self.path_of(walk, &text)
    }

    fn take_all(self, walk: &mut Walk<'_>, key: &str) -> Option<Vec<PathBuf>> {
        let texts = walk.take_texts(key, MayBeEmpty::No)?;
        Some(texts.iter().filter_map(|text| self.path_of(walk, text)).collect())
    }

    fn path_of(self, walk: &mut Walk<'_>, text: &At<String>) -> Option<PathBuf> {
        let Some(rest) = text.value.strip_prefix("~/") else {
            return Some(self.path.join(&text.value));
        };
        if self.home.is_none() {
            let message = format!("`{}` starts in a home directory, and there is none", text.value);
            walk.refuse_value(text, message, "write the whole path, or set `HOME`");
        }
        self.home.map(|home| home.join(rest))
    }
}

//! The script language: what the engine is told to do, as `key=value` arguments.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How `/health` answers once the engine is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    Ok,
    Hang,
    Garbage,
    Status(u16),
    /// No answer while a prompt is worked on.
    Busy,
}

/// What the engine falls into with its first request, for good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wedge {
    /// It burns CPU time, and answers nothing, not even its health.
    Spin,
    /// It answers its health, and nothing else; it uses no CPU time.
    Stall,
    /// It answers that request, and takes no connection afterwards.
    Deaf,
    /// It answers its health, and everything else with this status.
    Fail(u16),
}

/// When `alloc` happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AllocAt {
    Start,
    Request,
}

/// Everything that can be asked for.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a script is a list of independent switches")]
pub(crate) struct Script {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) port: u16,
    pub(crate) alias: String,
    pub(crate) ready_after: Duration,
    pub(crate) die_at_start: Option<u8>,
    pub(crate) die_after: Option<Duration>,
    /// The exit code of `die_after`.
    pub(crate) exit: u8,
    pub(crate) abort: bool,
    pub(crate) segv: bool,
    pub(crate) ignore_term: bool,
    pub(crate) fork: bool,
    pub(crate) setsid: bool,
    pub(crate) hold_stdout: bool,
    /// So many processes that end at once and that nobody waits for.
    pub(crate) zombies: usize,
    /// So many processes that sleep for ever.
    pub(crate) sleepers: usize,
    /// Lets go of stdout and stderr before it serves.
    pub(crate) close_output: bool,
    /// Takes its own port away, once: the file remembers that it was done.
    pub(crate) steal_port_once: Option<PathBuf>,
    pub(crate) health: Health,
    pub(crate) wedge: Option<Wedge>,
    /// Only the process that makes this file falls into `wedge`.
    pub(crate) once: Option<PathBuf>,
    /// CPU time before the first token.
    pub(crate) prompt: Duration,
    /// A request that holds this text makes it crash.
    pub(crate) poison: Option<String>,
    pub(crate) die_after_tokens: Option<usize>,
    pub(crate) tokens: usize,
    pub(crate) token_gap: Duration,
    pub(crate) alloc: usize,
    pub(crate) alloc_at: AllocAt,
    pub(crate) flood: usize,
    pub(crate) say: Option<String>,
    pub(crate) progress: bool,
    pub(crate) log_requests: Option<PathBuf>,
    pub(crate) spawn_log: Option<PathBuf>,
    pub(crate) dump: Option<PathBuf>,
}

impl Script {
    /// Reads the arguments. A key without a value is a switch.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut given: BTreeMap<String, String> = arguments
            .map(|argument| match argument.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (argument, "1".to_owned()),
            })
            .collect();
        let mut take = |key: &str| given.remove(key);
        let script = Self {
            socket: take("socket").map(PathBuf::from),
            port: number(take("port"), 0)?,
            alias: take("alias").unwrap_or_else(|| "fake".to_owned()),
            ready_after: duration(take("ready_after"))?.unwrap_or_default(),
            die_at_start: take("die_at_start").map(|code| number(Some(code), 1)).transpose()?,
            die_after: duration(take("die_after"))?,
            exit: number(take("exit"), 1)?,
            abort: take("abort").is_some(),
            segv: take("segv").is_some(),
            ignore_term: take("ignore").is_some_and(|signal| signal == "TERM"),
            fork: take("fork").is_some(),
            setsid: take("setsid").is_some(),
            hold_stdout: take("hold_stdout").is_some(),
            zombies: number(take("zombies"), 0)?,
            sleepers: number(take("sleepers"), 0)?,
            close_output: take("close_output").is_some(),
            steal_port_once: take("steal_port_once").map(PathBuf::from),
            health: health(take("health").as_deref())?,
            wedge: wedge(take("wedge").as_deref())?,
            once: take("once").map(PathBuf::from),
            prompt: duration(take("prompt"))?.unwrap_or_default(),
            poison: take("poison"),
            die_after_tokens: take("die_after_tokens").map(|n| number(Some(n), 0)).transpose()?,
            tokens: number(take("tokens"), 8)?,
            token_gap: duration(take("token_gap"))?.unwrap_or_default(),
            alloc: size(take("alloc"))?,
            alloc_at: match take("alloc_at").as_deref() {
                None | Some("start") => AllocAt::Start,
                Some("request") => AllocAt::Request,
                Some(other) => return Err(format!("alloc_at={other}: use start or request")),
            },
            flood: size(take("flood"))?,
            say: take("say"),
            progress: take("progress").is_some(),
            log_requests: take("log_requests").map(PathBuf::from),
            spawn_log: take("spawn_log").map(PathBuf::from),
            dump: take("dump").map(PathBuf::from),
        };
        match given.keys().next() {
            None => Ok(script),
            Some(key) => Err(format!("`{key}` is no key of the script")),
        }
    }
}

fn number<T: std::str::FromStr>(text: Option<String>, default: T) -> Result<T, String> {
    text.map_or(Ok(default), |text| text.parse().map_err(|_| format!("`{text}` is no number")))
}

fn duration(text: Option<String>) -> Result<Option<Duration>, String> {
    let read = |text: String| slotd::spec::parse_duration(&text).map_err(|fault| fault.to_string());
    text.map(read).transpose()
}

fn size(text: Option<String>) -> Result<usize, String> {
    let Some(text) = text else { return Ok(0) };
    let bytes: slotd::spec::Bytes =
        text.parse().map_err(|fault: slotd::spec::QuantityFault| fault.to_string())?;
    usize::try_from(bytes.0).map_err(|_| format!("`{text}` is too large"))
}

fn health(text: Option<&str>) -> Result<Health, String> {
    match text {
        None | Some("ok") => Ok(Health::Ok),
        Some("hang") => Ok(Health::Hang),
        Some("garbage") => Ok(Health::Garbage),
        Some("busy") => Ok(Health::Busy),
        Some(status) => number(Some(status.to_owned()), 503).map(Health::Status),
    }
}

fn wedge(text: Option<&str>) -> Result<Option<Wedge>, String> {
    Ok(Some(match text {
        None => return Ok(None),
        Some("spin") => Wedge::Spin,
        Some("stall") => Wedge::Stall,
        Some("deaf") => Wedge::Deaf,
        Some(status) => Wedge::Fail(number(Some(status.to_owned()), 500)?),
    }))
}

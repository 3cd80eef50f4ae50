//! What the daemon runs with: flags before its own file, the file before the environment, the
//! environment before the home directory.

mod directories;
mod fall_through;
mod file;
mod memory;
mod network;
mod pressure;
mod sockets;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf, absolute},
    time::Duration,
};

use serde::Serialize;

use self::{
    directories::{CACHE, CONFIGURATION, Environment, Kind, RUNTIME, STATE, home},
    file::{DaemonFile, LISTEN, OLLAMA, parse_listen},
};
pub use self::{
    fall_through::{BaseUrl, FallThrough, Scheme},
    file::LogFormat,
    memory::MemorySettings,
    network::{KeysFile, TlsFiles},
};
use super::{Context, disk, fault::Fault, rules};
use crate::spec::{Bytes, Generation, SlotName, pressure::Thresholds};

/// The name of the daemon's own file.
pub(super) const FILE_NAME: &str = "slotd.toml";

/// What was given on the command line; empty where nothing was.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config FILE`.
    pub config: Option<PathBuf>,
    /// `--profiles DIR`, each time it was given.
    pub profiles: Vec<PathBuf>,
    /// `--state-dir DIR`.
    pub state_dir: Option<PathBuf>,
    /// `--listen ADDR:PORT`, as typed.
    pub listen: Option<String>,
    /// `--ollama-listen ADDR:PORT`, as typed.
    pub ollama_listen: Option<String>,
    /// `--keys FILE`.
    pub keys: Option<PathBuf>,
    /// `--control PATH`.
    pub control: Option<PathBuf>,
}

/// What the daemon runs with. Every path is absolute; nothing is made or looked for on disk.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Settings {
    /// The `slotd.toml` that was read.
    pub file: Option<PathBuf>,
    /// Where the endpoint listens; port 0 picks a free one. Beyond loopback it needs keys.
    pub listen: SocketAddr,
    /// Where Ollama's clients come, if they may; like `listen`.
    pub ollama_listen: Option<SocketAddr>,
    /// The file of keys.
    pub keys: KeysFile,
    /// Names that clients may call this machine by besides those of loopback, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may ask and read the answer, as browsers write them.
    pub cors_origins: Vec<String>,
    /// The certificate and its key, where the endpoint speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Where profiles are; never empty.
    pub profile_dirs: Vec<PathBuf>,
    /// Where state and the logs of engines are kept.
    pub state_dir: PathBuf,
    /// Where sockets are made.
    pub runtime_dir: PathBuf,
    /// The socket of the control API.
    pub control: PathBuf,
    /// Where models and engines are kept that can be had again.
    pub cache_dir: PathBuf,
    /// Where model files are looked up: the configured ones, then `models` in the cache.
    pub model_dirs: Vec<PathBuf>,
    /// The `llama-server` to use before any other.
    pub llama_server: Option<PathBuf>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// Requests that may wait for one slot, 0..=65536.
    pub queue_limit: u32,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// The largest body of a request.
    pub max_body: Bytes,
    /// How long a slot on a lower rung stays without a death before it tries the rung above.
    pub climb_after: Duration,
    /// How memory is shared out.
    pub memory: MemorySettings,
    /// From where on the machine is short of something.
    pub pressure: Thresholds,
    /// How the log is written.
    pub log_format: LogFormat,
    /// Whether each request gets a line in the log.
    pub access_log: bool,
    /// Whether plain requests of the hot paths are passed on as bytes.
    pub byte_relay: bool,
    /// How many requests each key may have in flight whose own line does not say.
    pub max_in_flight: Option<u32>,
    /// How long a request may take, its answer included.
    pub request_timeout: Option<Duration>,
    /// Where requests go that name a model of nobody's here.
    pub fall_through: Option<FallThrough>,
}

impl Settings {
    /// Decides every setting from flags, the daemon's file and `environment`, in this order. Reads
    /// the file, and the working directory for relative flags.
    ///
    /// # Errors
    /// Every fault in the file, the flags and the environment.
    pub fn resolve(
        flags: &Flags,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let home = home(environment);
        let (file, typed) = read_file(flags, environment, home.as_deref(), &mut faults);

        let mut given_address = |flag: &str, text: Option<&str>, usual| {
            let refuse = |(message, hint): (String, String)| {
                faults.push(Fault::of_flag(flag, message).with_hint(hint));
            };
            parse_listen(text?, usual).map_err(refuse).ok()
        };
        let listen = given_address("--listen", flags.listen.as_deref(), LISTEN);
        let ollama_listen =
            given_address("--ollama-listen", flags.ollama_listen.as_deref(), OLLAMA);
        let given_state = flags.state_dir.clone().or(typed.state_dir);
        let state_dir =
            given_state.clone().or_else(|| best(STATE, "--state-dir", environment, &mut faults));
        let cache_dir = best(CACHE, "XDG_CACHE_HOME", environment, &mut faults);
        let given_profiles =
            if flags.profiles.is_empty() { typed.profiles } else { Some(flags.profiles.clone()) };
        let profile_dirs = given_profiles.filter(|dirs| !dirs.is_empty()).or_else(|| {
            let folder = best(CONFIGURATION, "--profiles", environment, &mut faults)?;
            Some(vec![folder.join("profiles")])
        });
        let keys = network::keys_file(flags, typed.keys, environment, profile_dirs.as_deref());
        let found = (state_dir.map(|dir| whole(&dir)), cache_dir, profile_dirs);
        let (Some(state_dir), Some(cache_dir), Some(profile_dirs)) = found else {
            return Err(faults);
        };

        let runtime_dir = runtime_dir(&state_dir, given_state.is_some(), environment);
        let control = sockets::control(flags, &runtime_dir, environment, &mut faults);
        faults.extend(sockets::no_room_for_engines(&runtime_dir));
        let settings = Self {
            file,
            listen: listen.or(typed.listen).unwrap_or(LISTEN),
            ollama_listen: ollama_listen.or(typed.ollama_listen),
            keys,
            allowed_hosts: typed.allowed_hosts,
            cors_origins: typed.cors_origins,
            tls: typed.tls.map(TlsFiles::whole),
            profile_dirs: profile_dirs.iter().map(|dir| whole(dir)).collect(),
            state_dir,
            runtime_dir,
            control,
            model_dirs: model_dirs(&typed.model_dirs, &cache_dir),
            cache_dir,
            llama_server: typed.llama_server.map(|path| whole(&path)),
            home,
            queue_limit: typed.queue_limit.unwrap_or(256),
            queue_timeout: typed.queue_timeout.unwrap_or(Duration::from_secs(290)),
            max_body: typed.max_body.unwrap_or(Bytes(32 << 20)),
            climb_after: typed.climb_after.unwrap_or(Duration::from_mins(10)),
            memory: typed.memory,
            pressure: typed.pressure,
            log_format: typed.log_format.unwrap_or(LogFormat::Text),
            access_log: typed.access_log.unwrap_or_default(),
            byte_relay: typed.byte_relay.unwrap_or(true),
            max_in_flight: typed.max_in_flight,
            request_timeout: typed.request_timeout,
            fall_through: typed.fall_through.map(FallThrough::whole),
        };
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }

    /// Returns the folder of the engines' sockets, which the daemon makes.
    pub fn engine_sockets(&self) -> PathBuf {
        self.runtime_dir.join(sockets::ENGINES)
    }

    /// Returns where a generation of a slot listens: a readable name where it fits into an address.
    pub fn engine_socket(&self, slot: &SlotName, generation: Generation) -> PathBuf {
        sockets::of_engine(&self.runtime_dir, slot, generation)
    }

    /// Returns where rules are: beside the first folder of profiles.
    pub fn rules_file(&self) -> Option<PathBuf> {
        Some(self.profile_dirs.first()?.parent()?.join(rules::FILE_NAME))
    }

    /// Returns what the meaning of a profile depends on.
    pub fn context(&self) -> Context {
        Context {
            model_dirs: self.model_dirs.clone(),
            home: self.home.clone(),
            rules: self.rules_file(),
        }
    }
}

/// Checks the text of a `slotd.toml` and returns its faults.
pub(super) fn check(path: &Path, text: &str, home: Option<&Path>) -> Vec<Fault> {
    file::read(path, text, home).err().unwrap_or_default()
}

/// Reads the file that was named, or the first of the usual ones that is there.
fn read_file(
    flags: &Flags,
    environment: Environment<'_>,
    home: Option<&Path>,
    faults: &mut Vec<Fault>,
) -> (Option<PathBuf>, DaemonFile) {
    let usual = || {
        let folders = CONFIGURATION.candidates(environment).into_iter();
        folders.map(|folder| folder.join(FILE_NAME)).find(|file| file.exists())
    };
    let Some(path) = flags.config.as_deref().map(whole).or_else(usual) else {
        return (None, DaemonFile::default());
    };
    let text = disk::read(&path).text.map_err(|fault| vec![*fault]);
    let typed = text.and_then(|text| file::read(&path, &text, home)).unwrap_or_else(|refused| {
        faults.extend(refused);
        DaemonFile::default()
    });
    (Some(path), typed)
}

/// Returns the best directory of a kind; notes a fault when nothing says where one could be.
fn best(
    kind: Kind,
    flag: &str,
    environment: Environment<'_>,
    faults: &mut Vec<Fault>,
) -> Option<PathBuf> {
    let best = kind.candidates(environment).into_iter().next();
    if best.is_none() {
        let message = format!("no place is known for {}", kind.what);
        let hint = format!("set `{flag}`, or `HOME`");
        faults.push(Fault::of_flag(flag, message).with_hint(hint));
    }
    best
}

/// 1. The service manager's. 2. Inside a state directory that somebody chose: two daemons with two
///    state directories must not meet. 3. The desktop's. 4. Inside the state directory.
fn runtime_dir(state_dir: &Path, is_state_given: bool, environment: Environment<'_>) -> PathBuf {
    let inside = state_dir.join("run");
    let service = RUNTIME.of_service(environment); // (1)
    let desktop = || RUNTIME.candidates(environment).into_iter().next();
    match service {
        Some(folder) => folder,
        None if is_state_given => inside,    // (2)
        None => desktop().unwrap_or(inside), // (3) (4)
    }
}

/// The configured ones, then `models` in the cache.
fn model_dirs(typed: &[PathBuf], cache_dir: &Path) -> Vec<PathBuf> {
    let typed = typed.iter().map(|dir| whole(dir));
    typed.chain([cache_dir.join("models")]).collect()
}

/// Makes a path absolute, without looking at the disk.
fn whole(path: &Path) -> PathBuf {
    // Fails only for an empty path or where there is no working directory: then it is left alone.
    absolute(path).unwrap_or_else(|_| path.to_owned())
}

//! Start-up and shutdown, in order.

use std::{
    env, fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use thiserror::Error;
use tracing::warn;

use super::{
    access::Doors,
    adopt,
    clock::{self, Clock},
    daemon::{Daemon, Ending},
    engine_task::Tools,
    listen::{self, Addresses},
    peaks::PeakBook,
    pulls::Pulls,
    signals::Signals,
    upgrade::Next,
};
use crate::{
    config::{Fault, daemon::Settings},
    engine::Machine,
    models::{Checks, Places, hub_cache_dir},
    process::{
        Cgroups, Owner, Spawner, SpawnerOptions, StartFault as SpawnerFault, give_back_cgroup,
        raise_file_limit,
    },
    proxy::{Cores, Uses},
    sensor::{self, GpuOptions, Gpus, NVML_LIBRARY},
    store::{OpenFault, StateDir},
};

/// Says why the daemon did not start.
#[derive(Debug, Error)]
pub enum StartFault {
    /// The state directory cannot be used; another daemon may hold it.
    #[error(transparent)]
    State(#[from] OpenFault),
    /// The endpoint's address cannot be had.
    #[error("listen on {address} (`{option}` takes another address, port 0 any free one)")]
    Listen {
        /// What sets it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Other machines could reach the endpoint, and there is no key to ask them for.
    #[error(
        "{address} can be reached by other machines, which need keys: `slotd key new NAME --keys {file}` makes the first one (`keys` in slotd.toml names the file), or `listen` on 127.0.0.1"
    )]
    NoKeys {
        /// The address.
        address: SocketAddr,
        /// Where keys would be.
        file: PathBuf,
    },
    /// Files that say who may speak to the endpoint have faults.
    #[error("{}", listed(.0))]
    Access(Vec<Fault>),
    /// A directory or a socket of the daemon's own cannot be made.
    #[error("make `{path}`")]
    Make {
        /// Which one.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something else than a socket is in the control socket's place.
    #[error("`{path}` is no socket and is left alone; choose another `--control`")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// Another daemon serves the control socket.
    #[error("another daemon listens on `{path}`; stop it, or choose another `--control`")]
    ControlTaken {
        /// The path.
        path: PathBuf,
    },
    /// Engines cannot be started.
    #[error("prepare to start engines")]
    Spawner(#[from] SpawnerFault),
    /// A part of the daemon broke while it ran.
    #[error("the daemon broke off, which is a bug in slotd; its log says where")]
    Broken,
    /// The program on disk did not take this one's place.
    #[error("become `{program}`")]
    Become {
        /// The program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something else.
    #[error("start the daemon")]
    System(#[from] io::Error),
}

/// Runs the daemon until it is told to stop. `listening` is called once: the endpoint is bound, and
/// every slot that the profiles describe can be asked for.
///
/// # Errors
/// [`StartFault`], each variant as it says. A daemon that has started ends without one but for
/// [`StartFault::Broken`].
pub async fn run(
    mut settings: Settings,
    listening: impl FnOnce(Addresses),
) -> Result<(), StartFault> {
    raise_file_limit();
    let clock = Clock::start();
    let signals = Signals::listen()?;
    let state = StateDir::open(&settings.state_dir, process::id())?;
    let loaded = state.load(clock::unix_ms())?;
    if let Some(aside) = &loaded.set_aside {
        warn!(%aside, "state file set aside");
    }
    make_dir(&settings.runtime_dir)?;
    make_dir(&settings.engine_sockets())?;
    let doors = Doors::open(&settings)?;
    let sockets = listen::open(&settings, &doors)?;
    let addresses = sockets.addresses()?;
    // A port that was picked, or a socket that was inherited.
    (settings.listen, settings.ollama_listen) = (addresses.endpoint, addresses.ollama);
    let next = Next::of_this_program()?;
    let state = Arc::new(state);
    let found = adopt::find(&state, &loaded.remembered, clock::unix_ms())?;
    let spared = found.iter().flat_map(adopt::Found::cgroups).collect();
    let tools = tools(settings, next.program().to_path_buf(), (Arc::clone(&state), spared))?;
    let tools = Arc::new(tools);
    tools.pulls.resume();
    let adopted = adopt::adopt(&tools, found).await;
    let daemon = Daemon {
        clock,
        signals,
        state,
        remembered: loaded.remembered,
        tools,
        adopted,
        addresses,
        doors,
        next,
        cores: Cores::start()?,
    };
    match daemon.run(sockets, listening).await? {
        Ending::Stop => {
            // Of an image that goes on the place is the next one's.
            give_back_cgroup();
            Ok(())
        }
        Ending::Upgrade { kept, next } => {
            let source = next.become_it(&kept);
            Err(StartFault::Become { program: next.program().to_path_buf(), source })
        }
    }
}

fn tools(
    settings: Settings,
    program: PathBuf,
    (state, adopted): (Arc<StateDir>, Vec<PathBuf>),
) -> Result<Tools, StartFault> {
    let environment: Vec<_> = env::vars_os().collect();
    let spawner = Spawner::start(SpawnerOptions {
        guard: Some(program.clone()),
        cgroups: Cgroups::Detect,
        owner: Owner::of(&settings.state_dir),
        adopted,
    })?;
    let checks = Checks::new(Places {
        llama_server: settings.llama_server.clone(),
        own_program: program,
        cache_dir: settings.cache_dir.clone(),
        hub_cache: hub_cache_dir(&|name| env::var_os(name)),
        environment: environment.clone(),
    });
    let checks = Arc::new(checks);
    let machine = Machine { cores: sensor::usable_cores(), has_gpu: sensor::has_gpu() };
    let suspects = Arc::default();
    let pulls = Arc::new(Pulls::new(Arc::clone(&state)));
    let uses = Arc::new(Uses::new(clock::unix_ms));
    let thrift = Arc::default();
    let peaks = PeakBook::open(Arc::clone(&state), Arc::clone(&thrift));
    Ok(Tools {
        settings,
        spawner,
        state,
        checks,
        pulls,
        suspects,
        peaks,
        thrift,
        uses,
        machine,
        gpus: gpus(),
        environment,
    })
}

/// Begins to look at the GPUs, where there may be some.
fn gpus() -> Option<Arc<Gpus>> {
    let library = env::var_os(NVML_LIBRARY).map(PathBuf::from);
    let is_asked = library.is_some() || sensor::has_gpu();
    let visible = env::var(sensor::VISIBLE).ok();
    let wall_clock = clock::unix_ms;
    let options = GpuOptions { library, visible, wall_clock, ..GpuOptions::default() };
    is_asked.then(|| Arc::new(Gpus::start(&options)))
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

pub(super) fn make_dir(path: &Path) -> Result<(), StartFault> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartFault::Make { path: path.to_path_buf(), source })
}

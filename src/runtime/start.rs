//! Start-up and shutdown, in order.

use std::{
    env, fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use super::{
    clock::{self, Clock},
    daemon::Daemon,
    engine_task::Tools,
    signals::Signals,
};
use crate::{
    config::daemon::Settings,
    models::{Checks, Places, hub_cache_dir},
    process::{Cgroups, Spawner, SpawnerOptions, StartFault as SpawnerFault},
    store::{OpenFault, StateDir},
};

/// Says why the daemon did not start.
#[derive(Debug, Error)]
pub enum StartFault {
    /// The state directory cannot be used; another daemon may hold it.
    #[error(transparent)]
    State(#[from] OpenFault),
    /// The endpoint's address cannot be had.
    #[error("listen on {address} (`--listen` takes another address, port 0 any free one)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
pub async fn run(settings: Settings, listening: impl FnOnce(SocketAddr)) -> Result<(), StartFault> {
    let clock = Clock::start();
    let signals = Signals::listen()?;
    let state = StateDir::open(&settings.state_dir, process::id())?;
    let loaded = state.load(clock::unix_ms())?;
    if let Some(aside) = &loaded.set_aside {
        warn!(%aside, "state file set aside");
    }
    make_dir(&settings.runtime_dir)?;
    make_dir(&settings.engine_sockets())?;
    let listener = bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let control = bind_control(&settings.control)?;
    let tools = tools(settings)?;
    let daemon = Daemon {
        clock,
        signals,
        state: Arc::new(state),
        remembered: loaded.remembered,
        tools: Arc::new(tools),
        address,
    };
    daemon.run(listener, control, listening).await
}

fn tools(settings: Settings) -> Result<Tools, StartFault> {
    let program = env::current_exe()?;
    let environment: Vec<_> = env::vars_os().collect();
    let spawner =
        Spawner::start(SpawnerOptions { guard: Some(program.clone()), cgroups: Cgroups::Detect })?;
    let checks = Checks::new(Places {
        llama_server: settings.llama_server.clone(),
        own_program: program,
        cache_dir: settings.cache_dir.clone(),
        hub_cache: hub_cache_dir(&|name| env::var_os(name)),
        environment: environment.clone(),
    });
    Ok(Tools { settings, spawner, checks: Arc::new(checks), suspects: Arc::default(), environment })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartFault> {
    TcpListener::bind(address).await.map_err(|source| StartFault::Listen { address, source })
}

/// Binds the control socket for this user alone. A socket that nobody serves is a dead daemon's and
/// goes; anything else that is there stays.
fn bind_control(path: &Path) -> Result<UnixListener, StartFault> {
    let fault = |source| StartFault::Make { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        make_dir(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(StartFault::NoSocket { path: path.to_path_buf() });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(StartFault::ControlTaken { path: path.to_path_buf() });
        }
        Ok(_) => fs::remove_file(path).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    // Made under another name and moved there: nobody can connect before the permissions are right.
    let fresh = path.with_extension(format!("{}", process::id()));
    let listener = UnixListener::bind(&fresh).map_err(fault)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(fault)?;
    fs::rename(&fresh, path).map_err(fault)?;
    Ok(listener)
}

fn make_dir(path: &Path) -> Result<(), StartFault> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartFault::Make { path: path.to_path_buf(), source })
}

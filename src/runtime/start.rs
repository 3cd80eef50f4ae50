//! Start-up and shutdown, in order.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    clock::{self, Clock},
    driver::Driver,
    effects::Effects,
    engine_task::Tools,
    profiles::Profiles,
    publish::Publisher,
    remember, service_manager,
    signals::{Asked, Signals},
};
use crate::{
    admin,
    config::{self, daemon::Settings},
    mailbox::{self, Mailbox},
    models,
    process::{Spawner, SpawnerOptions, StartFault as SpawnerFault},
    proxy::{self, RouteTable},
    store::{OpenFault, Remembered, StateDir},
    supervisor::{Event, Policy, Supervisor},
};

/// Says why the daemon did not start.
#[derive(Debug, Error)]
pub enum StartFault {
    /// The state directory cannot be used; another daemon may hold it.
    #[error(transparent)]
    State(#[from] OpenFault),
    /// The endpoint's address cannot be had.
    #[error("listen on {address}; is another slotd or another server there? `--listen` takes another address, port 0 any free one")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
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
    /// Engines cannot be started.
    #[error("prepare to start engines")]
    Spawner(#[from] SpawnerFault),
    /// The operating system refused something else.
    #[error("start the daemon")]
    System(#[from] io::Error),
}

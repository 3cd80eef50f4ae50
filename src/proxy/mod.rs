//! The endpoint: OpenAI-compatible HTTP in, one engine's answer out.
//!
//! Owns the routing table's form, the gates of live engines with their connections, and everything a
//! client sees: errors, signs of life, streams. It decides nothing about slots; what is not ready is
//! asked of the core through the mailbox.
//!
//! ```text
//! request ─▶ access ─▶ body (model, stream) ─▶ route ─▶ lease ─▶ exchange ─▶ relay ─▶ client
//!                                                │ not ready       │ died before a byte: once more
//!                                                └▶ slip: granted ─┘
//! ```

mod access;
mod affinity;
mod answer;
mod body;
mod bytes;
mod control;
mod cores;
mod depth;
mod dialect;
mod engine_metrics;
mod exchange;
mod fall_through;
mod fields;
mod flight;
mod flights;
mod flush;
mod follow;
mod forward;
mod gate;
mod gpu_metrics;
mod hold;
mod intake;
mod keepalive;
mod listeners;
mod listing;
mod meters;
mod metrics;
mod normalise;
mod ollama;
mod params;
mod payload;
mod pending;
mod record;
mod relay;
mod replicas;
mod reply;
mod resume;
mod routes;
mod seats;
mod serve;
mod shortage;
mod spool;
mod surface;
mod suspects;
mod target;
mod throttle;
mod tls;
mod trace;
mod tunnel;
mod upstream;
mod usage;
mod uses;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use self::{
    access::{Access, Turns},
    control::Control,
    cores::{Cores, Lanes},
    fall_through::FallThrough,
    flight::Stage,
    flights::{AccessLog, FlightView, Flights},
    gate::{Blame, Gate},
    listeners::{Listeners, OllamaListener, WallClock},
    record::Record,
    replicas::Choices,
    routes::RouteTable,
    serve::{Phase, serve},
    suspects::Suspects,
    throttle::Throttle,
    tls::{Certificate, TlsFault},
    uses::{Use, Uses},
};
use crate::{mailbox::Mailbox, spec::gpu::GpuFigures};

/// What every connection works with.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The present routes; replaced whole by the runtime.
    pub routes: Arc<ArcSwap<RouteTable>>,
    /// The way to the core.
    pub mailbox: Mailbox,
    /// The limits in force.
    pub limits: Limits,
    /// Requests under suspicion; the gates share them.
    pub suspects: Arc<Suspects>,
    /// Where uploads lie that are too large for memory: in files without a name.
    pub spool_dir: PathBuf,
    /// Who may speak to the endpoint.
    pub access: Arc<Access>,
    /// What is remembered of which engine was chosen for what.
    pub choices: Arc<Choices>,
    /// Requests in flight, and what became of others.
    pub flights: Arc<Flights>,
    /// Where requests go that name a model of nobody's here.
    pub fall_through: Option<Arc<FallThrough>>,
    /// Who answers the orders of admin keys.
    pub control: Option<Control>,
    /// Whether plain requests of the hot paths are passed on as bytes; the others are in any case hyper's.
    pub byte_relay: ByteRelay,
    /// Where connections are served.
    pub lanes: Lanes,
    /// Answers say when they were made.
    pub clock: WallClock,
    /// Answers say how much clients that can wait should hold back.
    pub throttle: Arc<Throttle>,
    /// What each GPU says of itself, for metrics.
    pub gpus: watch::Receiver<Arc<GpuFigures>>,
}

/// Whether plain requests of the hot paths are passed on as bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ByteRelay {
    /// They are.
    #[default]
    On,
    /// They go the way of every other.
    Off,
}

/// One connection of a client.
#[derive(Debug)]
struct Client {
    shared: Shared,
    flushes: Arc<flush::Flushes>,
    peer: SocketAddr,
    /// The address that it came to.
    local: Option<IpAddr>,
    /// What is spoken there.
    api: listeners::Api,
    /// The request that is asked next was tried once already.
    has_tried: AtomicBool,
    /// What becomes of the connection once the present answer is written.
    tunnel: Mutex<Option<Box<tunnel::Tunnel>>>,
}

impl Client {
    /// Leaves a tunnel for the connection to run.
    fn leave(&self, tunnel: tunnel::Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tunnel));
    }

    /// Returns how errors are told to whoever asked for `path`.
    fn dialect(&self, path: &str) -> dialect::Dialect {
        match self.api {
            listeners::Api::Ollama(_) if ollama::has(path) => dialect::Dialect::Ollama,
            listeners::Api::Ollama(_) | listeners::Api::Endpoint => surface::dialect(path),
        }
    }

    /// Takes the tunnel that was left.
    fn take_tunnel(&self) -> Option<Box<tunnel::Tunnel>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Limits of requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// The longest that a request waits for an engine, or for its turn at one. How long the engine
    /// then takes is between it and the client.
    pub hold: Duration,
    /// The longest that a request takes, its answer included; `None` bounds nothing.
    pub total: Option<Duration>,
    /// The longest that a client hears nothing while its request waits.
    pub silence: Duration,
    /// How long a stream waits in silence for a real status before it is committed to 200.
    pub quiet: Duration,
    /// The time between two signs of life on a committed stream that still waits.
    pub sign_of_life: Duration,
}

impl Limits {
    /// Makes limits from what can be set; the rest follows from what clients were seen to do.
    ///
    /// Node's `fetch` gives up after 300 s without a response head, so nobody waits in silence that
    /// long.
    pub fn new(max_body: usize, queue_timeout: Duration) -> Self {
        Self {
            max_body,
            hold: queue_timeout,
            total: None,
            silence: Duration::from_secs(290),
            quiet: Duration::from_secs(15),
            sign_of_life: Duration::from_secs(10),
        }
    }
}

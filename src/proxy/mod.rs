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
mod exchange;
mod flush;
mod forward;
mod gate;
mod hold;
mod listing;
mod normalise;
mod record;
mod relay;
mod replicas;
mod reply;
mod routes;
mod serve;
mod shortage;
mod suspects;
mod upstream;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;

pub use self::{
    gate::{Blame, Gate},
    record::Record,
    replicas::Choices,
    routes::RouteTable,
    serve::{Phase, serve},
    suspects::Suspects,
};
use crate::mailbox::Mailbox;

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
    /// What is remembered of which engine was chosen for what.
    pub choices: Arc<Choices>,
}

/// One connection of a client.
#[derive(Debug)]
struct Client {
    shared: Shared,
    flushes: Arc<flush::Flushes>,
}

/// Limits of requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// The longest that a request waits for an engine, or for its turn at one. How long the engine
    /// then takes is between it and the client.
    pub hold: Duration,
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
            silence: Duration::from_secs(290),
            quiet: Duration::from_secs(15),
            sign_of_life: Duration::from_secs(10),
        }
    }
}

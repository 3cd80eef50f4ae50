//! The control API: what people and scripts ask of the daemon, over its Unix socket.
//!
//! Owns the connections of that socket. It decides nothing: it shows the core's snapshot and puts
//! what is asked for into the mailbox. It reads no clock and no disk; `runtime` hands in the ways to
//! both. Who may talk to it is who may open the socket, and who has an admin key at the endpoint.
//!
//! ```text
//! GET  /v1/slots                     every slot, an array
//! GET  /v1/slots/{slot}              one slot
//! POST /v1/slots/{slot}/load         202 and the slot, once the wish is in the mailbox; 202 and
//!                                    `download_required`, with what is missing, where it cannot be
//! POST /v1/slots/{slot}/unload
//! POST /v1/slots/{slot}/restart
//! POST /v1/slots/{slot}/pin          also unpin, offload
//! POST /v1/slots/{slot}/priority     {"priority": 0..=100 or null}
//! POST /v1/slots/{slot}/stand-in     {"model"}: a slot that serves this model in its place is started beside it,
//!                                    and stays while the answer is read: one object a line on how it comes along
//! GET  /v1/slots/{slot}/watch        one slot a line: at once, and after each change
//! GET  /v1/slots/{slot}/logs         text; ?lines=N (100), ?follow=true
//! GET  /v1/events                    what happens from here on, one object a line
//! GET  /v1/rules                     every rule, an array
//! POST /v1/signals                   {"signal"}, 202: the rules are told a name; 404 where none listens for it
//! POST /v1/ensure                    {"bytes", "gpu", "slot"}: who goes for it, or why it cannot be had
//! POST /v1/fit                       {"needs", "slot"}: for each need who would go for it, or why it cannot be
//!                                    had, and what is free; nobody goes
//! POST /v1/plan                      what profiles would change; nothing is changed
//! GET  /v1/requests                  every request in flight, an array
//! DELETE /v1/requests/{id}           202, once it is being cancelled
//! GET  /v1/pulls                     every download of a model, an array
//! POST /v1/pulls                     202 and the download, once it is known what is to come; 507 without room
//! GET  /v1/pulls/{id}/watch          one download a line: at once, and after each change, to its end
//! DELETE /v1/pulls/{id}              202, once it is being cancelled
//! POST /v1/daemon/upgrade            202, once the program on disk takes the daemon's place
//! GET  /v1/inventory                 the models on disk
//! GET  /v1/daemon                    the daemon and the faults of profiles
//! GET  /healthz                      ok
//! ```
//!
//! What is refused is answered with OpenAI's error object.

mod daemon;
mod event;
mod gpu;
mod plan;
mod pull;
mod refusal;
mod remote;
mod request;
mod routes;
mod rules;
mod serve;
mod slot;
mod stand_in;
mod stay;
mod streams;
#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    daemon::{DaemonObject, FaultObject, PlacesObject, PressureObject, StorageObject},
    event::{EventObject, News, news},
    gpu::{GpuObject, XidObject},
    plan::{Action, OtherObject, PlanObject, PlanRequest, PlannedObject},
    pull::{PullObject, PullRequest, Pulls, ShortageObject},
    remote::Remote,
    request::RequestObject,
    rules::{ActOn, RuleActObject, RuleObject, Rules, Say, Unheard},
    serve::serve,
    slot::{DeathObject, RejectedObject, SlotObject},
    stand_in::{NoStandIn, StandIn, StandInObject, StandInWish, StandIns},
    stay::{FitObject, FitWish, RoomObject, RoomWish},
};
use crate::{
    config::Fault,
    mailbox::Mailbox,
    spec::{
        self, Monotime, SlotName,
        gpu::GpuFigures,
        pressure::Strain,
        profile::Profile,
        residence::{Asks, Unmet},
    },
    supervisor::Snapshot,
};

/// Opens a slot's log: the last lines, and with `follow` those that come, each with its line end.
pub type LogReader = Arc<dyn Fn(&SlotName, LogRequest) -> BoxStream<'static, Bytes> + Send + Sync>;

/// Tells the present moment by the daemon's clock.
pub type Now = Arc<dyn Fn() -> Monotime + Send + Sync>;

/// Tells how many requests a slot's engine works on; `None` without a live engine.
pub type InFlight = Arc<dyn Fn(&SlotName) -> Option<u32> + Send + Sync>;

/// Shows every request in flight, oldest first.
pub type RequestList = Arc<dyn Fn() -> Vec<RequestObject> + Send + Sync>;

/// Cancels a request by its id; says whether it was there.
pub type Cancel = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// Looks at the models on disk; it takes as long as the disks do.
pub type InventoryReader = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// Says what a slot's model lacks before it can be loaded; nothing for a whole one.
pub type LackReader = Arc<dyn Fn(Arc<Profile>) -> BoxFuture<'static, Option<Value>> + Send + Sync>;

/// Says what this machine has less of than a profile asks for; nothing where it has all of it.
pub type UnmetReader = Arc<dyn Fn(&Asks) -> Option<Unmet> + Send + Sync>;

/// What the control API works with; made by `runtime`.
#[derive(Clone)]
pub struct State {
    /// The core's view of all slots.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The way into the core.
    pub mailbox: Mailbox,
    /// The daemon's clock.
    pub now: Now,
    /// The gates' counters.
    pub in_flight: InFlight,
    /// The requests in flight.
    pub requests: RequestList,
    /// Cancels one of them.
    pub cancel: Cancel,
    /// Downloads of models.
    pub pulls: Pulls,
    /// Opens logs.
    pub logs: LogReader,
    /// How short the machine is.
    pub strain: watch::Receiver<Strain>,
    /// What each GPU says of itself.
    pub gpus: watch::Receiver<Arc<GpuFigures>>,
    /// What takes no writes.
    pub storage: watch::Receiver<Vec<StorageObject>>,
    /// Where news are told.
    pub news: News,
    /// The rules in force.
    pub rules: Rules,
    /// Puts slots beside others.
    pub stand_ins: StandIns,
    /// Tells the time in milliseconds since 1970.
    pub wall_clock: fn() -> u64,
    /// Looks at the models on disk.
    pub inventory: InventoryReader,
    /// Looks at the model of one slot.
    pub lack: LackReader,
    /// Looks at the machine.
    pub unmet: UnmetReader,
    /// What is wrong with profiles at present.
    pub faults: Arc<ArcSwap<Vec<Fault>>>,
    /// Takes wishes to go on with the program on disk; answered with what it calls itself, or why
    /// not.
    pub upgrades: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    /// The daemon itself.
    pub daemon: Arc<Daemon>,
}

/// What does not change while a daemon lives.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The version of slotd.
    pub version: &'static str,
    /// Its process id.
    pub pid: u32,
    /// How many programs were before this one in its process.
    pub images: u32,
    /// The CPU cores that engines share.
    pub cores: u32,
    /// When it started, by its own clock.
    pub started: Monotime,
    /// Where the endpoint listens.
    pub listen: SocketAddr,
    /// Where Ollama's clients come, if they may.
    pub ollama_listen: Option<SocketAddr>,
    /// The socket of this API.
    pub control: PathBuf,
    /// Where state and logs are kept.
    pub state_dir: PathBuf,
    /// Where profiles are read.
    pub profile_dirs: Vec<PathBuf>,
    /// Where models and engines are found.
    pub places: PlacesObject,
    /// What all engines together may take of the host's memory.
    pub memory_limit: Option<spec::Bytes>,
}

/// Which part of a slot's log is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogRequest {
    /// How many of the last lines, 0..=100000.
    pub lines: usize,
    /// What comes after them.
    pub follow: Follow,
}

/// Whether a log goes on after its last line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Follow {
    /// It ends there.
    No,
    /// It goes on until the reader leaves.
    Yes,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("daemon", &self.daemon).finish_non_exhaustive()
    }
}

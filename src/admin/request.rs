//! A request in flight as scripts see it. The keys are stable: new ones may come, none changes its
//! meaning.

use serde::{Deserialize, Serialize};

use crate::spec::SlotName;

/// One request in flight: an element of `GET /v1/requests` and of `slotd requests --json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RequestObject {
    /// What it is cancelled by; tells it from every other of this life of the daemon.
    pub id: u64,
    /// The `x-request-id` that client and engine know it by.
    pub request_id: Option<String>,
    /// The slot.
    pub slot: SlotName,
    /// `loading` (the slot is not ready), `queued` (no seat is free), `waiting` (the engine has it and
    /// has not begun to answer) or `streaming` (its answer is coming).
    pub state: String,
    /// `interactive` or `batch`.
    pub lane: String,
    /// How long ago it came.
    pub age_ms: u64,
    /// How long it waited for its engine.
    pub cold_start_ms: u64,
    /// How long it waited for a seat at its engine.
    pub queue_ms: u64,
    /// Tokens of the answer so far: as the engine says, else one for each event of the stream.
    pub tokens: u64,
    /// Where it came from: `ADDR:PORT`.
    pub client: String,
    /// What the client calls itself.
    pub agent: Option<String>,
    /// The name of the key it came with.
    pub key: Option<String>,
    /// Its client has left, and the engine ends what it has begun.
    pub is_abandoned: bool,
}

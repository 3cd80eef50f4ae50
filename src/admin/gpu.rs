//! GPUs as scripts see them.

use serde::{Deserialize, Serialize};

use crate::spec::{
    Bytes,
    gpu::{GpuFigure, GpuFigures, XidName},
    memory::{GpuState, Room},
};

/// One GPU in `GET /v1/daemon`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GpuObject {
    /// Its place in the order of bus addresses.
    pub index: u32,
    /// What stays the same when the order changes.
    pub uuid: String,
    /// Its name, for people.
    pub name: String,
    /// `present`, `silent` or `lost`.
    pub state: String,
    /// Why it is lost.
    pub reason: Option<String>,
    /// Its memory, as last read.
    pub total_bytes: Option<Bytes>,
    /// What of it nobody uses, as last read.
    pub free_bytes: Option<Bytes>,
    /// How much of the last second it computed, 0 to 100.
    pub busy_percent: Option<u32>,
    /// How many Xids it has reported since slotd listens; `null` where its driver cannot tell of any.
    pub xid_count: Option<u64>,
    /// The last of them.
    pub last_xid: Option<XidObject>,
}

/// One fault of a GPU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct XidObject {
    /// Its number in NVIDIA's catalogue.
    pub code: u64,
    /// Its number and its name for a person.
    pub text: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

impl GpuObject {
    /// Shows all of them.
    pub(super) fn all(figures: &GpuFigures) -> Vec<Self> {
        figures.iter().map(|(index, figure)| Self::of(*index, figure)).collect()
    }

    fn of(index: u32, GpuFigure { reading, busy_percent, xids }: &GpuFigure) -> Self {
        let (state, reason, room) = match &reading.state {
            GpuState::Present(room) => ("present", None, Some(*room)),
            GpuState::Silent { last } => ("silent", None, *last),
            GpuState::Lost { reason } => ("lost", Some(reason.clone()), None),
        };
        let last = xids.as_ref().and_then(|xids| xids.last.last());
        Self {
            index,
            uuid: reading.uuid.clone(),
            name: reading.name.clone(),
            state: state.to_owned(),
            reason,
            total_bytes: room.map(|Room { total, .. }| total),
            free_bytes: room.map(|Room { free, .. }| free),
            busy_percent: *busy_percent,
            xid_count: xids.as_ref().map(|xids| xids.count),
            last_xid: last.map(|xid| XidObject {
                code: xid.code,
                text: XidName(xid.code).to_string(),
                at_unix_ms: xid.at_unix_ms,
            }),
        }
    }
}

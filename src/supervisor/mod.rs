//! The core: decides everything, does nothing.

pub mod command;
pub mod event;
pub mod snapshot;

pub use command::{Command, Refusal, StopSignal};
pub use event::{ChildEvent, EngineInfo, Event, SlotEvent};
pub use snapshot::{SlotView, Snapshot, StateView};

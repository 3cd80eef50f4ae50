//! What happens, as scripts see it: one object a line. The keys are stable: new ones may come, none
//! changes its meaning.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::spec::SlotName;

/// Where news are told; whoever is slow hears how many it has missed.
pub type News = broadcast::Sender<Arc<EventObject>>;

/// How many news may wait for a reader.
const WAITING: usize = 1024;

/// Makes a place to tell news at.
pub fn news() -> News {
    broadcast::Sender::new(WAITING)
}

/// One piece of news: a line of `GET /v1/events`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct EventObject {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What: `slot-changed`, `pressure-changed`, `gpu-fault`, `gpu-changed`, `signalled`, `rule-fired`, or `missed`.
    pub event: String,
    /// The slot that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotName>,
    /// What is under pressure, or which GPU it is about: `memory`, `gpu-0`, `cpu`, `disk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The rule that fired, the name that was signalled, or the number of the Xid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The state or level before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state or level since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// One sentence for a person, without the full stop.
    pub text: String,
}

impl EventObject {
    /// Makes a piece of news of this kind.
    pub fn new(event: &str, at_unix_ms: u64, text: String) -> Self {
        Self { event: event.to_owned(), at_unix_ms, text, ..Self::default() }
    }

    /// Tells it to whoever listens.
    pub fn tell(self, news: &News) {
        // Without a listener it is told to nobody.
        drop(news.send(Arc::new(self)));
    }
}

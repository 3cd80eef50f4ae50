//! Answers that go on: a slot's changes, a slot's log, all news. Each ends when the API closes.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::error::RecvError;

use super::{EventObject, LogRequest, routes::App, serve::closed};
use crate::{spec::SlotName, supervisor::SlotView};

type Chunk = Result<Bytes, Infallible>;

/// What a watcher was last shown.
struct Watcher {
    app: App,
    name: SlotName,
    shown: Option<Arc<SlotView>>,
}

/// Returns the slot as one line of JSON, at once and after each change, until its profile is gone.
/// A reader that is slow misses steps in between, never the last one.
pub(super) fn changes(app: App, name: SlotName) -> impl Stream<Item = Chunk> + Send {
    let closed = closed(app.closing.clone());
    let watcher = Watcher { app, name, shown: None };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((Ok(line), watcher))
    });
    lines.take_until(closed)
}

/// Returns the log's text.
pub(super) fn log(
    app: &App,
    name: &SlotName,
    request: LogRequest,
) -> impl Stream<Item = Chunk> + Send + use<> {
    (app.state.logs)(name, request).map(Ok).take_until(closed(app.closing.clone()))
}

/// Returns what happens from here on, one object a line. A reader that is too slow is told how much it
/// has missed.
pub(super) fn events(app: &App) -> impl Stream<Item = Chunk> + Send + use<> {
    let closed = closed(app.closing.clone());
    let now = app.state.wall_clock;
    let lines = stream::unfold(app.state.news.subscribe(), move |mut news| async move {
        let line = match news.recv().await {
            Ok(event) => serde_json::to_vec(&*event),
            Err(RecvError::Lagged(count)) => {
                let text = format!("{count} events were missed");
                serde_json::to_vec(&EventObject::new("missed", now(), text))
            }
            Err(RecvError::Closed) => return None,
        };
        let mut line = line.ok()?;
        line.push(b'\n');
        Some((Ok(Bytes::from(line)), news))
    });
    lines.take_until(closed)
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let snapshot = self.app.state.snapshots.borrow_and_update().clone();
            let view = snapshot.slots.get(&self.name)?;
            if self.shown.as_ref() != Some(view) {
                self.shown = Some(Arc::clone(view));
                let object = self.app.show(&snapshot, &self.name)?;
                let mut line = serde_json::to_vec(&object).ok()?;
                line.push(b'\n');
                return Some(Bytes::from(line));
            }
            self.app.state.snapshots.changed().await.ok()?;
        }
    }
}

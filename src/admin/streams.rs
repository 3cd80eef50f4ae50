//! Answers that go on: a slot's changes, a slot's log. Both end when the API closes.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::{LogRequest, routes::App, serve::closed};
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

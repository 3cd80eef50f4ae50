//! Looks at the disk that models come to, and holds downloads while it is nearly full.
//!
//! It may be another one than that of the state: what is free there says nothing of it. Nobody looks while
//! nothing is downloaded.

use std::{convert::Infallible, env, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{pressure::Reader, pulls::Pulls};
use crate::{
    models::hub_cache_dir,
    sensor::{self, Figures, Gauges},
    spec::{
        Bytes,
        pressure::{Pressure, Thresholds},
    },
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks until it is dropped.
pub(super) async fn watch(pulls: Arc<Pulls>, thresholds: Thresholds) -> Infallible {
    let folders: Vec<PathBuf> = hub_cache_dir(&|name| env::var_os(name)).into_iter().collect();
    let free = move || sensor::disk_free(&folders);
    follow(pulls, free, (thresholds, PERIOD)).await
}

/// A disk that does not answer changes nothing.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn follow(
    pulls: Arc<Pulls>,
    free: impl Fn() -> Option<Bytes> + Clone + Send + 'static,
    (thresholds, period): (Thresholds, Duration),
) -> Infallible {
    loop {
        pulls.until_any().await;
        // What was seen for the pulls before is old.
        let mut gauges = Gauges::new(thresholds.clone());
        let mut disk = Reader::default();
        while pulls.is_any() {
            let disk_free = disk.read(free.clone()).await.flatten();
            let figures = Figures { disk_free, ..Figures::default() };
            if let Some(strain) = gauges.take(&figures) {
                pulls.hold(strain.disk == Pressure::Critical);
            }
            sleep(period).await;
        }
        pulls.hold(false);
    }
}

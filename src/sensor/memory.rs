//! Memory of the whole machine, as the core wants it: the host's and each GPU's, now and then.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{Gpus, host_room};
use crate::spec::memory::MemoryReading;

/// How long the kernel may take to say what is free.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reads memory every `period` until it is dropped, and tells `readings` of each change. A GPU whose
/// driver hangs, and a host that says nothing, keep nobody waiting: they are readings too.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub async fn read_memory(
    gpus: Gpus,
    period: Duration,
    readings: watch::Sender<MemoryReading>,
) -> Infallible {
    loop {
        // Lost with its thread only when that panicked.
        let host = timeout(DEADLINE, spawn_blocking(host_room)).await;
        let host = host.ok().and_then(Result::ok).flatten();
        let reading = MemoryReading { host, gpus: gpus.look_now() };
        readings.send_if_modified(|last| {
            let is_news = *last != reading;
            *last = reading;
            is_news
        });
        sleep(period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::GpuOptions;

    #[tokio::test]
    async fn the_host_is_read_without_a_driver() {
        let library = Some("/nonexistent/libnvidia-ml.so.1".into());
        let gpus = Gpus::start(&GpuOptions { library, ..GpuOptions::default() });
        let (tell, mut told) = watch::channel(MemoryReading::default());
        let reading = read_memory(gpus, Duration::from_hours(1), tell);
        tokio::select! {
            never = reading => match never {},
            changed = told.changed() => changed.unwrap(),
        }
        let reading = told.borrow();
        assert!(reading.host.is_some_and(|room| room.total >= room.free), "{reading:?}");
        assert!(reading.gpus.is_empty(), "{reading:?}");
    }
}

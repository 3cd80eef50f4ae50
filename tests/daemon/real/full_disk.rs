//! A real llama-server serves on while each folder is full or read-only; `make full-disk` prints the table.

use std::{env, path::Path, time::Duration};

use super::profile;
use crate::{
    common::{Daemon, llama_server, scratch},
    full_disk::{Disks, check, six_faults},
};

#[tokio::test]
async fn llama_server_serves_on_whatever_disk_is_full_or_read_only() {
    let (chat, other) = (profile("llama-server", "parallel = 8"), profile("llama-server", ""));
    let dir = scratch(&[("chat", &chat), ("other", &other)]);
    let seconds = env::var("SLOTD_FULL_DISK_SECONDS").ok().and_then(|told| told.parse().ok());
    let Some(disks) = Disks::mount(dir.path()) else {
        assert!(seconds.is_none(), "nothing can be mounted here, and so nothing was measured");
        return;
    };
    let settings = dir.path().join("slotd/slotd.toml");
    std::fs::create_dir_all(settings.parent().unwrap_or(Path::new("/"))).unwrap();
    let engine = llama_server().display().to_string();
    std::fs::write(&settings, format!("llama_server = {engine:?}\n")).unwrap();
    let cache = dir.path().join("cache");
    let env = [("RUNTIME_DIRECTORY", disks.sockets.path()), ("XDG_CACHE_HOME", &*cache)];
    let daemon = Daemon::start_with(dir, &env).await;
    for slot in ["chat", "other"] {
        daemon.order(slot, "load").await;
        daemon.until_state(slot, "ready").await;
    }
    let time = Duration::from_secs(seconds.unwrap_or(0));
    let outcomes = six_faults(&daemon, &disks, time).await;
    for outcome in &outcomes {
        println!("{}", outcome.row());
    }
    check(&outcomes, &daemon.log());
}

//! What the control API is given of the running daemon: its views, and its ways to those who act.

use std::{env, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::{mpsc, watch};

use super::{
    clock,
    daemon::Daemon,
    models,
    pressure::Board,
    profiles::Profiles,
    rules::{Ear, Hands},
    upgrade,
};
use crate::{
    admin::{self, Follow, LogRequest},
    config::daemon::Settings,
    mailbox::Mailbox,
    models::hub_cache_dir,
    process,
    proxy::{FlightView, Flights, RouteTable},
    sensor,
    spec::{SlotName, memory::MemoryReading},
    supervisor::Snapshot,
};

impl Daemon {
    pub(super) fn admin_state(
        &self,
        (mailbox, snapshots, board): (&Mailbox, &watch::Receiver<Arc<Snapshot>>, &Board),
        (profiles, routes): (&Profiles, &Arc<ArcSwap<RouteTable>>),
        flights: Arc<Flights>,
        (ask, rules, stand_ins): (mpsc::Sender<upgrade::Asked>, admin::Rules, admin::StandIns),
    ) -> admin::State {
        let settings = &self.tools.settings;
        let clock = self.clock;
        let logs = settings.state_dir.join("logs");
        let routes = Arc::clone(routes);
        admin::State {
            snapshots: snapshots.clone(),
            mailbox: mailbox.clone(),
            now: Arc::new(move || clock.now()),
            in_flight: Arc::new(move |slot| routes.load().in_flight(slot)),
            requests: listing(&flights),
            cancel: Arc::new(move |id| flights.cancel(id)),
            pulls: self.tools.pulls.for_admin(),
            logs: Arc::new(move |slot, request| read_log(&logs, slot, request)),
            strain: board.strain.subscribe(),
            gpus: board.gpus.subscribe(),
            storage: board.storage.subscribe(),
            news: board.news.clone(),
            rules,
            stand_ins,
            wall_clock: clock::unix_ms,
            inventory: models::inventory(&self.tools, snapshots.clone()),
            lack: models::lack(&self.tools),
            unmet: self.unmet(),
            faults: profiles.faults(),
            upgrades: ask,
            daemon: Arc::new(admin::Daemon {
                version: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
                started: clock.now(),
                images: process::images(),
                cores: self.tools.machine.cores,
                listen: self.addresses.endpoint,
                ollama_listen: self.addresses.ollama,
                control: settings.control.clone(),
                state_dir: settings.state_dir.clone(),
                profile_dirs: settings.profile_dirs.clone(),
                places: places(settings),
                memory_limit: settings.memory.limit,
            }),
        }
    }

    /// Looks at what a profile asks for as the core does; a profile that asks for nothing costs nothing.
    fn unmet(&self) -> admin::UnmetReader {
        let (has_gpu, gpus) = (self.tools.machine.has_gpu, self.tools.gpus.clone());
        Arc::new(move |asks| {
            if !asks.is_any() {
                return None;
            }
            let host = asks.memory.and_then(|_| sensor::host_room());
            let gpus = gpus.as_ref().map(|gpus| gpus.look_now()).unwrap_or_default();
            asks.unmet(&MemoryReading { host, gpus }, has_gpu)
        })
    }
}

/// Says where models and engines are found.
fn places(settings: &Settings) -> admin::PlacesObject {
    admin::PlacesObject {
        config: settings.file.clone(),
        home: settings.home.clone(),
        model_dirs: settings.model_dirs.clone(),
        cache_dir: settings.cache_dir.clone(),
        hub_cache: hub_cache_dir(&|name| env::var_os(name)),
        llama_server: settings.llama_server.clone(),
    }
}

/// Puts together what rules work with.
pub(super) fn hands(board: &Board, mailbox: &Mailbox, routes: &Arc<ArcSwap<RouteTable>>) -> Hands {
    let routes = Arc::clone(routes);
    Hands {
        mailbox: mailbox.clone(),
        news: board.news.clone(),
        idle_for: Arc::new(move |slot| routes.load().idle_for(slot)),
        board: board.rules.clone(),
    }
}

/// Makes the control API's ways to the rules.
pub(super) fn of_rules(ear: Ear, board: &Board) -> admin::Rules {
    let (listed, acted) = (board.rules.clone(), board.rules.clone());
    admin::Rules {
        list: Arc::new(move || listed.rules()),
        say: Arc::new(move |name| ear.say(name)),
        act_on: Arc::new(move |slot| acted.act_on(slot)),
    }
}

/// Shows requests in flight to the control API.
fn listing(flights: &Arc<Flights>) -> admin::RequestList {
    let flights = Arc::clone(flights);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let show = move |flight: FlightView| admin::RequestObject {
        id: flight.id,
        request_id: flight.request_id,
        slot: flight.slot,
        state: flight.stage.as_str().to_owned(),
        lane: flight.lane.as_str().to_owned(),
        age_ms: ms(flight.age),
        cold_start_ms: ms(flight.waits.0),
        queue_ms: ms(flight.waits.1),
        tokens: flight.tokens,
        client: flight.peer,
        agent: flight.agent,
        key: flight.key,
        is_abandoned: flight.is_abandoned,
    };
    Arc::new(move || flights.list().into_iter().map(show).collect())
}

/// Opens a slot's log for the control API.
fn read_log(logs: &Path, slot: &SlotName, request: LogRequest) -> BoxStream<'static, Bytes> {
    let folder = logs.join(slot.as_str());
    let lines = |lines: Vec<process::LogLine>| {
        let text: String = lines.into_iter().map(|line| line.text + "\n").collect();
        Bytes::from(text)
    };
    match request.follow {
        Follow::Yes => process::follow(folder, request.lines)
            .take_while(|read| std::future::ready(read.is_ok()))
            .filter_map(move |read| std::future::ready(read.ok().map(lines)))
            .boxed(),
        Follow::No => futures_util::stream::once(async move {
            let reading =
                tokio::task::spawn_blocking(move || process::read_tail(&folder, request.lines));
            reading.await.ok().and_then(Result::ok).map(lines).unwrap_or_default()
        })
        .boxed(),
    }
}

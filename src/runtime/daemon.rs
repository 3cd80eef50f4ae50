//! The running daemon: its parts put together, and taken apart in order.

use std::{
    collections::BTreeMap, convert::Infallible, fs, mem, path::PathBuf, sync::Arc, time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    access::Doors,
    adopt::Adopted,
    attend::{self, Reason},
    clock::{self, Clock},
    control::{hands, of_rules},
    driver::{Driver, Ended},
    effects::Effects,
    engine_task::Tools,
    gpus,
    listen::{Addresses, Keeper, Kept, Sockets},
    memory, model_disk,
    pressure::{self, Board},
    profiles::Profiles,
    publish::Publisher,
    remember,
    rules::{self, Ear, Heard},
    service_manager,
    signals::Signals,
    stand_ins,
    start::StartFault,
    stderr::drain_log,
    storage::{self, Place},
    thrift,
    upgrade::{self, Next},
    whole,
};
use crate::{
    admin,
    config::{daemon::Settings, watch::Watch},
    engine::Machine,
    mailbox::{self, Mailbox},
    proxy::{
        self, AccessLog, ByteRelay, Control, Cores, Flights, Limits, Listeners, OllamaListener,
        Phase, RouteTable, Shared,
    },
    spec::SlotName,
    store::{Remembered, StateDir},
    supervisor::{Event, Memory, Policy, Snapshot, Supervisor},
};

/// When the control API answers though the profiles have not been read.
const ANSWERS_AFTER: Duration = Duration::from_secs(5);

/// Everything that start-up has made.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) state: Arc<StateDir>,
    pub(super) remembered: Remembered,
    pub(super) tools: Arc<Tools>,
    pub(super) adopted: Vec<Adopted>,
    pub(super) addresses: Addresses,
    pub(super) doors: Doors,
    pub(super) next: Next,
    /// Threads of the endpoint's connections; they outlive those.
    pub(super) cores: Cores,
}

/// How a daemon ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// It was told to stop.
    Stop,
    /// The next image goes on with its sockets.
    Upgrade { kept: Kept, next: Next },
}

/// What runs while the daemon does.
struct Parts {
    mailbox: Mailbox,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    phase: watch::Sender<Phase>,
    /// Ends streams of the control API that go over the endpoint.
    close_orders: watch::Sender<bool>,
    /// Dropping it ends the control API.
    end_admin: oneshot::Sender<()>,
    /// What the endpoint serves with.
    shared: Shared,
    endpoint: JoinSet<()>,
    servers: JoinSet<()>,
    helpers: JoinSet<Infallible>,
    keeping: JoinSet<Remembered>,
    end_keeping: CancellationToken,
    driving: JoinSet<Ended>,
}

impl Daemon {
    /// Runs until it is told to stop and everything is stopped. `listening` is called once every
    /// slot can be asked for.
    pub(super) async fn run(
        mut self,
        sockets: Sockets,
        listening: impl FnOnce(Addresses),
    ) -> Result<Ending, StartFault> {
        let settings = &self.tools.settings;
        let mut profiles = Profiles::new(
            settings.profile_dirs.clone(),
            settings.context(),
            settings.state_dir.join("logs"),
        );
        // The watch is set before the first look, so that no edit falls between the two.
        let (look_again, looks) = mpsc::channel(1);
        let of_rules = settings.rules_file().into_iter().collect();
        let watches = [
            Watch::start(settings.profile_dirs.clone(), look_again.clone()),
            Watch::start_on_files(of_rules, look_again),
        ];
        for fault in watches.iter().filter_map(|watch| watch.as_ref().err()) {
            error!(%fault, "profiles are not watched, `SIGHUP` reads them again");
        }
        remember::forget_gone(&mut self.remembered, settings.profile_dirs.clone()).await;
        let Sockets { endpoint, ollama, control, kept } = sockets;
        let ollama = ollama.map(|socket| OllamaListener { socket, clock: clock::unix_ms });
        let listeners = Listeners { endpoint, ollama };
        let (ask, mut upgrades) = mpsc::channel(1);
        let (stand_in, stand_ins) = stand_ins::channel();
        let mut parts = self.start(control, &profiles, (ask, stand_in));
        let is_read = attend::reload(&mut self.signals, &mut profiles, &parts.mailbox).await;
        let mut reason = Reason::Stop;
        if is_read.is_some() {
            // The driver lives: the sender is not gone. A client that saw the line finds its slots.
            drop(parts.snapshots.wait_for(|snapshot| profiles.are_all_in(snapshot)).await);
            // Who has come before waits in the socket's queue: a slot of an unread profile is none.
            parts.phase.send_replace(Phase::Serving);
            let (shared, phase) = (parts.shared.clone(), parts.phase.subscribe());
            parts.endpoint.spawn(proxy::serve(listeners, shared, phase));
            listening(self.addresses);
            service_manager::ready();
            info!(address = %self.addresses.endpoint, "daemon started");
            let changes = (looks, stand_ins);
            let others = (&parts.mailbox, &self.next);
            reason = tokio::select! {
                reason = attend::attend(&mut self.signals, &mut profiles, changes, &mut upgrades, others) => reason,
                ended = parts.driving.join_next() => {
                    // It ends before it is told to in one way only.
                    let fault = ended.and_then(Result::err);
                    error!(?fault, "driver broke off");
                    return Err(StartFault::Broken);
                }
            };
        }
        drop(watches);
        self.stop(parts, kept, reason).await
    }

    /// Starts the driver and everything around it.
    fn start(
        &mut self,
        control: UnixListener,
        profiles: &Profiles,
        (ask, stand_ins): (mpsc::Sender<upgrade::Asked>, admin::StandIns),
    ) -> Parts {
        let settings = &self.tools.settings;
        let (mailbox, inbox) = mailbox::channel();
        let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
        let board = Board::new();
        let news = board.news.clone();
        let (publisher, snapshots) = Publisher::new(Arc::clone(&routes), self.clock, news);
        let phase = watch::Sender::new(Phase::Starting);
        let mut shared = self.shared(&routes, &mailbox, &board);
        let flights = Arc::clone(&shared.flights);
        let (end_admin, admin_ends) = oneshot::channel();
        let seen = (&mailbox, &snapshots, &board);
        let (ear, heard) = Ear::new(profiles.rules(), board.news.clone());
        let rules = of_rules(ear, &board);
        let state = self.admin_state(seen, (profiles, &routes), flights, (ask, rules, stand_ins));
        let (close_orders, closing) = watch::channel(false);
        let remote = admin::Remote::new(state.clone(), closing);
        shared.control = Some(Control::new(move |request| remote.clone().answer(request)));
        let mut servers = JoinSet::new();
        let begun = has_begun(phase.subscribe());
        servers.spawn(async move {
            begun.await;
            admin::serve(control, state, async move { drop(admin_ends.await) }).await;
        });
        let mut helpers = self.helpers(seen, (profiles, &routes), heard);
        let (mut keeping, end_keeping) = (JoinSet::new(), CancellationToken::new());
        let (state, known) = (Arc::clone(&self.state), self.remembered.clone());
        let (uses, thrift) = (Arc::clone(&self.tools.uses), Arc::clone(&self.tools.thrift));
        remember::recall_uses(&self.remembered, &uses, clock::unix_ms());
        let memory = remember::recall(&self.remembered, &uses);
        let (kept, to) = ((snapshots.clone(), uses), (state, board.storage.clone(), thrift));
        keeping.spawn(remember::keep(to, kept, known, end_keeping.clone()));
        let mut effects = Effects::new(Arc::clone(&self.tools));
        self.watch_machine(&mut helpers, board, &mailbox);
        for engine in mem::take(&mut self.adopted) {
            effects.adopt(engine);
        }
        let driver = Driver {
            core: Supervisor::new(policy(settings, self.tools.machine), clock::seed(), memory),
            inbox,
            effects,
            publisher,
            watchdog: service_manager::Watchdog::from_environment(),
            clock: self.clock,
        };
        let mut driving = JoinSet::new();
        driving.spawn(driver.run());
        Parts {
            mailbox,
            snapshots,
            phase,
            close_orders,
            end_admin,
            shared,
            endpoint: JoinSet::new(),
            servers,
            helpers,
            keeping,
            end_keeping,
            driving,
        }
    }

    /// Starts what looks at things beside the driver.
    fn helpers(
        &self,
        (mailbox, snapshots, board): (&Mailbox, &watch::Receiver<Arc<Snapshot>>, &Board),
        (profiles, routes): (&Profiles, &Arc<ArcSwap<RouteTable>>),
        heard: Heard,
    ) -> JoinSet<Infallible> {
        let mut helpers = JoinSet::new();
        helpers.spawn(memory::measure(mailbox.clone(), snapshots.clone()));
        helpers.spawn(self.doors.clone().keep());
        helpers.spawn(drain_log());
        let (pulls, thresholds) =
            (Arc::clone(&self.tools.pulls), self.tools.settings.pressure.clone());
        helpers.spawn(model_disk::watch(pulls, thresholds));
        let tools = Arc::clone(&self.tools);
        helpers.spawn(whole::watch(tools, snapshots.clone(), mailbox.clone()));
        helpers.spawn(storage::watch(board.storage.clone(), self.folders()));
        helpers.spawn(rules::follow(profiles.rules(), heard, hands(board, mailbox, routes)));
        helpers
    }

    fn watch_machine(&self, helpers: &mut JoinSet<Infallible>, board: Board, mailbox: &Mailbox) {
        if let Some(gpus) = &self.tools.gpus {
            helpers.spawn(gpus::watch(Arc::clone(gpus), board.clone()));
        }
        helpers.spawn(thrift::follow(Arc::clone(&self.tools), board.strain.subscribe()));
        helpers.spawn(pressure::watch(self.machine(), board, mailbox.clone()));
    }

    /// Says where slotd writes.
    fn folders(&self) -> Vec<(Place, PathBuf)> {
        let settings = &self.tools.settings;
        let logs = settings.state_dir.join("logs");
        vec![
            (Place::State, settings.state_dir.clone()),
            (Place::EngineLogs, logs),
            (Place::Cache, settings.cache_dir.clone()),
        ]
    }

    /// Says what is looked at for pressure.
    fn machine(&self) -> pressure::Machine {
        let settings = &self.tools.settings;
        pressure::Machine {
            gpus: self.tools.gpus.clone(),
            folders: self.folders().into_iter().map(|(_, folder)| folder).collect(),
            thresholds: settings.pressure.clone(),
        }
    }

    /// Puts together what every connection works with.
    fn shared(
        &self,
        routes: &Arc<ArcSwap<RouteTable>>,
        mailbox: &Mailbox,
        board: &Board,
    ) -> Shared {
        let settings = &self.tools.settings;
        let max_body = usize::try_from(settings.max_body.0).unwrap_or(usize::MAX);
        let access_log = if settings.access_log { AccessLog::On } else { AccessLog::Off };
        Shared {
            routes: Arc::clone(routes),
            mailbox: mailbox.clone(),
            limits: Limits {
                total: settings.request_timeout,
                ..Limits::new(max_body, settings.queue_timeout)
            },
            suspects: Arc::clone(&self.tools.suspects),
            spool_dir: settings.state_dir.clone(),
            access: self.doors.access(settings),
            choices: Arc::default(),
            flights: Flights::new(access_log),
            byte_relay: if settings.byte_relay { ByteRelay::On } else { ByteRelay::Off },
            lanes: self.cores.lanes(),
            clock: clock::unix_ms,
            throttle: Arc::clone(&board.throttle),
            gpus: board.gpus.subscribe(),
            fall_through: self.doors.fall_through(),
            control: None,
        }
    }

    /// Stops every slot, then what is around them, then writes the last state.
    async fn stop(
        self,
        mut parts: Parts,
        kept: Kept,
        reason: Reason,
    ) -> Result<Ending, StartFault> {
        info!(?reason, "daemon stopping");
        match reason {
            Reason::Stop => service_manager::stopping(),
            Reason::Upgrade => service_manager::reloading(),
        }
        let kept = leave_the_door(&mut parts, kept, reason).await;
        // A start that waits for its model would hold the end up.
        self.tools.pulls.end().await;
        parts.mailbox.tell(Event::ShutdownRequested).await;
        let Some(Ok(ended)) = parts.driving.join_next().await else {
            error!("driver broke off");
            return Err(StartFault::Broken);
        };
        ended.effects.finish().await;
        self.wind_up(parts, ended.memory).await;
        match (reason, kept) {
            (Reason::Upgrade, Some(kept)) if !self.signals.ask_for_the_end() => {
                Ok(Ending::Upgrade { kept, next: self.next })
            }
            (Reason::Stop | Reason::Upgrade, _) => {
                // A socket that nobody serves only confuses; a next daemon would remove it too.
                drop(fs::remove_file(&self.tools.settings.control));
                Ok(Ending::Stop)
            }
        }
    }

    /// Ends what is around the slots, once all of them are down.
    async fn wind_up(&self, mut parts: Parts, memory: BTreeMap<SlotName, Memory>) {
        parts.close_orders.send_replace(true);
        parts.phase.send_replace(Phase::Ended);
        drop(parts.end_admin);
        while parts.endpoint.join_next().await.is_some() {}
        while parts.servers.join_next().await.is_some() {}
        parts.helpers.shutdown().await;
        parts.end_keeping.cancel();
        if let Some(Ok(written)) = parts.keeping.join_next().await {
            let last = (memory, &*self.tools.uses);
            remember::keep_last(Arc::clone(&self.state), written, last).await;
        }
        // Reaped before this process is another program, which would not know it.
        self.tools.spawner.dismiss_guard().await;
        info!("daemon stopped");
    }
}

/// What waits for a slot to come up waits for its engine next: one limit for both queues, so that
/// nobody waits through a load only to be turned away.
fn policy(settings: &Settings, machine: Machine) -> Policy {
    let waiting_limit = usize::try_from(settings.queue_limit).unwrap_or(usize::MAX).max(1);
    let usual = Policy::default();
    let climb_after = settings.climb_after;
    let climb_idle = usual.climb_idle.min(climb_after);
    let memory = &settings.memory;
    Policy {
        waiting_limit,
        climb_after,
        climb_idle,
        machine,
        memory_limit: memory.limit,
        memory_reserve: memory.reserve,
        max_resident: memory.max_resident,
        max_resident_per: memory.max_resident_per.clone(),
        restore_after: memory.restore_after,
        pressure: settings.pressure.onset(),
        ..usual
    }
}

/// Waits until the core knows every slot and every adopted engine, or for a while: whoever asks
/// before waits in the control socket's queue, for no answer is better than a wrong one.
async fn has_begun(mut phase: watch::Receiver<Phase>) {
    let begun = phase.wait_for(|phase| *phase != Phase::Starting);
    // A daemon whose profiles lie on a dead mount is to say at least that it is there.
    drop(timeout(ANSWERS_AFTER, begun).await);
}

/// Decides what becomes of clients while the daemon goes; returns the sockets if they stay open.
async fn leave_the_door(parts: &mut Parts, kept: Kept, reason: Reason) -> Option<Kept> {
    match (reason, kept.keeper()) {
        (Reason::Stop, Keeper::Nobody) => {
            drop(kept);
            parts.phase.send_replace(Phase::Stopping);
            None
        }
        // Who comes from here on waits in the sockets' queues for the next daemon.
        (Reason::Upgrade, _) | (Reason::Stop, Keeper::ServiceManager) => {
            close_the_door(parts).await;
            Some(kept)
        }
    }
}

/// Takes no more connections, and lets requests of open ones end: each slot is still there for
/// them. Those that outlast the longest `stop_timeout` are left to their slots' stops.
async fn close_the_door(parts: &mut Parts) {
    let limit = {
        let snapshot = parts.snapshots.borrow();
        snapshot.slots.values().map(|slot| slot.profile.stop_timeout).max()
    };
    parts.close_orders.send_replace(true);
    parts.phase.send_replace(Phase::Leaving);
    let ended = timeout(limit.unwrap_or_default(), async {
        while parts.endpoint.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        info!("requests are still in flight and are cut");
    }
}

//! The running daemon: its parts put together, and taken apart in order.

use std::{convert::Infallible, fs, net::SocketAddr, pin::pin, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    clock::{self, Clock},
    driver::{Driver, Ended},
    effects::Effects,
    engine_task::Tools,
    memory,
    profiles::Profiles,
    publish::Publisher,
    remember, service_manager,
    signals::{Asked, Signals},
    start::StartFault,
};
use crate::{
    admin::{self, Follow, LogRequest},
    config::{daemon::Settings, watch::Watch},
    mailbox::{self, Mailbox},
    process,
    proxy::{self, Limits, Phase, RouteTable, Shared},
    spec::SlotName,
    store::{Remembered, StateDir},
    supervisor::{Event, Policy, Snapshot, Supervisor},
};

/// Everything that start-up has made.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) state: Arc<StateDir>,
    pub(super) remembered: Remembered,
    pub(super) tools: Arc<Tools>,
    pub(super) address: SocketAddr,
}

/// What runs while the daemon does.
struct Parts {
    mailbox: Mailbox,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    phase: watch::Sender<Phase>,
    /// Dropping it ends the control API.
    end_admin: oneshot::Sender<()>,
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
        listener: TcpListener,
        control: UnixListener,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<(), StartFault> {
        let settings = &self.tools.settings;
        let mut profiles = Profiles::new(settings.profile_dirs.clone(), settings.context());
        // The watch is set before the first look, so that no edit falls between the two.
        let (look_again, looks) = mpsc::channel(1);
        let watch = Watch::start(settings.profile_dirs.clone(), look_again);
        if let Err(fault) = &watch {
            error!(%fault, "profiles are not watched, `SIGHUP` reads them again");
        }
        let mut parts = self.start(listener, control, &profiles);
        if let Some(slots) = reload(&mut self.signals, &mut profiles, &parts.mailbox).await {
            // The driver lives: the sender is not gone. A client that saw the line finds its slots.
            drop(parts.snapshots.wait_for(|snapshot| snapshot.slots.len() >= slots).await);
            parts.phase.send_replace(Phase::Serving);
            listening(self.address);
            service_manager::ready();
            info!(address = %self.address, "daemon started");
            tokio::select! {
                () = attend(&mut self.signals, &mut profiles, looks, &parts.mailbox) => {}
                ended = parts.driving.join_next() => {
                    // It ends before it is told to in one way only.
                    let fault = ended.and_then(Result::err);
                    error!(?fault, "driver broke off");
                    return Err(StartFault::Broken);
                }
            }
        }
        drop(watch);
        self.stop(parts).await
    }

    /// Starts the driver and everything around it.
    fn start(&self, listener: TcpListener, control: UnixListener, profiles: &Profiles) -> Parts {
        let settings = &self.tools.settings;
        let (mailbox, inbox) = mailbox::channel();
        let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
        let (publisher, snapshots) = Publisher::new(Arc::clone(&routes));
        let (phase, phases) = watch::channel(Phase::Starting);
        let max_body = usize::try_from(settings.max_body.0).unwrap_or(usize::MAX);
        let limits = Limits::new(max_body, settings.queue_timeout);
        let shared = Shared { routes: Arc::clone(&routes), mailbox: mailbox.clone(), limits };
        let (end_admin, admin_ends) = oneshot::channel();
        let state = self.admin_state(&mailbox, &snapshots, (profiles, &routes));
        let mut servers = JoinSet::new();
        servers.spawn(proxy::serve(listener, shared, phases));
        servers.spawn(admin::serve(control, state, async move { drop(admin_ends.await) }));
        let mut helpers = JoinSet::new();
        helpers.spawn(memory::measure(mailbox.clone(), snapshots.clone()));
        let (mut keeping, end_keeping) = (JoinSet::new(), CancellationToken::new());
        let (state, known) = (Arc::clone(&self.state), self.remembered.clone());
        keeping.spawn(remember::keep(state, snapshots.clone(), known, end_keeping.clone()));
        let memory = remember::recall(&self.remembered);
        let driver = Driver {
            core: Supervisor::new(policy(settings), clock::seed(), memory),
            inbox,
            effects: Effects::new(Arc::clone(&self.tools)),
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
            end_admin,
            servers,
            helpers,
            keeping,
            end_keeping,
            driving,
        }
    }

    /// Stops every slot, then what is around them, then writes the last state.
    async fn stop(self, mut parts: Parts) -> Result<(), StartFault> {
        info!("daemon stopping");
        service_manager::stopping();
        parts.phase.send_replace(Phase::Stopping);
        parts.mailbox.tell(Event::ShutdownRequested).await;
        let memory = if let Some(Ok(ended)) = parts.driving.join_next().await {
            ended.effects.finish().await;
            Some(ended.memory)
        } else {
            error!("driver broke off");
            None
        };
        parts.phase.send_replace(Phase::Ended);
        drop(parts.end_admin);
        while parts.servers.join_next().await.is_some() {}
        parts.helpers.shutdown().await;
        parts.end_keeping.cancel();
        let written = parts.keeping.join_next().await.and_then(Result::ok);
        let is_whole = memory.is_some();
        if let (Some(written), Some(memory)) = (written, memory) {
            remember::keep_last(Arc::clone(&self.state), written, memory).await;
        }
        // A socket that nobody serves only confuses; a next daemon would remove it too.
        drop(fs::remove_file(&self.tools.settings.control));
        info!("daemon stopped");
        if is_whole { Ok(()) } else { Err(StartFault::Broken) }
    }

    fn admin_state(
        &self,
        mailbox: &Mailbox,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
        (profiles, routes): (&Profiles, &Arc<ArcSwap<RouteTable>>),
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
            logs: Arc::new(move |slot, request| read_log(&logs, slot, request)),
            faults: profiles.faults(),
            daemon: Arc::new(admin::Daemon {
                version: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
                started: clock.now(),
                listen: self.address,
                control: settings.control.clone(),
                state_dir: settings.state_dir.clone(),
                profile_dirs: settings.profile_dirs.clone(),
            }),
        }
    }
}

/// What waits for a slot to come up waits for its engine next: one limit for both queues, so that
/// nobody waits through a load only to be turned away.
fn policy(settings: &Settings) -> Policy {
    let waiting_limit = usize::try_from(settings.queue_limit).unwrap_or(usize::MAX).max(1);
    let usual = Policy::default();
    let climb_after = settings.climb_after;
    let climb_idle = usual.climb_idle.min(climb_after);
    Policy { waiting_limit, climb_after, climb_idle, ..usual }
}

/// Reads the profiles; `None` when a signal says stop before they are read.
async fn reload(
    signals: &mut Signals,
    profiles: &mut Profiles,
    mailbox: &Mailbox,
) -> Option<usize> {
    loop {
        let mut asked_again = false;
        let slots = {
            let mut reading = pin!(profiles.reload(mailbox));
            loop {
                tokio::select! {
                    slots = &mut reading => break slots,
                    asked = signals.next() => match asked {
                        Asked::Stop => return None,
                        Asked::Reload => asked_again = true,
                    },
                }
            }
        };
        if !asked_again {
            return Some(slots);
        }
    }
}

/// Reads profiles again when they change or a signal says so; returns when a signal says stop.
async fn attend(
    signals: &mut Signals,
    profiles: &mut Profiles,
    mut looks: mpsc::Receiver<()>,
    mailbox: &Mailbox,
) {
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return,
                Asked::Reload => {
                    service_manager::reloading();
                    let Some(slots) = reload(signals, profiles, mailbox).await else { return };
                    info!(slots, "profiles read again");
                    service_manager::ready();
                }
            },
            Some(()) = looks.recv() => {
                if reload(signals, profiles, mailbox).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Opens a slot's log for the control API.
fn read_log(
    logs: &std::path::Path,
    slot: &SlotName,
    request: LogRequest,
) -> BoxStream<'static, Bytes> {
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

//! Performs commands, and brings back what came of them.
//!
//! Owns the handles of live children (their gates and stop handles) and the tasks that watch them.
//! Everything here returns at once: what takes time is a task that reports back.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tracing::error;

use super::{
    adopt::Adopted,
    clock,
    engine_task::{self, Reporter, Tools, Wanted},
    outside::{self, Outside},
    sizing, survey,
};
use crate::{
    process::StopHandle,
    proxy::{Blame, Gate},
    sensor::{self, Members},
    spec::{
        Generation, SlotName,
        death::{Evidence, ExitStatus, Verdict},
        gpu::OFF_THE_BUS,
        profile::Profile,
    },
    supervisor::{ChildEvent, Command, Event, Sight, SlotEvent, StopSignal},
};

/// How many reports of children may wait for the driver. A child's task waits when it is full.
const REPORTS: usize = 256;

/// What a child's task has to say.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) slot: SlotName,
    pub(super) generation: Generation,
    pub(super) event: ChildEvent,
    /// Sent with [`ChildEvent::Spawned`]: the way to the child.
    pub(super) handles: Option<Handles>,
}

/// The ways to one live child.
#[derive(Clone, Debug)]
pub(super) struct Handles {
    pub(super) gate: Arc<Gate>,
    pub(super) members: Members,
    pub(super) stop: StopHandle,
    /// Asks the child's task for the program that ends it, where there is one, before `SIGTERM`.
    pub(super) farewell: Option<Arc<Notify>>,
    /// Tells the child's task to let it run on.
    pub(super) leave: Arc<Notify>,
}

#[derive(Debug)]
struct Live {
    generation: Generation,
    handles: Handles,
}

/// The performing side of the driver.
#[derive(Debug)]
pub(super) struct Effects {
    tools: Arc<Tools>,
    live: BTreeMap<SlotName, Live>,
    gates: BTreeMap<SlotName, Arc<Gate>>,
    /// Watches over engines that are not ours.
    outside: BTreeMap<SlotName, Outside>,
    /// A child's task that panicked says whose it was.
    tasks: JoinSet<Option<(SlotName, Generation)>>,
    /// Readings of the machine's memory.
    reading: JoinSet<survey::Surveyed>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    answers: VecDeque<Event>,
}

impl Effects {
    /// Makes the performing side; nothing runs yet.
    pub(super) fn new(tools: Arc<Tools>) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS);
        Self {
            tools,
            live: BTreeMap::new(),
            gates: BTreeMap::new(),
            outside: BTreeMap::new(),
            tasks: JoinSet::new(),
            reading: JoinSet::new(),
            reports,
            reporter,
            answers: VecDeque::new(),
        }
    }

    /// Returns the gates of live children, for the routing table.
    pub(super) fn gates(&self) -> &BTreeMap<SlotName, Arc<Gate>> {
        &self.gates
    }

    /// Returns what a command brought about at once.
    pub(super) fn next_answer(&mut self) -> Option<Event> {
        self.answers.pop_front()
    }

    /// Waits for news of a child. Cancel-safe.
    pub(super) async fn next_report(&mut self) -> Event {
        loop {
            tokio::select! {
                // What a task said before its end goes first.
                biased;
                // `None` cannot be while `reporter` lives.
                Some(report) = self.reports.recv() => return self.take(report),
                Some(read) = self.reading.join_next() => {
                    return self.take_reading(read.unwrap_or_default());
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(Some((slot, generation))) = ended {
                        return self.broken(slot, generation);
                    }
                }
            }
        }
    }

    /// Makes the news of a task that panicked and took its child with it: the core must not wait.
    fn broken(&mut self, slot: SlotName, generation: Generation) -> Event {
        error!(%slot, %generation, "engine's task broke off");
        if self.outside.contains_key(&slot) {
            let reason = "slotd's own look at it broke off; its log says where".to_owned();
            let sight = Sight::Absent { reason };
            return child_event(slot, generation, ChildEvent::Looked { sight });
        }
        let at_unix_ms = clock::unix_ms();
        let Some(live) = self.live.remove(&slot).filter(|live| live.generation == generation)
        else {
            let reason =
                "slotd's own task for this engine broke off; its log says where".to_owned();
            let verdict = Verdict::UnexpectedExit;
            let event = ChildEvent::SpawnFailed { verdict, reason, at_unix_ms, engine: None };
            return child_event(slot, generation, event);
        };
        live.handles.gate.mark_dead(Blame::Nobody);
        self.gates.remove(&slot);
        let evidence = Evidence::of(ExitStatus::Unknown);
        // Dropped with its task, the child is killed and reaped behind our back.
        self.answers.push_back(child_event(slot.clone(), generation, ChildEvent::Reaped));
        child_event(slot, generation, ChildEvent::Exited { evidence, at_unix_ms })
    }

    /// Keeps the handles in step with the child's news and makes the core's event of it.
    fn take(&mut self, report: Report) -> Event {
        let Report { slot, generation, event, handles } = report;
        if let Some(handles) = handles {
            self.gates.insert(slot.clone(), Arc::clone(&handles.gate));
            self.live.insert(slot.clone(), Live { generation, handles });
        }
        if let Some(live) = self.live.get(&slot).filter(|live| live.generation == generation) {
            match event {
                // Streams in flight must not end as if they were whole.
                ChildEvent::Exited { ref evidence, .. } => {
                    live.handles.gate.mark_dead(blame(evidence));
                }
                ChildEvent::Reaped => {
                    self.live.remove(&slot);
                    self.gates.remove(&slot);
                }
                ChildEvent::Sized { .. }
                | ChildEvent::Spawned { .. }
                | ChildEvent::SpawnFailed { .. }
                | ChildEvent::Progressed { .. }
                | ChildEvent::BecameReady
                | ChildEvent::BecameUnready
                | ChildEvent::Drained
                | ChildEvent::ActivityMeasured { .. }
                | ChildEvent::RoomMeasured { .. }
                | ChildEvent::MemoryMeasured { .. }
                | ChildEvent::VitalsRead { .. }
                | ChildEvent::Looked { .. } => {}
            }
        }
        child_event(slot, generation, event)
    }

    /// Performs one command about a child. Grants and refusals are the driver's.
    pub(super) fn perform(&mut self, command: Command) {
        match command {
            Command::Size { slot, generation, profile } => {
                let reporter = self.reporter_for(slot.clone(), generation);
                let task = sizing::size(Arc::clone(&self.tools), profile, reporter);
                self.run((slot, generation), task);
            }
            Command::Spawn { slot, generation, profile, rung, cores, devices } => {
                let wanted = Wanted { profile, rung, cores, devices };
                let reporter = self.reporter_for(slot.clone(), generation);
                let task = engine_task::run(Arc::clone(&self.tools), wanted, reporter);
                self.run((slot, generation), task);
            }
            Command::ReadMemory => self.read_memory(),
            Command::Watch { slot, generation, profile } => {
                self.watch(slot, generation, &profile);
            }
            Command::Signal { slot, generation, signal } => {
                if let Some(handles) = self.live(&slot, generation) {
                    // Nobody closed it before: the engine is past saving, with requests in flight.
                    if !handles.gate.is_closed() {
                        handles.gate.blame();
                    }
                    // Those who wait for a seat are better off with the next engine.
                    handles.gate.close();
                    match (signal, &handles.farewell) {
                        (StopSignal::Terminate, Some(bell)) => bell.notify_one(),
                        (StopSignal::Terminate | StopSignal::Kill, _) => {
                            handles.stop.signal(signal);
                        }
                    }
                }
            }
            Command::Drain { slot, generation } => self.drain(slot, generation),
            Command::CutRequests { slot, generation } => {
                if let Some(gate) = self.gate(&slot, generation) {
                    gate.cut();
                }
            }
            Command::Leave { slot, generation } => {
                if let Some(handles) = self.live(&slot, generation) {
                    handles.leave.notify_one();
                    self.live.remove(&slot);
                    self.gates.remove(&slot);
                } else if let Some(outside) = self.outside_of(&slot, generation) {
                    outside.leave();
                    self.gates.remove(&slot);
                }
            }
            Command::MeasureActivity { slot, generation } => {
                if let Some(handles) = self.live(&slot, generation) {
                    let in_flight = handles.gate.in_flight();
                    let idle_for = handles.gate.idle_for();
                    let event = ChildEvent::ActivityMeasured { in_flight, idle_for };
                    self.answers.push_back(child_event(slot, generation, event));
                }
            }
            Command::MeasureRoom { slot, generation } => self.measure_room(slot, generation),
            Command::Grant { .. }
            | Command::Refuse { .. }
            | Command::AnswerRoom { .. }
            | Command::Finish => {}
        }
    }

    /// Goes on with an engine of an earlier daemon. Called before the driver runs: the core hears of
    /// it before anything else.
    pub(super) fn adopt(&mut self, adopted: Adopted) {
        let record = adopted.record.clone();
        let (slot, generation) = (record.slot, record.generation);
        let reporter = self.reporter_for(slot.clone(), generation);
        let profile = Arc::new(record.profile);
        let (handles, attending) =
            engine_task::adopted(Arc::clone(&self.tools), adopted, &profile, reporter);
        self.gates.insert(slot.clone(), Arc::clone(&handles.gate));
        self.live.insert(slot.clone(), Live { generation, handles });
        self.run((slot.clone(), generation), attending);
        let (pid, engine) = (record.identity.pid, record.engine);
        self.answers.push_back(Event::EngineAdopted { slot, generation, pid, engine, profile });
    }

    /// Runs a task of a child; one that panics says whose it was.
    fn run(
        &mut self,
        owner: (SlotName, Generation),
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            ended.is_err().then_some(owner)
        });
    }

    fn read_memory(&mut self) {
        let engines = self.live.iter().map(|(slot, live)| {
            let Live { generation, handles } = live;
            (slot.clone(), (*generation, handles.members.clone()))
        });
        let engines = engines.collect();
        self.reading.spawn(survey::read(engines, self.tools.gpus.clone()));
    }

    /// Adds how busy each engine is at this moment.
    fn take_reading(&self, surveyed: survey::Surveyed) -> Event {
        let survey::Surveyed { reading, mut engines } = surveyed;
        for (slot, engine) in &mut engines {
            if let Some(gate) = self.gate(slot, engine.generation) {
                (engine.in_flight, engine.idle_for) = (gate.in_flight(), gate.unused_for());
            }
        }
        Event::MemoryRead { reading, engines }
    }

    /// Watches an engine that is not ours. A watch before it, and all that its gate still serves, ends.
    fn watch(&mut self, slot: SlotName, generation: Generation, profile: &Profile) {
        let Some(external) = profile.external() else { return };
        if let Some(before) = self.outside.remove(&slot) {
            before.lose();
        }
        let gate = outside::gate(&self.tools, (slot.clone(), generation), profile, external);
        self.gates.insert(slot.clone(), Arc::clone(&gate));
        let reporter = self.reporter_for(slot.clone(), generation);
        let is_own = outside::is_own(&external.endpoint, &self.tools.settings);
        let (external, watched) = (external.clone(), Arc::clone(&gate));
        let watching = async move {
            if is_own {
                outside::refuse(external, reporter).await;
            } else {
                outside::watch(external, watched, reporter).await;
            }
        };
        let owner = (slot.clone(), generation);
        let task = self.tasks.spawn(async move {
            let ended = AssertUnwindSafe(watching).catch_unwind().await;
            ended.is_err().then_some(owner)
        });
        self.outside.insert(slot, Outside { gate, task });
    }

    fn outside_of(&mut self, slot: &SlotName, generation: Generation) -> Option<Outside> {
        let is_it = self.outside.get(slot)?.gate.generation() == generation;
        if is_it { self.outside.remove(slot) } else { None }
    }

    fn gate(&self, slot: &SlotName, generation: Generation) -> Option<&Arc<Gate>> {
        self.gates.get(slot).filter(|gate| gate.generation() == generation)
    }

    fn drain(&mut self, slot: SlotName, generation: Generation) {
        let Some(gate) = self.gate(&slot, generation).cloned() else { return };
        gate.close();
        let reporter = self.reporter_for(slot, generation);
        self.tasks.spawn(async move {
            gate.drained().await;
            reporter.tell(ChildEvent::Drained).await;
            None
        });
    }

    fn measure_room(&mut self, slot: SlotName, generation: Generation) {
        let Some(handles) = self.live(&slot, generation) else { return };
        let gate = Arc::clone(&handles.gate);
        let reporter = self.reporter_for(slot, generation);
        self.tasks.spawn(async move {
            let free = spawn_blocking(sensor::free_memory).await.ok().flatten();
            let (in_flight, idle_for) = (gate.in_flight(), gate.idle_for());
            reporter.tell(ChildEvent::RoomMeasured { in_flight, idle_for, free }).await;
            None
        });
    }

    fn live(&self, slot: &SlotName, generation: Generation) -> Option<&Handles> {
        let live = self.live.get(slot).filter(|live| live.generation == generation)?;
        Some(&live.handles)
    }

    fn reporter_for(&self, slot: SlotName, generation: Generation) -> Reporter {
        Reporter::new(slot, generation, self.reporter.clone())
    }

    /// Waits for the tasks that are left once everything is stopped.
    pub(super) async fn finish(mut self) {
        // Reports that nobody reads any more must not hold a task up.
        self.reports.close();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A kill or an end that somebody asked for says nothing of the requests in flight; a crash, an exit
/// with a fault and a kill for memory may be of their making.
fn blame(evidence: &Evidence) -> Blame {
    match evidence.status {
        ExitStatus::Signal(1 | 2 | 3 | 9 | 15)
        | ExitStatus::Code(0 | 129 | 130 | 131 | 137 | 143)
        | ExitStatus::Unknown
            if evidence.oom_kills.unwrap_or(0) == 0 =>
        {
            Blame::Nobody
        }
        // No request takes a GPU off the bus.
        _ if evidence.xids.iter().any(|xid| xid.code == OFF_THE_BUS) => Blame::Nobody,
        ExitStatus::Signal(_) | ExitStatus::Code(_) | ExitStatus::Unknown => Blame::Request,
    }
}

fn child_event(slot: SlotName, generation: Generation, event: ChildEvent) -> Event {
    Event::Slot { slot, event: SlotEvent::Child { generation, event } }
}

//! What the tests of the core share: plain fixtures, dice, the model that every step is held
//! against, and the two sources of events, proptest's and a simulated box.

pub(crate) mod cells;
pub(crate) mod checker;
mod commands;
pub(crate) mod model;
mod rules;
mod scenarios;
pub(crate) mod strategy;
pub(crate) mod world;

use std::{sync::Arc, time::Duration};

use slotd::{
    spec::{
        Bytes, Endpoint, Generation, SlotName,
        death::{Confidence, Evidence, ExitStatus, LogCause, LogFinding},
        ladder::{LadderChoice, Rung},
        memory::{Basis, Need},
        profile::{EngineChoice, External, OnExit, Profile, Pull},
        requests::Requests,
        residence::Residence,
    },
    supervisor::{ChildEvent, EngineInfo, Event, Sight, SlotEvent, Vitals},
};

/// `SplitMix64`, so that a seed gives the same day on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `from..to`.
    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.roll() % (to - from)
    }

    /// True in `per_mille` of 1000 rolls.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.roll() % 1000 < per_mille
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = usize::try_from(self.roll() % 1_000_003).unwrap();
        &of[index % of.len()]
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.within(from, to))
    }

    /// The time to the next of events that come `mean` apart on average, memoryless.
    pub(crate) fn exponential(&mut self, mean: Duration) -> Duration {
        let uniform = f64::from(u32::try_from(self.roll() >> 32).unwrap()) / f64::from(u32::MAX);
        mean.mul_f64(-(uniform.max(1e-9).ln()))
    }
}

pub(crate) fn slot(name: &str) -> SlotName {
    name.parse().unwrap()
}

/// A slot that is loaded on demand and gives up after three restarts.
pub(crate) fn profile(name: &str) -> Profile {
    Profile {
        slot: slot(name),
        source: format!("{name}.toml").into(),
        model: None,
        engine: EngineChoice::Auto,
        stop_command: Vec::new(),
        args: Vec::new(),
        env: std::collections::BTreeMap::new(),
        aliases: Vec::new(),
        routes: Vec::new(),
        resume: false,
        capabilities: Vec::new(),
        context: None,
        parallel: None,
        threads: None,
        gpu_layers: None,
        ladder: LadderChoice::default(),
        autostart: false,
        essential: false,
        max_restarts: 3,
        start_timeout: Duration::from_mins(2),
        stop_timeout: Duration::from_secs(10),
        hang_timeout: Some(Duration::from_mins(1)),
        idle_timeout: None,
        on_exit: OnExit::Stop,
        pull: Pull::Never,
        residence: Residence::default(),
        requests: Requests::default(),
    }
}

/// An engine that somebody else runs, known there as `model`.
pub(crate) fn external(model: &str) -> EngineChoice {
    let endpoint = Endpoint::Tcp("127.0.0.1:8080".parse().unwrap());
    EngineChoice::External(External { endpoint, model: Some(model.to_owned()) })
}

pub(crate) fn looked(sight: Sight) -> ChildEvent {
    ChildEvent::Looked { sight }
}

pub(crate) fn absent() -> ChildEvent {
    looked(Sight::Absent { reason: "nobody listens there".to_owned() })
}

pub(crate) fn present() -> ChildEvent {
    looked(Sight::Present { is_asleep: false })
}

pub(crate) fn profiles_changed(profiles: impl IntoIterator<Item = Profile>) -> Event {
    let profiles = profiles.into_iter().map(|p| (p.slot.clone(), Arc::new(p))).collect();
    Event::ProfilesChanged { profiles }
}

pub(crate) fn of_slot(slot: &SlotName, event: SlotEvent) -> Event {
    Event::Slot { slot: slot.clone(), event }
}

pub(crate) fn of_child(slot: &SlotName, generation: Generation, event: ChildEvent) -> Event {
    of_slot(slot, SlotEvent::Child { generation, event })
}

/// The same rungs as [`spawned`]; `host` is what is taken on each, if that is known.
pub(crate) fn sized(host: Option<Bytes>) -> ChildEvent {
    let need = host.map_or_else(Need::default, |host| Need {
        host,
        basis: Basis::Profile,
        ..Need::default()
    });
    ChildEvent::Sized { rungs: rungs(), needs: [need.clone(), need.clone(), need].into() }
}

fn rungs() -> Arc<[Rung]> {
    let lower = |context| Rung { context: Some(context), ..Rung::default() };
    [Rung::default(), lower(4096), lower(2048)].into()
}

pub(crate) fn spawned(pid: u32) -> ChildEvent {
    let engine = EngineInfo {
        name: "command".to_owned(),
        program: "engine".to_owned(),
        parallel: 1,
        cores: 1,
        sole: None,
    };
    ChildEvent::Spawned { pid, engine, rungs: rungs() }
}

/// An engine that is fine and has nothing to do.
pub(crate) fn vitals() -> Vitals {
    Vitals {
        continues: true,
        has_answered: true,
        in_flight: 0,
        pieces: 0,
        failed_in_row: 0,
        given_up_in_row: 0,
        cpu: Some(Duration::ZERO),
        is_stopped: false,
    }
}

pub(crate) fn exited(evidence: Evidence) -> ChildEvent {
    ChildEvent::Exited { evidence, at_unix_ms: 1_700_000_000_000 }
}

pub(crate) fn ended(status: ExitStatus) -> Evidence {
    Evidence { oom_kills: Some(0), ..Evidence::of(status) }
}

pub(crate) fn logged(status: ExitStatus, cause: LogCause) -> Evidence {
    let log = Some(LogFinding {
        cause,
        line: "error: as the engine says it".to_owned(),
        confidence: Confidence::Likely,
    });
    Evidence { log, ..ended(status) }
}

/// Deaths of all sorts; every verdict that evidence can lead to is among them.
pub(crate) fn deaths() -> Vec<Evidence> {
    use ExitStatus::{Code, Signal, Unknown};
    vec![
        ended(Code(0)),
        ended(Code(1)),
        ended(Signal(9)),
        ended(Signal(11)),
        ended(Signal(15)),
        ended(Code(137)),
        ended(Unknown),
        Evidence { oom_kills: Some(2), ..ended(Signal(9)) },
        Evidence { oom_kills: None, ..ended(Signal(9)) },
        logged(Code(1), LogCause::OutOfMemory),
        logged(Code(1), LogCause::OutOfDeviceMemory),
        logged(Code(1), LogCause::BadConfig),
        logged(Code(1), LogCause::MissingFile),
        logged(Code(1), LogCause::BadModel),
        logged(Code(1), LogCause::PortBusy),
        Evidence { code_cause: Some(LogCause::BadModel), ..ended(Code(65)) },
    ]
}

//! A served endpoint whose slots, gates and core are the test's.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use slotd::{
    mailbox::{self, Inbox},
    proxy::{
        Access, AccessLog, ByteRelay, FallThrough, Flights, Gate, Lanes, Limits, Listeners,
        OllamaListener, Phase, RouteTable, Shared, Suspects, Throttle, serve,
    },
    spec::{
        Generation, Monotime, SlotName, WaiterId,
        edit::Edits,
        ladder::LadderChoice,
        profile::{Capability, EngineChoice, ModelSource, OnExit, Profile, Pull, Sole},
        requests::Requests,
        residence::{Orders, Residence},
    },
    supervisor::{EngineInfo, Event, Refusal, SlotEvent, SlotView, Snapshot, StateView},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

use crate::{client::Client, engine::Engine};

/// Longer than anything here takes on a slow machine; only a failure waits this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for something that must come.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// One endpoint. Its server is a task of its own and ends with it.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    /// Where Ollama's clients come.
    ollama: SocketAddr,
    pub(crate) phase: watch::Sender<Phase>,
    dir: TempDir,
    routes: Arc<ArcSwap<RouteTable>>,
    pub(crate) flights: Arc<Flights>,
    snapshot: Snapshot,
    gates: BTreeMap<SlotName, Arc<Gate>>,
    suspects: Arc<Suspects>,
    pub(crate) throttle: Arc<Throttle>,
    inbox: Inbox,
    server: JoinSet<()>,
}

pub(crate) fn limits() -> Limits {
    Limits::new(1 << 20, DEADLINE)
}

impl World {
    /// Serves an endpoint without slots.
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::start_with(limits, Access::default()).await
    }

    /// Serves an endpoint without slots whose plain requests go one way or the other.
    pub(crate) async fn start_by(limits: Limits, byte_relay: ByteRelay) -> Self {
        Self::start_all(limits, Access::default(), byte_relay, |_| None).await
    }

    /// Serves an endpoint without slots to those whom `access` lets in.
    pub(crate) async fn start_with(limits: Limits, access: Access) -> Self {
        Self::start_above(limits, access, |_| None).await
    }

    /// Serves an endpoint without slots, above what `below` makes of its address.
    pub(crate) async fn start_above(
        limits: Limits,
        access: Access,
        below: impl FnOnce(SocketAddr) -> Option<FallThrough>,
    ) -> Self {
        Self::start_all(limits, access, ByteRelay::default(), below).await
    }

    async fn start_all(
        limits: Limits,
        access: Access,
        byte_relay: ByteRelay,
        below: impl FnOnce(SocketAddr) -> Option<FallThrough>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ollama = socket.local_addr().unwrap();
        let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
        let (mailbox, inbox) = mailbox::channel();
        let (phase, phases) = watch::channel(Phase::Serving);
        let suspects: Arc<Suspects> = Arc::default();
        let choices = Arc::default();
        let flights = Flights::new(AccessLog::Off);
        let throttle = Arc::<Throttle>::default();
        let dir = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        let shared = Shared {
            routes: Arc::clone(&routes),
            mailbox,
            limits,
            suspects: Arc::clone(&suspects),
            spool_dir: dir.path().to_owned(),
            choices,
            flights: Arc::clone(&flights),
            access: Arc::new(access),
            byte_relay,
            lanes: Lanes::default(),
            clock: || 0,
            throttle: Arc::clone(&throttle),
            gpus: watch::channel(Arc::default()).1,
            control: None,
            fall_through: below(address).map(Arc::new),
        };
        let mut server = JoinSet::new();
        let door = OllamaListener { socket, clock: || 0 };
        let listeners = Listeners { endpoint: listener, ollama: Some(door) };
        server.spawn(serve(listeners, shared, phases));
        let (snapshot, gates) = (Snapshot::default(), BTreeMap::new());
        Self {
            address,
            ollama,
            phase,
            dir,
            routes,
            flights,
            snapshot,
            gates,
            suspects,
            throttle,
            inbox,
            server,
        }
    }

    /// Serves an endpoint with one ready slot, `chat`.
    pub(crate) async fn ready() -> (Self, Engine, Arc<Gate>) {
        let mut world = Self::start(limits()).await;
        let (engine, gate) = world.make_ready("chat", 1, (4, 16));
        (world, engine, gate)
    }

    /// Makes a slot, offline.
    pub(crate) fn make_slot(&mut self, slot: &str, change: impl FnOnce(&mut Profile)) {
        let mut profile = profile(slot);
        change(&mut profile);
        let view = SlotView {
            profile: Arc::new(profile),
            state: StateView::Offline,
            since: Monotime::default(),
            generation: Generation(0),
            engine: None,
            rung: None,
            rung_index: 0,
            edits: Edits::default(),
            tally: 0,
            restarts: 0,
            waiting: 0,
            promised: None,
            displaced_by: None,
            relieved: None,
            orders: Orders::default(),
            expected_load: None,
            rss: None,
            deaths: Vec::new(),
            loads: Vec::new(),
        };
        self.snapshot.slots.insert(slot.parse().unwrap(), Arc::new(view));
        self.publish();
    }

    /// Edits a slot's profile.
    pub(crate) fn change_profile(&mut self, slot: &str, change: impl FnOnce(&mut Profile)) {
        change(Arc::make_mut(&mut self.view(slot).profile));
        self.publish();
    }

    /// Makes slots that share the route `pool`, offline.
    pub(crate) fn make_pool(&mut self, slots: &[&str]) {
        for slot in slots {
            self.make_slot(slot, |profile| {
                profile.model = None;
                profile.routes = vec!["pool".to_owned()];
            });
        }
    }

    fn view(&mut self, slot: &str) -> &mut SlotView {
        Arc::make_mut(self.snapshot.slots.get_mut(slot).unwrap())
    }

    /// Lets a slot have taken this long to load.
    pub(crate) fn set_load(&mut self, slot: &str, load: Duration) {
        self.view(slot).expected_load = Some(load);
        self.publish();
    }

    /// Lets a slot's engine have found that its model, which the profile names, does this alone.
    pub(crate) fn set_sole(&mut self, slot: &str, capability: Capability) {
        let view = self.view(slot);
        let model = view.profile.model_name().unwrap();
        let sole = Some(Sole { model, capability });
        let (name, program) = (view.profile.engine.as_str().to_owned(), String::new());
        view.engine = Some(EngineInfo { name, program, parallel: 1, cores: 1, sole });
        self.publish();
    }

    /// Moves a slot to a state; it is made if it is not there.
    pub(crate) fn set_state(&mut self, slot: &str, state: StateView) {
        if !self.snapshot.slots.contains_key(slot) {
            self.make_slot(slot, |_| {});
        }
        self.view(slot).state = state;
        self.publish();
    }

    /// Starts an engine for a slot and opens its gate. `seats` are `parallel` and the queue's limit.
    pub(crate) fn make_ready(
        &mut self,
        slot: &str,
        generation: u64,
        (parallel, queue_limit): (u32, u32),
    ) -> (Engine, Arc<Gate>) {
        let engine = Engine::start(self.dir.path().join(format!("{slot}.{generation}.sock")));
        let name: SlotName = slot.parse().unwrap();
        let generation = Generation(generation);
        let model = self.snapshot.slots.get(&name).and_then(|view| insisted_name(&view.profile));
        let gate = Gate::new(
            name.clone(),
            generation,
            (engine.endpoint(), model),
            (parallel, queue_limit),
            &self.suspects,
        );
        self.gates.insert(name, Arc::clone(&gate));
        self.set_state(slot, StateView::Ready { pid: 1 });
        self.view(slot).generation = generation;
        self.publish();
        (engine, gate)
    }

    /// Where uploads are spooled.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn gate(&self, slot: &str) -> Arc<Gate> {
        Arc::clone(&self.gates[&slot.parse::<SlotName>().unwrap()])
    }

    fn publish(&mut self) {
        self.snapshot.generation += 1;
        self.routes.store(Arc::new(RouteTable::build(&self.snapshot, &self.gates)));
    }

    /// Waits until a request asks the core for a slot.
    pub(crate) async fn demanded(&mut self) -> WaiterId {
        self.demand().await.1
    }

    /// Waits until a request asks the core for a slot, and says for which.
    pub(crate) async fn demand(&mut self) -> (String, WaiterId) {
        let event = soon("a demand", self.inbox.next()).await.unwrap();
        let Event::Slot { slot, event: SlotEvent::Demanded { waiter } } = event else {
            panic!("a demand was expected, not {event:?}");
        };
        (slot.to_string(), waiter)
    }

    /// Waits until a request that asked the core has left.
    pub(crate) async fn left(&mut self) -> WaiterId {
        let event = soon("a leaving", self.inbox.next()).await.unwrap();
        let Event::Slot { event: SlotEvent::WaiterLeft { waiter }, .. } = event else {
            panic!("a leaving was expected, not {event:?}");
        };
        waiter
    }

    pub(crate) fn answer(&self, waiter: WaiterId, answer: Result<(), Refusal>) {
        self.inbox.answer(waiter, answer);
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A client on the socket for Ollama's.
    pub(crate) async fn ollama_client(&self) -> Client {
        Client::connect(self.ollama).await
    }

    /// Waits until the core is told to let a slot go.
    pub(crate) async fn unloaded(&mut self) -> String {
        let event = soon("an order to unload", self.inbox.next()).await.unwrap();
        let Event::Slot { slot, event: SlotEvent::UnloadRequested } = event else {
            panic!("an order to unload was expected, not {event:?}");
        };
        slot.to_string()
    }

    /// Waits for the server's end.
    pub(crate) async fn ended(mut self) {
        soon("the server's end", self.server.join_next()).await.unwrap().unwrap();
    }
}

fn profile(slot: &str) -> Profile {
    Profile {
        slot: slot.parse().unwrap(),
        source: PathBuf::from("profile.toml"),
        model: Some(ModelSource::Hub { repo: "org/small".to_owned(), quant: None, revision: None }),
        pull: Pull::Never,
        engine: EngineChoice::Auto,
        stop_command: Vec::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
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
        max_restarts: 5,
        start_timeout: Duration::from_mins(1),
        stop_timeout: Duration::from_secs(5),
        hang_timeout: None,
        idle_timeout: None,
        on_exit: OnExit::Stop,
        residence: Residence::default(),
        requests: Requests::default(),
    }
}

/// The name that a command's model goes by, as the runtime gives it.
fn insisted_name(profile: &Profile) -> Option<String> {
    let is_command = matches!(profile.engine, EngineChoice::Command(_));
    profile.model.as_ref().filter(|_| is_command).map(ModelSource::typed)
}

//! Downloads of models that the daemon makes: for slots whose profile says so, and for who asks over the
//! control API. Owns their tasks; of one model there is one.

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::{
    sync::{Notify, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::clock::since_1970;
use crate::{
    admin::{self, PullObject, PullRequest, ShortageObject},
    models::pull::{
        Brake, Formats, Job, Manner, Patience, PullFault, PullStatus, Reference, Scrutiny, Site,
        Stage, pull, said,
    },
    spec::Bytes,
    store::{PullRecord, StateDir},
};

/// How many files come at once.
const AT_ONCE: usize = 4;
/// How many pulls that have ended are remembered.
const REMEMBERED: usize = 32;
/// Why pulls wait.
const FULL: &str = "the disk of the models is nearly full, it goes on when there is room again";
/// How long somebody who asks for a pull waits to hear what it comes to.
const ASKED: Duration = Duration::from_secs(10);

/// The daemon's pulls.
#[derive(Debug)]
pub(super) struct Pulls {
    inner: Mutex<Inner>,
    /// Why all of them have to wait, where they do.
    held: watch::Sender<Option<String>>,
    under_way: Arc<UnderWay>,
    /// One begins.
    begun: Notify,
}

/// What the next daemon goes on with, if this one ends first.
#[derive(Debug)]
struct UnderWay {
    state: Arc<StateDir>,
    pulls: Mutex<Vec<PullRecord>>,
    /// From here on what ends is interrupted, and not done with.
    has_ended: AtomicBool,
}

/// What a pull must keep to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// The most bytes a second; none for 0.
    rate: Bytes,
    /// What has to stay free on the disk, where that is not the usual.
    reserve: Option<Bytes>,
    /// What it takes, and how it looks at what is there.
    manner: Manner,
}

impl Limits {
    /// Takes nothing but what an engine can load.
    pub(super) fn of(formats: Formats) -> Self {
        Self { manner: Manner { formats, ..Manner::default() }, ..Self::default() }
    }

    fn of_record(record: &PullRecord) -> Self {
        let formats = if record.gguf_only { Formats::Gguf } else { Formats::Any };
        let manner = Manner { scrutiny: scrutiny(record.verify), formats };
        Self { rate: record.rate, reserve: record.reserve, manner }
    }

    fn record(self, model: String) -> PullRecord {
        let Self { rate, reserve, manner } = self;
        PullRecord {
            model,
            rate,
            reserve,
            verify: manner.scrutiny == Scrutiny::Hashes,
            gguf_only: manner.formats == Formats::Gguf,
        }
    }
}

fn scrutiny(verify: bool) -> Scrutiny {
    if verify { Scrutiny::Hashes } else { Scrutiny::Headers }
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    all: BTreeMap<u64, Pull>,
    tasks: JoinSet<()>,
    has_ended: bool,
}

#[derive(Debug)]
struct Pull {
    wanted: Reference,
    manner: Manner,
    watched: watch::Receiver<PullStatus>,
    cancel: CancellationToken,
}

impl Pull {
    fn is_running(&self) -> bool {
        !self.watched.borrow().stage.is_end()
    }
}

impl UnderWay {
    fn take_over(&self, records: Vec<PullRecord>) {
        *self.pulls.lock().unwrap_or_else(PoisonError::into_inner) = records;
    }

    async fn begin(self: &Arc<Self>, record: PullRecord) {
        self.change(move |pulls| {
            // One that an earlier daemon had begun is there.
            if !pulls.contains(&record) {
                pulls.push(record);
            }
        })
        .await;
    }

    async fn forget(self: &Arc<Self>, record: PullRecord) {
        if !self.has_ended.load(Ordering::Acquire) {
            self.change(move |pulls| pulls.retain(|pull| *pull != record)).await;
        }
    }

    /// Writes what has changed. It is a help: a disk that takes nothing costs only the memory of it.
    async fn change(self: &Arc<Self>, change: impl FnOnce(&mut Vec<PullRecord>) + Send + 'static) {
        let own = Arc::clone(self);
        let written = spawn_blocking(move || {
            let mut pulls = own.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut pulls);
            own.state.save_pulls(&pulls)
        });
        if let Ok(Err(error)) = written.await {
            debug!(%error, "downloads under way not written");
        }
    }
}

impl Pulls {
    /// Makes the pulls of a daemon; none runs yet.
    pub(super) fn new(state: Arc<StateDir>) -> Self {
        let (pulls, has_ended) = (Mutex::default(), AtomicBool::new(false));
        let under_way = Arc::new(UnderWay { state, pulls, has_ended });
        Self {
            inner: Mutex::default(),
            held: watch::Sender::default(),
            under_way,
            begun: Notify::new(),
        }
    }

    /// Goes on with what an earlier daemon had under way. Blocks on the disk; within the runtime.
    pub(super) fn resume(&self) {
        let mut begun: Vec<(Reference, PullRecord)> = Vec::new();
        for record in self.under_way.state.pulls() {
            // One that an other version has written may be none; of one model there is one in each manner.
            let wanted = record.model.parse().ok();
            let manner = Limits::of_record(&record).manner;
            let is_same = |(other, its): &(Reference, PullRecord), wanted: &Reference| {
                other == wanted && Limits::of_record(its).manner == manner
            };
            let wanted = wanted.filter(|wanted| !begun.iter().any(|one| is_same(one, wanted)));
            begun.extend(wanted.map(|wanted| (wanted, record)));
        }
        // All are there before the first begins: what that writes down names the others, too.
        self.under_way.take_over(begun.iter().map(|(_, record)| record.clone()).collect());
        for (wanted, record) in begun {
            info!(model = record.model, "pull goes on that an earlier daemon had begun");
            self.start(wanted, Limits::of_record(&record));
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds all of them, or lets them go on.
    pub(super) fn hold(&self, is_full: bool) {
        self.held.send_if_modified(|held| {
            let is_news = held.is_some() != is_full;
            if is_news {
                info!(is_full, "disk pressure holds pulls or lets them go on");
                *held = is_full.then(|| FULL.to_owned());
            }
            is_news
        });
    }

    /// Waits until one is under way.
    pub(super) async fn until_any(&self) {
        while !self.is_any() {
            self.begun.notified().await;
        }
    }

    /// Tells whether one is under way.
    pub(super) fn is_any(&self) -> bool {
        self.inner().all.values().any(Pull::is_running)
    }

    /// Starts a pull, or joins the one of the same model that takes the same and looks as closely.
    pub(super) fn start(
        &self,
        wanted: Reference,
        limits: Limits,
    ) -> (u64, watch::Receiver<PullStatus>) {
        let mut inner = self.inner();
        while inner.tasks.try_join_next().is_some() {}
        let is_same = |pull: &Pull| (&pull.wanted, pull.manner) == (&wanted, limits.manner);
        let running = inner.all.iter().find(|(_, pull)| is_same(pull) && pull.is_running());
        if let Some((id, pull)) = running {
            return (*id, pull.watched.clone());
        }
        let first = PullStatus { model: wanted.to_string(), ..PullStatus::default() };
        let (shown, watched) = watch::channel(first);
        inner.last += 1;
        let (id, cancel) = (inner.last, CancellationToken::new());
        if inner.has_ended {
            end(&shown, &PullFault::Cancelled);
            return (id, watched);
        }
        let record = limits.record(wanted.to_string());
        let under_way = Arc::clone(&self.under_way);
        let brake = Brake::new(self.held.subscribe());
        let running = run(wanted.clone(), (limits, brake), shown, cancel.clone());
        inner.tasks.spawn(async move {
            under_way.begin(record.clone()).await;
            running.await;
            under_way.forget(record).await;
        });
        let pull = Pull { wanted, manner: limits.manner, watched: watched.clone(), cancel };
        inner.all.insert(id, pull);
        inner.forget();
        self.begun.notify_one();
        (id, watched)
    }

    /// Cancels all and waits for their ends; none starts from here on.
    pub(super) async fn end(&self) {
        self.under_way.has_ended.store(true, Ordering::Release);
        let mut tasks = {
            let mut inner = self.inner();
            inner.has_ended = true;
            for pull in inner.all.values() {
                pull.cancel.cancel();
            }
            std::mem::take(&mut inner.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    /// Makes the ways of the control API.
    pub(super) fn for_admin(self: &Arc<Self>) -> admin::Pulls {
        let (listed, started, watched, cancelled) =
            (Arc::clone(self), Arc::clone(self), Arc::clone(self), Arc::clone(self));
        admin::Pulls {
            list: Arc::new(move || {
                let inner = listed.inner();
                inner.all.iter().map(|(id, pull)| object(*id, &pull.watched.borrow())).collect()
            }),
            start: Arc::new(move |request| ask(Arc::clone(&started), request).boxed()),
            watch: Arc::new(move |id| {
                let watched = watched.inner().all.get(&id)?.watched.clone();
                Some(steps(id, watched).boxed())
            }),
            cancel: Arc::new(move |id| {
                let inner = cancelled.inner();
                let pull = inner.all.get(&id);
                pull.inspect(|pull| pull.cancel.cancel()).is_some()
            }),
        }
    }
}

impl Inner {
    fn forget(&mut self) {
        let ended = self.all.iter().filter(|(_, pull)| !pull.is_running());
        let ended: Vec<u64> = ended.map(|(id, _)| *id).collect();
        let surplus = ended.len().saturating_sub(REMEMBERED);
        for id in ended.iter().take(surplus) {
            self.all.remove(id);
        }
    }
}

async fn run(
    wanted: Reference,
    (limits, brake): (Limits, Brake),
    shown: watch::Sender<PullStatus>,
    cancel: CancellationToken,
) {
    let model = wanted.to_string();
    info!(model, "pull began");
    // The token may be another one each time.
    let reading = spawn_blocking(|| Site::of_environment(&|name| env::var_os(name))).await;
    let site = match reading.unwrap_or_else(|error| Err(PullFault::Broken(error.to_string()))) {
        Ok(site) => site,
        Err(fault) => {
            warn!(model, reason = said(&fault), "pull failed");
            return end(&shown, &fault);
        }
    };
    let patience = Patience::default();
    let Limits { rate: limit, reserve, manner } = limits;
    let clock = since_1970;
    let at_once = AT_ONCE;
    let job = Job { wanted, site, at_once, limit, reserve, patience, brake, manner, clock };
    match pull(job, shown.clone(), cancel).await {
        Ok(_) => {
            let fetched_bytes = shown.borrow().fetched_bytes;
            info!(model, fetched_bytes, "pull ended");
        }
        Err(PullFault::Cancelled) => info!(model, "pull cancelled"),
        Err(fault) => warn!(model, reason = said(&fault), "pull failed"),
    }
}

fn end(shown: &watch::Sender<PullStatus>, fault: &PullFault) {
    shown.send_modify(|status| status.fail(fault));
}

/// Starts a pull and waits for what it comes to.
async fn ask(pulls: Arc<Pulls>, request: PullRequest) -> Result<PullObject, String> {
    let wanted: Reference = request.model.parse().map_err(|fault| format!("{fault}"))?;
    let reserve = request.reserve_bytes.map(Bytes);
    let manner = Manner { scrutiny: scrutiny(request.verify), ..Manner::default() };
    let limits = Limits { rate: Bytes(request.limit_rate_bytes_per_s), reserve, manner };
    let (id, mut watched) = pulls.start(wanted, limits);
    let known =
        watched.wait_for(|status| status.stage.is_end() || status.stage == Stage::Downloading);
    // One that waits for another is answered as such.
    drop(timeout(ASKED, known).await);
    let status = watched.borrow().clone();
    Ok(object(id, &status))
}

/// Shows a pull at once and after each change, its end last.
fn steps(
    id: u64,
    watched: watch::Receiver<PullStatus>,
) -> impl futures_util::Stream<Item = PullObject> + Send {
    stream::unfold(Some((watched, true)), move |state| async move {
        let (mut watched, is_first) = state?;
        if !is_first {
            watched.changed().await.ok()?;
        }
        let status = watched.borrow_and_update().clone();
        let next = (!status.stage.is_end()).then_some((watched, false));
        Some((object(id, &status), next))
    })
}

fn object(id: u64, status: &PullStatus) -> PullObject {
    let status_of = status.clone();
    PullObject {
        id,
        percent: status.percent(),
        model: status_of.model,
        stage: status.stage.as_str().to_owned(),
        commit: status_of.commit,
        files: status.files,
        files_done: status.files_done,
        size_bytes: status.size_bytes,
        done_bytes: status.done_bytes,
        resumed_bytes: status.resumed_bytes,
        fetched_bytes: status.fetched_bytes,
        held_by: status_of.held_by,
        trouble: status_of.trouble,
        error: status_of.error,
        code: status_of.code,
        shortage: status.shortage.map(|shortage| ShortageObject {
            needed_bytes: shortage.needed_bytes,
            free_bytes: shortage.free_bytes,
            reserve_bytes: shortage.reserve_bytes,
            freeable_bytes: shortage.freeable_bytes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::{super::model_disk, *};
    use crate::spec::pressure::Thresholds;

    fn record(model: &str) -> PullRecord {
        Limits { rate: Bytes(1), ..Limits::default() }.record(model.to_owned())
    }

    #[tokio::test]
    async fn the_first_pull_that_goes_on_does_not_take_the_others_off_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path(), 1).unwrap());
        let all = [record("o/a"), record("o/b"), record("o/b"), record("no model")];
        state.save_pulls(&all).unwrap();
        let pulls = Pulls::new(Arc::clone(&state));
        // Nothing is begun after the end: what is on the disk is what would be found after a kill.
        pulls.end().await;
        pulls.resume();
        pulls.under_way.begin(record("o/a")).await;
        assert_eq!(state.pulls(), [record("o/a"), record("o/b")]);
    }

    /// The disk of the state was looked at, which may be another one.
    #[tokio::test]
    async fn the_disk_of_the_models_alone_holds_pulls_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let pulls = Arc::new(Pulls::new(Arc::new(StateDir::open(dir.path(), 1).unwrap())));
        let free = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&free);
        let look = move || Some(Bytes(seen.load(Ordering::Relaxed)));
        let limits = (Thresholds::default(), Duration::from_millis(1));
        let mut minding = JoinSet::new();
        minding.spawn(model_disk::follow(Arc::clone(&pulls), look, limits));
        let (shown, watched) = watch::channel(PullStatus::default());
        let pull = Pull {
            wanted: "o/a".parse().unwrap(),
            manner: Manner::default(),
            watched,
            cancel: CancellationToken::new(),
        };
        pulls.inner().all.insert(1, pull);
        pulls.begun.notify_one();
        let mut held = pulls.held.subscribe();
        for (bytes, holds) in [(0, true), (u64::MAX, false), (0, true)] {
            free.store(bytes, Ordering::Relaxed);
            held.wait_for(|held| held.is_some() == holds).await.unwrap();
        }
        shown.send_modify(|status| status.stage = Stage::Done);
        held.wait_for(Option::is_none).await.unwrap();
        minding.shutdown().await;
    }
}

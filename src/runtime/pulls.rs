//! Downloads of models that the daemon makes: for slots whose profile says so, and for who asks over the
//! control API. Owns their tasks; of one model there is one.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::{self, PullObject, PullRequest, ShortageObject},
    models::pull::{
        Brake, Job, Patience, PullFault, PullStatus, Reference, Site, Stage, pull, said,
    },
    spec::{
        Bytes,
        pressure::{Pressure, Strain},
    },
};

/// How many files come at once.
const AT_ONCE: usize = 4;
/// How many pulls that have ended are remembered.
const REMEMBERED: usize = 32;
/// Why pulls wait.
const FULL: &str = "the disk is nearly full, it goes on when there is room again";
/// How long somebody who asks for a pull waits to hear what it comes to.
const ASKED: Duration = Duration::from_secs(10);

/// The daemon's pulls.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    inner: Mutex<Inner>,
    /// Why all of them have to wait, where they do.
    held: watch::Sender<Option<String>>,
}

/// What a pull must keep to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// The most bytes a second; none for 0.
    rate: Bytes,
    /// What has to stay free on the disk, where that is not the usual.
    reserve: Option<Bytes>,
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
    watched: watch::Receiver<PullStatus>,
    cancel: CancellationToken,
}

impl Pull {
    fn is_running(&self) -> bool {
        !self.watched.borrow().stage.is_end()
    }
}

impl Pulls {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds all of them while the disk is nearly full, until it is dropped. They go on by themselves.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn mind(self: Arc<Self>, mut strain: watch::Receiver<Strain>) -> Infallible {
        loop {
            let is_full = strain.borrow_and_update().disk == Pressure::Critical;
            self.held.send_if_modified(|held| {
                let is_news = held.is_some() != is_full;
                if is_news {
                    info!(is_full, "disk pressure holds pulls or lets them go on");
                    *held = is_full.then(|| FULL.to_owned());
                }
                is_news
            });
            if strain.changed().await.is_err() {
                // Nobody looks at the disk any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Starts a pull, or joins the one of the same model.
    pub(super) fn start(
        &self,
        wanted: Reference,
        limits: Limits,
    ) -> (u64, watch::Receiver<PullStatus>) {
        let mut inner = self.inner();
        while inner.tasks.try_join_next().is_some() {}
        let running = inner.all.iter().find(|(_, pull)| pull.wanted == wanted && pull.is_running());
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
        let brake = Brake::new(self.held.subscribe());
        inner.tasks.spawn(run(wanted.clone(), (limits, brake), shown, cancel.clone()));
        let pull = Pull { wanted, watched: watched.clone(), cancel };
        inner.all.insert(id, pull);
        inner.forget();
        (id, watched)
    }

    /// Cancels all and waits for their ends; none starts from here on.
    pub(super) async fn end(&self) {
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
    let Limits { rate: limit, reserve } = limits;
    let job = Job { wanted, site, at_once: AT_ONCE, limit, reserve, patience, brake };
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
    let limits = Limits { rate: Bytes(request.limit_rate_bytes_per_s), reserve };
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
    use super::*;

    #[tokio::test]
    async fn a_disk_that_is_nearly_full_holds_pulls_until_there_is_room() {
        let pulls = Arc::new(Pulls::default());
        let (sender, strain) = watch::channel(Strain::default());
        let mut held = pulls.held.subscribe();
        let mut minding = JoinSet::new();
        minding.spawn(Arc::clone(&pulls).mind(strain));
        for (disk, holds) in [(Pressure::Critical, true), (Pressure::Elevated, false)] {
            sender.send_replace(Strain { disk, ..Strain::default() });
            held.wait_for(|held| held.is_some() == holds).await.unwrap();
        }
        minding.shutdown().await;
    }
}

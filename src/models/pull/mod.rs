//! Fetches a model from the hub into the Hugging Face cache: whole, checked, once.
//!
//! Owns what it writes there while it holds the model's lock. It decides nothing about slots, and asks
//! nothing of the network for what is there.
//!
//! ```text
//! reference ─▶ lock ─▶ commit, list of files ─▶ pick ─▶ room? ─▶ files, several at once ─▶ refs
//!                           (hub, or the cache)                   lock ─▶ part ─▶ hash ─▶ name ─▶ link
//! ```
//!
//! Killed at any moment, it leaves beginnings (`HASH.incomplete`) that the next pull goes on from, and
//! nothing that looks whole and is not.

mod brake;
mod catalog;
mod client;
mod content;
mod fault;
mod layout;
mod lock;
mod patience;
mod pick;
mod progress;
mod proxies;
mod rate;
mod reference;
mod site;
mod space;
mod transfer;
mod writer;

use std::{cmp::Reverse, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes as Text;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    brake::Brake,
    content::Scrutiny,
    fault::{PullFault, said},
    patience::Patience,
    pick::Formats,
    progress::{PullStatus, Shortage, Stage},
    reference::{Reference, ReferenceFault},
    site::Site,
};
use self::{
    catalog::{Entry, next_page, read_commit, read_page},
    client::{Answer, Client, encoded},
    layout::Layout,
    patience::Borne,
    pick::pick,
    progress::Board,
    rate::Rate,
    reference::is_commit,
    space::Room,
    transfer::{Work, fetch, no_access},
};
use crate::spec::Bytes;

/// How often those who watch are told of bytes that came.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// More pages than any list of files has.
const MOST_PAGES: usize = 200;

/// One pull.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is wanted.
    pub wanted: Reference,
    /// The hub and the cache.
    pub site: Site,
    /// How many files come at once, 1..=16.
    pub at_once: usize,
    /// The most bytes a second, of all files together; no limit for 0.
    pub limit: Bytes,
    /// What has to stay free on the disk; 1 GiB without it, or a twentieth of a smaller disk.
    pub reserve: Option<Bytes>,
    /// How much trouble is borne.
    pub patience: Patience,
    /// What may hold it for a while.
    pub brake: Brake,
    /// What it takes of a repository, and how it looks at what is there.
    pub manner: Manner,
    /// Tells the time since 1970, for the age of what could be freed.
    pub clock: fn() -> Duration,
}

/// What a pull takes of a repository, and how it looks at what is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Manner {
    /// How closely it looks at the files that are there.
    pub scrutiny: Scrutiny,
    /// What it takes.
    pub formats: Formats,
}

/// A model that is whole on the disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulled {
    /// Its commit.
    pub commit: String,
    /// The folder that holds its files.
    pub snapshot: PathBuf,
    /// Its files, by their paths in the folder.
    pub files: Vec<String>,
}

/// Pulls a model. Dropped or cancelled, it keeps what came so far.
///
/// # Errors
/// [`PullFault`]; `shown` says the same in the end.
pub async fn pull(
    job: Job,
    shown: watch::Sender<PullStatus>,
    cancel: CancellationToken,
) -> Result<Pulled, PullFault> {
    let board = Board::new(shown, job.wanted.to_string());
    let mut ticks = interval(SHOWN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let showing = async {
        loop {
            ticks.tick().await;
            board.show();
        }
    };
    let end = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(PullFault::Cancelled),
        end = run(job, &board) => end,
        () = showing => Err(PullFault::Cancelled),
    };
    board.tell(|status| match &end {
        Ok(_) => status.stage = Stage::Done,
        Err(fault) => status.fail(fault),
    });
    end
}

async fn run(job: Job, board: &Arc<Board>) -> Result<Pulled, PullFault> {
    let layout = Layout::new(job.site.cache(), &job.wanted);
    if job.site.is_offline {
        return offline(job, layout).await;
    }
    let preparing = layout.clone();
    spawn_blocking(move || preparing.prepare()).await.map_err(broken)??;
    let _held = lock::wait(&layout.model_lock(), |holder| board.held_by(holder)).await?;
    board.held_by_nobody();
    board.tell(|status| status.stage = Stage::Asking);
    let site = job.site.clone();
    let client = spawn_blocking(move || Client::new(site)).await.map_err(broken)??;
    let asked = Asked { client: &client, job: &job, layout: &layout, board };
    let (commit, entries) = asked.commit_and_files().await?;
    let picked: Vec<Entry> =
        pick(&entries, &job.wanted, job.manner.formats)?.into_iter().cloned().collect();
    let room = Arc::new(Room::new(layout.hub(), job.reserve, job.clock)?);
    let files = picked.iter().map(|entry| entry.path.clone()).collect();
    let work = Work {
        client,
        layout: layout.clone(),
        repo: job.wanted.repo.clone(),
        commit: commit.clone(),
        room,
        rate: Rate::new(job.limit),
        brake: job.brake,
        patience: job.patience,
        scrutiny: job.manner.scrutiny,
        board: Arc::clone(board),
    };
    fetch_all(Arc::new(work), (entries.clone(), picked), job.at_once).await?;
    let (noting, of) = (layout.clone(), commit.clone());
    spawn_blocking(move || {
        // A revision of which other files are there unchanged keeps them.
        for entry in entries.iter().filter(|entry| noting.has_blob(entry)) {
            noting.link(&of, entry)?;
        }
        noting.write_reference(&of)
    })
    .await
    .map_err(broken)??;
    Ok(Pulled { snapshot: layout.snapshot(&commit), commit, files })
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it")]
fn broken(error: JoinError) -> PullFault {
    PullFault::Broken(error.to_string())
}

/// Finds a model that is whole and sound without asking anybody.
async fn offline(job: Job, layout: Layout) -> Result<Pulled, PullFault> {
    let Job { wanted, manner, .. } = job;
    let (of, at) = (wanted.clone(), layout.clone());
    let finding = spawn_blocking(move || whole_offline((&of, manner.formats), &at));
    let (pulled, picked) = finding.await.map_err(broken)??;
    for entry in picked {
        let path = layout.pointer(&pulled.commit, &entry.path);
        if !content::is_right((&path, &entry), manner.scrutiny, |_| {}).await? {
            let missing = format!(": `{}` is damaged", entry.path);
            return Err(PullFault::Offline { model: wanted.to_string(), missing });
        }
    }
    Ok(pulled)
}

/// Finds a model whose files are there in their whole length, and says which they are.
fn whole_offline(
    (wanted, formats): (&Reference, Formats),
    layout: &Layout,
) -> Result<(Pulled, Vec<Entry>), PullFault> {
    let fault = |missing| PullFault::Offline { model: wanted.to_string(), missing };
    let commit = layout.known_commit().ok_or_else(|| fault(String::new()))?;
    let entries = layout.read_tree(&commit).ok_or_else(|| fault(String::new()))?;
    let picked = pick(&entries, wanted, formats)?;
    let absent: Vec<_> = picked.iter().filter(|entry| !layout.has(&commit, entry)).collect();
    if !absent.is_empty() {
        let bytes = absent.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
        let count = absent.len();
        let missing = format!(": {count} of {} files are missing, {}", picked.len(), Bytes(bytes));
        return Err(fault(missing));
    }
    let files = picked.iter().map(|entry| entry.path.clone()).collect();
    let picked = picked.into_iter().cloned().collect();
    Ok((Pulled { snapshot: layout.snapshot(&commit), commit, files }, picked))
}

/// Fetches the picked ones of a commit's files, `at_once` at a time, the largest first. The first fault ends all.
async fn fetch_all(
    work: Arc<Work>,
    (entries, mut picked): (Vec<Entry>, Vec<Entry>),
    at_once: usize,
) -> Result<(), PullFault> {
    let looking = Arc::clone(&work);
    picked.sort_by_key(|entry| Reverse(entry.size));
    let (counted, size) = spawn_blocking(move || {
        let size = picked.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
        let counted: Vec<_> = picked
            .into_iter()
            .map(|entry| {
                let is_there = looking.layout.has_blob(&entry);
                let there = if is_there { entry.size } else { looking.layout.begun(&entry) };
                // What is read to its end counts as it is read.
                let is_read = is_there && looking.scrutiny == Scrutiny::Hashes;
                (entry, there, if is_read { 0 } else { there })
            })
            .collect();
        (counted, size)
    })
    .await
    .map_err(broken)?;
    let there = counted.iter().fold(0_u64, |sum, (_, there, _)| sum.saturating_add(*there));
    let known = counted.iter().fold(0_u64, |sum, (_, _, known)| sum.saturating_add(*known));
    work.board.tell(|status| {
        status.commit = Some(work.commit.clone());
        (status.files, status.size_bytes) = (counted.len(), size);
    });
    work.board.count_resumed(known);
    if size > there {
        work.room.check(Bytes(size - there))?;
    }
    let beginning = Arc::clone(&work);
    spawn_blocking(move || beginning.layout.begin(&beginning.commit, &entries))
        .await
        .map_err(broken)??;
    work.board.tell(|status| status.stage = Stage::Downloading);
    let mut waiting = counted.into_iter();
    let mut coming = JoinSet::new();
    loop {
        while coming.len() < at_once.max(1) {
            let Some((entry, _, known)) = waiting.next() else { break };
            coming.spawn(fetch(Arc::clone(&work), entry, known));
        }
        match coming.join_next().await {
            None => return Ok(()),
            Some(ended) => ended.map_err(broken)??,
        }
    }
}

/// What it takes to ask the hub.
struct Asked<'a> {
    client: &'a Client,
    job: &'a Job,
    layout: &'a Layout,
    board: &'a Board,
}

impl Asked<'_> {
    /// Finds the commit and what it consists of; asks for neither if it is known for ever.
    async fn commit_and_files(&self) -> Result<(String, Vec<Entry>), PullFault> {
        let revision = self.job.wanted.revision();
        let repo = &self.job.wanted.repo;
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let revision = encoded(revision).replace('/', "%2F");
            let (_, text) = self.ask(&format!("/api/models/{repo}/revision/{revision}")).await?;
            read_commit(&text).map_err(|what| self.bad(what))?
        };
        let (layout, of) = (self.layout.clone(), commit.clone());
        let known = spawn_blocking(move || layout.read_tree(&of)).await.map_err(broken)?;
        let entries = match known {
            Some(entries) => entries,
            None => self.list(repo, &commit).await?,
        };
        Ok((commit, entries))
    }

    async fn list(&self, repo: &str, commit: &str) -> Result<Vec<Entry>, PullFault> {
        let mut path = format!("/api/models/{repo}/tree/{commit}?recursive=true&expand=false");
        let mut entries = Vec::new();
        for _ in 0..MOST_PAGES {
            let (answer, text) = self.ask(&path).await?;
            entries.extend(read_page(&text).map_err(|what| self.bad(what))?);
            let Some(next) = answer.header("link").and_then(next_page) else { return Ok(entries) };
            let on_hub = next.strip_prefix(self.job.site.endpoint.as_str());
            on_hub
                .filter(|rest| rest.starts_with('/'))
                .ok_or_else(|| self.bad("its list of files goes on elsewhere".to_owned()))?
                .clone_into(&mut path);
        }
        Err(self.bad("its list of files has no end".to_owned()))
    }

    /// Asks until there is an answer.
    async fn ask(&self, path: &str) -> Result<(Answer, Text), PullFault> {
        let mut borne = Borne::new(self.job.patience);
        loop {
            match self.client.text(path).await {
                Ok((answer, text)) if answer.status.is_success() => return Ok((answer, text)),
                Ok((answer, _)) => return Err(self.refused(&answer)),
                Err(trouble) => {
                    let (pause, said) = borne.bear(trouble)?;
                    self.board.tell(|status| {
                        status.retries += 1;
                        status.trouble = Some(said);
                    });
                    sleep(pause).await;
                }
            }
        }
    }

    fn refused(&self, answer: &Answer) -> PullFault {
        let repo = self.job.wanted.repo.clone();
        match (answer.status.as_u16(), answer.header("x-error-code")) {
            (404, Some("RevisionNotFound")) => {
                PullFault::NoRevision { repo, revision: self.job.wanted.revision().to_owned() }
            }
            (404, _) => PullFault::NoRepo(repo),
            (401 | 403, _) => no_access(&repo, self.client),
            (status, _) => {
                let host = answer.host.clone();
                PullFault::Refused { host, status, file: "the list of files".to_owned() }
            }
        }
    }

    fn bad(&self, what: String) -> PullFault {
        PullFault::Answer { host: self.client.host().to_owned(), what }
    }
}

//! One file: what is missing of it is fetched, checked, and given its name.

use std::{fs, sync::Arc};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    brake::Brake,
    catalog::Entry,
    client::{Answer, Client, Trouble, encoded},
    content::{Scrutiny, is_right},
    fault::PullFault,
    layout::{Layout, unusable},
    lock,
    patience::{Borne, Patience},
    progress::Board,
    rate::Rate,
    space::Room,
    writer::{Spec, Writer},
};
use crate::spec::Bytes;

/// What all files of a pull share.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) client: Client,
    pub(super) layout: Layout,
    pub(super) repo: String,
    pub(super) commit: String,
    pub(super) room: Arc<Room>,
    pub(super) rate: Option<Rate>,
    pub(super) brake: Brake,
    pub(super) patience: Patience,
    pub(super) scrutiny: Scrutiny,
    pub(super) board: Arc<Board>,
}

/// Sees to it that `entry` is there as the commit's. `counted` is how much of it was seen before.
pub(super) async fn fetch(
    work: Arc<Work>,
    entry: Entry,
    mut counted: u64,
) -> Result<(), PullFault> {
    let board = Arc::clone(&work.board);
    let lock = work.layout.blob_lock(&entry.hash);
    let held = Arc::new(lock::wait(&lock, |holder| board.held_by(holder)).await?);
    board.held_by_nobody();
    let mut is_whole = work.has_sound(&entry, &mut counted).await?;
    if is_whole {
        // Another may have written it since it was counted.
        board.count_resumed(entry.size.saturating_sub(counted));
    }
    let mut is_second = false;
    while !is_whole {
        let from = work.layout.begun(&entry);
        // Another may have written on since it was counted.
        if !is_second {
            board.count_resumed(from.saturating_sub(counted));
            board.uncount_resumed(counted.saturating_sub(from));
        }
        let spec = Spec {
            path: work.layout.partial(&entry.hash),
            size: entry.size,
            hash: entry.hash.clone(),
            room: Arc::clone(&work.room),
            lock: Arc::clone(&held),
        };
        let mut writer = Writer::open(spec, from);
        let came = work.download(&entry, &mut writer).await;
        let written = writer.finish().await;
        // A disk that takes no more ends the download too: its reason is the better one.
        let written = written?;
        came?;
        let found = written.ok_or_else(|| PullFault::Broken("a file ended early".to_owned()))?;
        if found == entry.hash.name() {
            keep(&work, &entry).await?;
            is_whole = true;
        } else {
            let partial = work.layout.partial(&entry.hash);
            fs::remove_file(&partial).map_err(unusable(&partial))?;
            board.uncount(entry.size);
            if is_second {
                let (file, expected) = (entry.path, entry.hash.name().to_owned());
                return Err(PullFault::Hash { file, expected, found });
            }
            // What an earlier pull left may be what is wrong: once more, from the first byte.
            board.tell(|status| {
                status.retries += 1;
                status.trouble = Some(format!("`{}` came damaged; it is fetched anew", entry.path));
            });
            is_second = true;
        }
    }
    work.layout.link(&work.commit, &entry)?;
    board.tell(|status| status.files_done += 1);
    Ok(())
}

/// Gives a whole file its name. Whoever has the file open that bore it before keeps that one.
async fn keep(work: &Arc<Work>, entry: &Entry) -> Result<(), PullFault> {
    let (work, entry) = (Arc::clone(work), entry.clone());
    let kept = spawn_blocking(move || {
        let (partial, blob) = (work.layout.partial(&entry.hash), work.layout.blob(&entry.hash));
        fs::rename(&partial, &blob).map_err(unusable(&blob))?;
        // The name is on the disk before anything leads to it.
        let folder = work.layout.blobs();
        fs::File::open(&folder).and_then(|folder| folder.sync_all()).map_err(unusable(&folder))
    });
    kept.await.map_err(|error| PullFault::Broken(error.to_string()))?
}

impl Work {
    /// Tells whether a file is there and what it should be; counts what it reads. One that is not stays until
    /// another has come.
    async fn has_sound(&self, entry: &Entry, counted: &mut u64) -> Result<bool, PullFault> {
        if !self.layout.has_blob(entry) {
            return Ok(false);
        }
        let blob = self.layout.blob(&entry.hash);
        let count = |read: u64| {
            let new = read.saturating_sub(*counted);
            *counted = counted.saturating_add(new);
            self.board.count_resumed(new);
        };
        if is_right((&blob, entry), self.scrutiny, count).await? {
            return Ok(true);
        }
        self.board.tell(|status| {
            let trouble = format!("`{}` is damaged on this disk; it is fetched anew", entry.path);
            status.trouble = Some(trouble);
        });
        self.room.check(Bytes(entry.size.saturating_sub(self.layout.begun(entry))))?;
        Ok(false)
    }

    /// Fetches what is missing, however often the way there breaks, as long as something comes.
    async fn download(&self, entry: &Entry, writer: &mut Writer) -> Result<(), PullFault> {
        let mut borne = Borne::new(self.patience);
        while writer.at() < entry.size {
            let before = writer.at();
            let Err(trouble) = self.attempt(entry, writer).await else { return Ok(()) };
            if writer.at() > before {
                borne.reset();
            }
            let (pause, said) = borne.bear(trouble)?;
            self.board.tell(|status| {
                status.retries += 1;
                status.trouble = Some(format!("`{}`: {said}", entry.path));
            });
            sleep(pause).await;
        }
        Ok(())
    }

    /// One request. Ends well where the disk takes no more: the writer knows why.
    async fn attempt(&self, entry: &Entry, writer: &mut Writer) -> Result<(), Trouble> {
        let path = format!("/{}/resolve/{}/{}", self.repo, self.commit, encoded(&entry.path));
        let mut answer = self.client.get(&path, writer.at()).await?;
        let mut skip = self.accepted(entry, &answer, writer.at()).map_err(Trouble::Lasting)?;
        while let Some(mut chunk) = answer.next().await? {
            self.brake.pass(&self.board).await;
            if let Some(rate) = &self.rate {
                rate.pass(chunk.len()).await;
            }
            // The whole came where a part was asked for.
            let left = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            drop(chunk.split_to(left));
            skip -= u64::try_from(left).unwrap_or(skip);
            let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let found = writer.at().saturating_add(length);
            if found > entry.size {
                return Err(Trouble::Lasting(of_size(entry, found)));
            }
            if length > 0 && !writer.push(chunk).await {
                return Ok(());
            }
            self.board.count_fetched(length);
        }
        if writer.at() == entry.size {
            return Ok(());
        }
        let reason = "the answer ended early".to_owned();
        Err(Trouble::Passing { host: answer.host, reason, wait: None })
    }

    /// Checks what an answer's head says; returns how much of its body is there already.
    fn accepted(&self, entry: &Entry, answer: &Answer, from: u64) -> Result<u64, PullFault> {
        let length = || answer.header("content-length")?.parse::<u64>().ok();
        let range = answer.header("content-range").and_then(content_range);
        let bad = |what: &str| {
            let (host, what) = (answer.host.clone(), what.to_owned());
            Err(PullFault::Answer { host, what })
        };
        match (answer.status.as_u16(), range) {
            (200, _) => match length() {
                Some(length) if length != entry.size => Err(of_size(entry, length)),
                Some(_) | None => Ok(from),
            },
            (206, Some((_, Some(total)))) if total != entry.size => Err(of_size(entry, total)),
            (206, Some((Some(first), _))) if first <= from => Ok(from - first),
            (206, _) => bad("it sent another part of a file than was asked for"),
            (416, Some((_, Some(total)))) => Err(of_size(entry, total)),
            (416, _) => bad("it has no such part of a file"),
            (401 | 403, _) => Err(self.no_access()),
            (status, _) => {
                let (host, file) = (answer.host.clone(), entry.path.clone());
                Err(PullFault::Refused { host, status, file })
            }
        }
    }

    fn no_access(&self) -> PullFault {
        no_access(&self.repo, &self.client)
    }
}

/// Says that the hub does not show a repository.
pub(super) fn no_access(repo: &str, client: &Client) -> PullFault {
    let who =
        if client.has_token() { "the holder of this token" } else { "somebody without a token" };
    PullFault::NoAccess { repo: repo.to_owned(), who }
}

fn of_size(entry: &Entry, found: u64) -> PullFault {
    PullFault::Size { file: entry.path.clone(), expected: entry.size, found }
}

/// Reads the first byte and the whole length of `bytes 1-2/3`, as far as they are said.
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (part, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let first = part.split_once('-').and_then(|(first, _)| first.parse().ok());
    Some((first, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_where_it_begins_and_how_long_the_whole_is() {
        assert_eq!(content_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(content_range("bytes */10"), Some((None, Some(10))));
        assert_eq!(content_range("items 5"), None);
    }
}

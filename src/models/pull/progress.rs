//! How a pull comes along, for whoever watches.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::fault::{PullFault, said};
use crate::models::Holder;

/// A pull at one moment. Its keys are stable.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PullStatus {
    /// What was asked for.
    pub model: String,
    /// How far it has come.
    pub stage: Stage,
    /// The commit, once it is known.
    pub commit: Option<String>,
    /// How many files belong to it.
    pub files: usize,
    /// How many of them are there.
    pub files_done: usize,
    /// What they all take.
    pub size_bytes: u64,
    /// How much of that is on the disk.
    pub done_bytes: u64,
    /// How much of that was there in the beginning: whole files and beginnings of files.
    pub resumed_bytes: u64,
    /// What came over the network.
    pub fetched_bytes: u64,
    /// Who else writes to this model, while that is waited for.
    pub held_by: Option<String>,
    /// The last trouble that passed, or is waited out.
    pub trouble: Option<String>,
    /// How often a request was made again.
    pub retries: u64,
    /// Why it has failed.
    pub error: Option<String>,
    /// The code of that.
    pub code: Option<String>,
    /// Where room on the disk is short: the numbers.
    pub shortage: Option<Shortage>,
}

/// How much room is short on the disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shortage {
    /// What is to be fetched.
    pub needed_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// What has to stay free.
    pub reserve_bytes: u64,
    /// What partial and unused files of the cache take.
    pub freeable_bytes: u64,
}

/// How far a pull has come.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Another writes to this model.
    #[default]
    Waiting,
    /// The hub is asked what the model consists of.
    Asking,
    /// Files come.
    Downloading,
    /// It is whole on the disk.
    Done,
    /// It has ended without that.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl Stage {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Asking => "asking",
            Self::Downloading => "downloading",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Tells whether nothing more comes.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl PullStatus {
    /// Notes that it has ended without the model.
    pub fn fail(&mut self, fault: &PullFault) {
        let is_wanted = matches!(fault, PullFault::Cancelled);
        self.stage = if is_wanted { Stage::Cancelled } else { Stage::Failed };
        self.held_by = None;
        self.code = Some(fault.code().to_owned());
        self.error = Some(said(fault));
        if let PullFault::Disk { needed, free, reserve, freeable, .. } = fault {
            self.shortage = Some(Shortage {
                needed_bytes: needed.0,
                free_bytes: free.0,
                reserve_bytes: reserve.0,
                freeable_bytes: freeable.0,
            });
        }
    }

    /// Returns how much of it is there, 0 to 100; nothing while its size is not known.
    pub fn percent(&self) -> Option<u8> {
        if self.size_bytes == 0 {
            return None;
        }
        let percent = u128::from(self.done_bytes) * 100 / u128::from(self.size_bytes);
        Some(u8::try_from(percent).unwrap_or(100).min(100))
    }
}

/// What the tasks of a pull write their progress on.
#[derive(Debug)]
pub(super) struct Board {
    shown: watch::Sender<PullStatus>,
    told: Mutex<PullStatus>,
    done: AtomicU64,
    fetched: AtomicU64,
}

impl Board {
    pub(super) fn new(shown: watch::Sender<PullStatus>, model: String) -> Arc<Self> {
        let told = Mutex::new(PullStatus { model, ..PullStatus::default() });
        let (done, fetched) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { shown, told, done, fetched })
    }

    /// Notes a change that is shown at once.
    pub(super) fn tell(&self, change: impl FnOnce(&mut PullStatus)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.show();
    }

    /// Notes bytes that came; shown with the next look.
    pub(super) fn count_fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Relaxed);
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Notes bytes that were there already.
    pub(super) fn count_resumed(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.tell(|status| status.resumed_bytes = status.resumed_bytes.saturating_add(bytes));
    }

    /// Notes that so much of what was there or came is of no use.
    pub(super) fn uncount(&self, bytes: u64) {
        self.done.fetch_sub(bytes.min(self.done.load(Relaxed)), Relaxed);
    }

    /// Notes that so much of what was counted as there is not, or is of no use.
    pub(super) fn uncount_resumed(&self, bytes: u64) {
        self.uncount(bytes);
        self.tell(|status| status.resumed_bytes = status.resumed_bytes.saturating_sub(bytes));
    }

    /// Notes that another holds a lock; who, where that is known.
    pub(super) fn held_by(&self, holder: Option<Holder>) {
        let name = holder.map_or_else(|| "another program".to_owned(), |holder| holder.to_string());
        self.tell(|status| status.held_by = Some(name));
    }

    /// Notes that nobody else holds a lock.
    pub(super) fn held_by_nobody(&self) {
        self.tell(|status| status.held_by = None);
    }

    /// Shows what was noted.
    pub(super) fn show(&self) {
        let mut status = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.done_bytes = self.done.load(Relaxed).min(status.size_bytes);
        status.fetched_bytes = self.fetched.load(Relaxed);
        self.shown.send_if_modified(|shown| {
            let is_new = *shown != status;
            *shown = status;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_where_they_came_from() {
        let (shown, watched) = watch::channel(PullStatus::default());
        let board = Board::new(shown, "o/r".to_owned());
        board.tell(|status| status.size_bytes = 1000);
        board.count_resumed(250);
        board.count_fetched(500);
        board.show();
        let status = watched.borrow().clone();
        assert_eq!(
            (status.done_bytes, status.resumed_bytes, status.fetched_bytes),
            (750, 250, 500)
        );
        assert_eq!(status.percent(), Some(75));
        board.uncount(750);
        board.show();
        assert_eq!(watched.borrow().percent(), Some(0));
    }
}

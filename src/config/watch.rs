//! Sees edits to profiles on disk and says "look again".
//!
//! Owns the watch on the profile directories. It never reads what a profile says: it compares bytes,
//! so that a touched file, or one that was written with what it said before, wakes nobody.
//!
//! ```text
//! kernel ──event──▶ (about us?) ──kick──▶ wait 100 ms ──▶ arm anew ──▶ read ──differs──▶ "look again"
//! ```
//!
//! A directory may be made later, removed, renamed over or be a link that is pointed elsewhere. That
//! is why every look arms all watches anew, on what the paths lead to now, *before* it reads: what
//! changes in between is seen by one of the two. It also makes a lost event (an overflowing queue)
//! harmless, because any news leads to a look at everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, mem,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
    task::{self, JoinHandle},
    time,
};

use super::disk;

/// At most one look in this time, so that many quick edits are one change.
const WINDOW: Duration = Duration::from_millis(100);

/// How often to look where a watch could not be set, because the system has no more of them.
const UNWATCHED: Duration = Duration::from_secs(2);

/// Says why directories cannot be watched.
#[derive(Debug, Error)]
pub enum WatchFault {
    /// The system gives no watcher; on Linux most often `fs.inotify.max_user_instances`.
    #[error("watch the profile directories")]
    NoWatcher(#[source] notify::Error),
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches `directories` (absolute paths) and sends a `()` into `look_again` after their profiles
    /// have changed, within 100 ms or a little more. A `()` that still waits in the channel stands for
    /// later changes too, so that a capacity of 1 is enough. The watch ends when the receiver is
    /// dropped.
    ///
    /// Start it before the first [`super::load()`], so that nothing is missed in between.
    ///
    /// # Errors
    /// [`WatchFault::NoWatcher`]. A directory that is missing is no error; it is seen when it is made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        directories: Vec<PathBuf>,
        look_again: mpsc::Sender<()>,
    ) -> Result<Self, WatchFault> {
        Self::start_on(Subject { directories, files: Vec::new() }, look_again)
    }

    /// Watches single files (absolute paths) as [`Watch::start`] does directories. One that is missing
    /// is seen when it is made.
    ///
    /// # Errors
    /// [`WatchFault::NoWatcher`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_on_files(
        files: Vec<PathBuf>,
        look_again: mpsc::Sender<()>,
    ) -> Result<Self, WatchFault> {
        Self::start_on(Subject { directories: Vec::new(), files }, look_again)
    }

    fn start_on(subject: Subject, look_again: mpsc::Sender<()>) -> Result<Self, WatchFault> {
        let kick = Arc::new(Notify::new());
        let ours = Arc::new(ArcSwap::from_pointee(BTreeSet::new()));
        let handler = handler(Arc::clone(&kick), Arc::clone(&ours));
        let watcher = notify::recommended_watcher(handler).map_err(WatchFault::NoWatcher)?;
        let mut eye = Eye { subject, watcher, armed: BTreeSet::new(), ours, last: BTreeMap::new() };
        // The first look is what later ones are compared with.
        let first = eye.look();
        Ok(Self { task: Handle::current().spawn(run(eye, first.watched, kick, look_again)) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut eye: Eye, mut watched: Watched, kick: Arc<Notify>, look_again: mpsc::Sender<()>) {
    loop {
        let unwatched = async {
            match watched {
                Watched::Fully => std::future::pending().await,
                Watched::Partly => time::sleep(UNWATCHED).await,
            }
        };
        tokio::select! {
            () = kick.notified() => {}
            () = unwatched => {}
            () = look_again.closed() => return,
        }
        time::sleep(WINDOW).await;
        // Disks can be slow: not on a thread that others wait for.
        let looked = task::spawn_blocking(move || {
            let sight = eye.look();
            (eye, sight)
        });
        let Ok((back, sight)) = looked.await else {
            // Only when the runtime ends.
            return;
        };
        eye = back;
        watched = sight.watched;
        if sight.is_new {
            match look_again.try_send(()) {
                // The reader has yet to take an earlier one: it will look after this change.
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Closed(())) => return,
            }
        }
    }
}

/// Makes what runs on the watcher's own thread: it only filters and kicks.
fn handler(
    kick: Arc<Notify>,
    ours: Arc<ArcSwap<BTreeSet<PathBuf>>>,
) -> impl FnMut(notify::Result<Event>) + Send + 'static {
    move |event| {
        let is_news = match event {
            Ok(event) => is_change(event.kind) && is_ours(&event, &ours.load()),
            // What was lost is not known.
            Err(_) => true,
        };
        if is_news {
            kick.notify_one();
        }
    }
}

/// Reading is no change: the look itself would wake the next one.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// Tells whether an event is about one of `ours` or the way to it. Folders above hold much else.
fn is_ours(event: &Event, ours: &BTreeSet<PathBuf>) -> bool {
    event.need_rescan()
        || event.paths.is_empty()
        || event
            .paths
            .iter()
            .any(|path| ours.iter().any(|our| path.starts_with(our) || our.starts_with(path)))
}

/// Says whether every path has a watch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Watched {
    Fully,
    Partly,
}

/// What one look showed.
#[derive(Debug)]
struct Sight {
    is_new: bool,
    watched: Watched,
}

/// What is watched: directories for the profiles in them, and files.
#[derive(Debug)]
struct Subject {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// Looks at the directories and files.
#[derive(Debug)]
struct Eye {
    subject: Subject,
    watcher: RecommendedWatcher,
    armed: BTreeSet<PathBuf>,
    /// The paths whose events count, for the handler.
    ours: Arc<ArcSwap<BTreeSet<PathBuf>>>,
    /// Digest of each file, and of each directory that could not be read, at the last look.
    last: BTreeMap<PathBuf, u64>,
}

impl Eye {
    fn look(&mut self) -> Sight {
        let watched = self.arm();
        let seen = self.digests();
        let is_new = seen != self.last;
        self.last = seen;
        Sight { is_new, watched }
    }

    /// Sets every watch anew, on what the paths lead to now.
    fn arm(&mut self) -> Watched {
        let places = places(&self.subject);
        self.ours.store(Arc::new(places.ours));
        for path in mem::take(&mut self.armed) {
            // The kernel may have taken the watch away already, with its directory.
            drop(self.watcher.unwatch(&path));
        }
        for path in &places.watched {
            if self.watcher.watch(path, RecursiveMode::NonRecursive).is_ok() {
                self.armed.insert(path.clone());
            }
        }
        if self.armed == places.watched { Watched::Fully } else { Watched::Partly }
    }

    fn digests(&self) -> BTreeMap<PathBuf, u64> {
        let mut digests = BTreeMap::new();
        for file in &self.subject.files {
            // Who may read and write it counts as well: keys go by owner and mode.
            let access =
                fs::metadata(file).map_or(0, |it| u64::from(it.uid()) << 32 | u64::from(it.mode()));
            digests.insert(file.clone(), disk::read(file).digest ^ access);
        }
        for directory in &self.subject.directories {
            let Ok(files) = disk::list(directory) else {
                digests.insert(directory.clone(), 0);
                continue;
            };
            digests.extend(files.into_iter().map(|file| {
                let digest = disk::read(&file).digest;
                (file, digest)
            }));
        }
        digests
    }
}

/// What to watch, and the events to care for.
#[derive(Debug, Default)]
struct Places {
    watched: BTreeSet<PathBuf>,
    ours: BTreeSet<PathBuf>,
}

/// Finds for each directory: itself, the folder it is in (or will be), the folder of every link on
/// the way, and the folders of the files that its links lead to. Each by its real path, because two
/// watches on one folder are one to the kernel.
fn places(subject: &Subject) -> Places {
    let mut places = Places::default();
    for file in &subject.files {
        places.ours.insert(file.clone());
        places.add_way(file);
        let Ok(real) = file.canonicalize() else { continue };
        places.watched.extend(real.parent().map(Path::to_owned));
        places.ours.insert(real);
    }
    for directory in &subject.directories {
        places.ours.insert(directory.clone());
        places.add_way(directory);
        let Ok(real) = directory.canonicalize() else { continue };
        places.ours.insert(real.clone());
        places.watched.insert(real);
        for file in disk::list(directory).unwrap_or_default() {
            let is_link = fs::symlink_metadata(&file).is_ok_and(|metadata| metadata.is_symlink());
            if let Some(real) = file.canonicalize().ok().filter(|_| is_link) {
                places.watched.extend(real.parent().map(Path::to_owned));
                places.ours.insert(real);
            }
        }
    }
    places
}

impl Places {
    fn add_way(&mut self, directory: &Path) {
        let mut way = PathBuf::new();
        let mut deepest = None;
        for component in directory.components() {
            way.push(component);
            let Some(parent) = way.parent().and_then(|parent| parent.canonicalize().ok()) else {
                continue;
            };
            let is_link = fs::symlink_metadata(&way).is_ok_and(|metadata| metadata.is_symlink());
            if let (true, Component::Normal(name)) = (is_link, component) {
                self.ours.insert(parent.join(name));
                self.watched.insert(parent.clone());
            }
            // The rest of the way below the deepest folder that is there.
            deepest = directory
                .strip_prefix(way.parent().unwrap_or(&way))
                .ok()
                .map(|rest| (parent.join(rest), parent));
        }
        if let Some((below, parent)) = deepest {
            self.ours.insert(below);
            self.watched.insert(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag};

    use super::*;

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(path.into())
    }

    #[test]
    fn reading_is_no_change_and_the_end_of_writing_is() {
        assert!(!is_change(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(EventKind::Access(AccessKind::Close(AccessMode::Write))));
    }

    #[test]
    fn events_of_neighbours_do_not_count_and_those_on_the_way_do() {
        let ours = BTreeSet::from([PathBuf::from("/etc/slotd/profiles")]);
        let made = |path: &str| event(EventKind::Create(CreateKind::Any), path);
        assert!(is_ours(&made("/etc/slotd/profiles/a.toml"), &ours));
        assert!(is_ours(&made("/etc/slotd"), &ours));
        assert!(!is_ours(&made("/etc/slotd/other"), &ours));
    }

    #[test]
    fn lost_events_count() {
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(is_change(overflow.kind) && is_ours(&overflow, &BTreeSet::new()));
    }
}

//! One writer at a time, across processes and programs: `flock(2)` on files of their own.
//!
//! A lock's file is removed only by who holds it (`slotd models clean`), and one that was removed since it was
//! opened is no lock: another could hold a new one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use fs2::FileExt;
use tokio::{task::spawn_blocking, time::sleep};

use super::{fault::PullFault, layout::unusable};
use crate::models::Holder;

/// How often a lock that another holds is tried again. `huggingface_hub` does the same.
const PAUSE: Duration = Duration::from_millis(100);

/// A held lock; dropped, it is free.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "it is held, not read")] File);

/// Waits for a lock. `told` hears of whoever holds it, once and when that changes; of programs that do not
/// write their name down, nothing.
pub(super) async fn wait(
    path: &Path,
    mut told: impl FnMut(Option<Holder>),
) -> Result<Held, PullFault> {
    let mut last = None;
    loop {
        let at = path.to_owned();
        let tried = spawn_blocking(move || take(&at)).await;
        let taken = tried.map_err(|error| PullFault::Broken(error.to_string()))?;
        match taken.map_err(unusable(path))? {
            Ok(held) => return Ok(held),
            Err(holder) => {
                if last.as_ref() != Some(&holder) {
                    told(holder.clone());
                    last = Some(holder);
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Takes a lock and writes this process into its file, or returns whose it is.
fn take(path: &Path) -> io::Result<Result<Held, Option<Holder>>> {
    loop {
        let file = open(path)?;
        if let Some(taken) = take_opened(file)? {
            return Ok(taken);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Others of the group may share the cache. Never truncated: the holder stands in it.
    options.read(true).write(true).create(true).truncate(false).mode(0o664);
    options.open(path)
}

/// Takes a lock by its file; `None` where that was removed since it was opened.
fn take_opened(mut file: File) -> io::Result<Option<Result<Held, Option<Holder>>>> {
    match FileExt::try_lock_exclusive(&file) {
        Ok(()) if file.metadata()?.nlink() == 0 => Ok(None),
        Ok(()) => {
            let name = format!("{} slotd\n", std::process::id());
            // The lock is what counts: a full disk leaves the next one without a name.
            drop(file.set_len(0).and_then(|()| file.write_all(name.as_bytes())));
            Ok(Some(Ok(Held(file))))
        }
        Err(error) if error.kind() == fs2::lock_contended_error().kind() => {
            Ok(Some(Err(holder(&mut file))))
        }
        Err(error) => Err(error),
    }
}

/// Reads who holds a lock. What a dead process left there names nobody.
fn holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    let (pid, name) = text.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    let is_there = !cfg!(target_os = "linux") || Path::new("/proc").join(pid.to_string()).exists();
    is_there.then(|| Holder { pid, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Looks only: of a file that is not there nobody holds a lock.
    fn is_free(path: &Path) -> bool {
        match File::open(path) {
            Ok(file) => FileExt::try_lock_shared(&file).is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        assert!(is_free(&path));
        let held = take(&path).unwrap().unwrap();
        assert!(!is_free(&path));
        let holder = take(&path).unwrap().unwrap_err().unwrap();
        assert_eq!((holder.pid, holder.name.as_str()), (std::process::id(), "slotd"));
        drop(held);
        assert!(is_free(&path) && take(&path).unwrap().is_ok());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let late = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let held = take(&path).unwrap().unwrap();
        assert!(take_opened(late).unwrap().is_none());
        drop(held);
    }

    #[tokio::test]
    async fn a_lock_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let held = take(&path).unwrap().unwrap();
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let waiting = wait(&path, |holder| {
            drop(tell.take().map(|tell| tell.send(holder)));
        });
        let freeing = async {
            let holder = told.await.unwrap().unwrap();
            drop(held);
            holder.pid
        };
        let (taken, holder) = tokio::join!(waiting, freeing);
        assert!(taken.is_ok() && holder == std::process::id());
    }
}

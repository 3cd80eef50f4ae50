//! Reads what engines append to their logs.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};

use super::{
    evidence::read_end,
    log::{generation_path, generations, rotated},
    text::Splitter,
};
use crate::spec::Generation;

/// At most this much is read at once, so that a flood cannot hold up its reader.
const CHUNK: u64 = 256 << 10;
/// At most this much of each log is looked at for its last lines.
const TAIL: u64 = 4 << 20;
/// How often a log is looked at for more.
const LOOK: Duration = Duration::from_millis(100);

/// Reads the new lines of one log, from its beginning.
#[derive(Debug)]
pub struct LogFollower {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    splitter: Splitter,
}

impl LogFollower {
    /// Follows `path`, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, offset: 0, splitter: Splitter::default() }
    }

    /// Returns the lines that were ended since the last call, at most 256 KiB of them, safe to show
    /// and cut at 4 KiB. Never waits; nothing is returned while there is no such file.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn read_new(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lines),
                file => self.file.insert(file?),
            },
        };
        if file.metadata()?.len() < self.offset {
            // It was rotated.
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        let read = file.take(CHUNK).read_to_end(&mut bytes)?;
        self.offset = self.offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        self.splitter.push(&bytes, &mut lines);
        Ok(lines)
    }

    /// Starts at the end of the log, and returns its last lines.
    fn skip_to_end(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let (bytes, end) = read_end(&self.path, TAIL)?;
        self.offset = end;
        self.splitter.push(&bytes, &mut lines);
        Ok(lines)
    }
}

/// One line of a slot's log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogLine {
    /// The generation that wrote it.
    pub generation: Generation,
    /// The line, without its end.
    pub text: String,
}

/// Returns the last `count` lines of a slot, over all generations that are kept, oldest first.
///
/// # Errors
/// Those of listing and reading the logs; a slot without logs has no lines.
pub fn read_tail(slot_dir: &Path, count: usize) -> io::Result<Vec<LogLine>> {
    let mut found = VecDeque::new();
    for generation in generations(slot_dir)?.into_iter().rev() {
        let log = generation_path(slot_dir, generation);
        for part in [log.clone(), rotated(&log)] {
            let mut lines = whole_lines(&part)?;
            while found.len() < count
                && let Some(text) = lines.pop()
            {
                found.push_front(LogLine { generation, text });
            }
        }
        if found.len() >= count {
            break;
        }
    }
    Ok(found.into())
}

fn whole_lines(log: &Path) -> io::Result<Vec<String>> {
    let mut follower = LogFollower::new(log.to_path_buf());
    match follower.skip_to_end() {
        Ok(mut lines) => {
            lines.extend(follower.splitter.finish());
            Ok(lines)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns the last `count` lines of a slot and then, as they come, those that its engines write,
/// also of generations that start later. It never ends by itself.
pub fn follow(slot_dir: PathBuf, count: usize) -> impl Stream<Item = io::Result<Vec<LogLine>>> {
    let reader = SlotLog { slot_dir, count, current: None };
    stream::unfold(Some(reader), |reader| async move {
        let (result, reader) = reader?.next().await;
        // After an error there is nothing to go on with.
        let reader = reader.filter(|_| result.is_ok());
        Some((result, reader))
    })
}

#[derive(Debug)]
struct SlotLog {
    slot_dir: PathBuf,
    /// How many old lines are shown first.
    count: usize,
    /// The generation that is being followed; none until the old lines were read.
    current: Option<(Generation, LogFollower)>,
}

impl SlotLog {
    async fn next(mut self) -> (io::Result<Vec<LogLine>>, Option<Self>) {
        loop {
            let look = move || {
                let result = self.look();
                (result, self)
            };
            // A disk that does not answer holds up this reader alone.
            let (result, reader) = match tokio::task::spawn_blocking(look).await {
                Ok(looked) => looked,
                Err(error) => return (Err(io::Error::other(error)), None),
            };
            if !result.as_ref().is_ok_and(Vec::is_empty) {
                return (result, Some(reader));
            }
            self = reader;
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&mut self) -> io::Result<Vec<LogLine>> {
        let Some((generation, follower)) = &mut self.current else { return self.begin() };
        let generation = *generation;
        let mut texts = follower.read_new()?;
        if texts.is_empty()
            && let Some(next) = later(&self.slot_dir, generation)?
        {
            texts.extend(follower.splitter.finish());
            let path = generation_path(&self.slot_dir, next);
            self.current = Some((next, LogFollower::new(path)));
        }
        Ok(texts.into_iter().map(|text| LogLine { generation, text }).collect())
    }

    /// Reads the old lines, and starts to follow where they end.
    fn begin(&mut self) -> io::Result<Vec<LogLine>> {
        let Some(newest) = generations(&self.slot_dir)?.pop() else { return Ok(Vec::new()) };
        let mut follower = LogFollower::new(generation_path(&self.slot_dir, newest));
        let texts = follower.skip_to_end()?;
        let mut lines = read_tail(&self.slot_dir, self.count.saturating_sub(texts.len()))?;
        lines.retain(|line| line.generation < newest);
        lines.extend(texts.into_iter().map(|text| LogLine { generation: newest, text }));
        self.current = Some((newest, follower));
        Ok(lines.split_off(lines.len().saturating_sub(self.count)))
    }
}

fn later(slot_dir: &Path, than: Generation) -> io::Result<Option<Generation>> {
    Ok(generations(slot_dir)?.into_iter().find(|generation| *generation > than))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, pin::pin};

    use futures_util::StreamExt;

    fn append(log: &Path, text: &str) {
        let mut options = File::options();
        options.append(true).create(true).open(log).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn only_what_is_new_and_whole_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("g1.log");
        let mut follower = LogFollower::new(log.clone());
        assert!(follower.read_new().unwrap().is_empty(), "there is no file yet");
        append(&log, "one\ntw");
        assert_eq!(follower.read_new().unwrap(), ["one"]);
        assert!(follower.read_new().unwrap().is_empty());
        append(&log, "o\n");
        assert_eq!(follower.read_new().unwrap(), ["two"]);
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        append(&log, "a\n");
        assert_eq!(follower.read_new().unwrap(), ["a"], "the log was rotated");
    }

    #[test]
    fn the_tail_goes_back_over_rotations_and_generations() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("g9.log"), "one\ntwo\n");
        append(&dir.path().join("g10.log.1"), "three\n");
        append(&dir.path().join("g10.log"), "four\nfive");
        let texts = |count| -> Vec<(u64, String)> {
            let lines = read_tail(dir.path(), count).unwrap();
            lines.into_iter().map(|line| (line.generation.0, line.text)).collect()
        };
        let all = [(9, "one"), (9, "two"), (10, "three"), (10, "four"), (10, "five")];
        let all = all.map(|(generation, text)| (generation, text.to_owned()));
        assert_eq!(texts(9), all);
        assert_eq!(texts(4), all[1..]);
        assert!(texts(0).is_empty());
        assert!(read_tail(&dir.path().join("none"), 3).unwrap().is_empty());
    }

    #[tokio::test]
    async fn following_goes_on_with_the_next_generation() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("g1.log"), "old\nolder\nlast\n");
        let mut lines = pin!(follow(dir.path().to_path_buf(), 2));
        let mut next = async || -> Vec<(u64, String)> {
            let limit = Duration::from_secs(20);
            let lines = tokio::time::timeout(limit, lines.next()).await.expect("no line came");
            let lines = lines.unwrap().unwrap().into_iter();
            lines.map(|line| (line.generation.0, line.text)).collect()
        };
        assert_eq!(next().await, [(1, "older".to_owned()), (1, "last".to_owned())]);
        append(&dir.path().join("g1.log"), "new\nunended");
        assert_eq!(next().await, [(1, "new".to_owned())]);
        append(&dir.path().join("g2.log"), "next\n");
        assert_eq!(next().await, [(1, "unended".to_owned())]);
        assert_eq!(next().await, [(2, "next".to_owned())]);
    }
}

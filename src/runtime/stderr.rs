//! The daemon's own log on standard error, which never keeps anybody waiting.
//!
//! Who reads it may have stopped, and the file behind it may be on a full disk. What is not taken is
//! kept up to a bound and written once it is taken again; what is over the bound is lost, and counted.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    io::{self, Write},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{sync::Notify, time::sleep};

use super::clock::Clock;

/// How much of the log is kept while nobody takes it.
const BACKLOG_BYTES: usize = 256 << 10;
/// A pipe that takes anything takes this much. Source: `PIPE_BUF` in `pipe(7)`.
const PIECE: usize = 4096;
/// How long the end of the daemon waits for its last lines to be taken.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How long it waits while nothing is taken.
const LAST_PAUSE: Duration = Duration::from_millis(200);
/// How long what was not taken waits until it is tried again.
const PAUSE: Duration = Duration::from_millis(250);

static LOG: Mutex<Backlog> = Mutex::new(Backlog { bytes: VecDeque::new(), lost: 0, note: None });
/// Told when the log was not taken.
static LEFT: Notify = Notify::const_new();

/// Writes a line that says how many were lost.
type LostNote = fn(u64) -> String;

/// What was not taken yet.
struct Backlog {
    bytes: VecDeque<u8>,
    /// How many events are lost since the last that was kept.
    lost: u64,
    note: Option<LostNote>,
}

/// One event on its way to standard error.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl LogWriter {
    /// Makes the writer; `note` is the line for those that are lost.
    pub fn new(note: LostNote) -> Self {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).note = Some(note);
        Self
    }
}

impl Write for LogWriter {
    /// Takes one whole event; never fails.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(event);
        log.pass_on(&mut Stderr);
        if !log.bytes.is_empty() {
            LEFT.notify_one();
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes on what was not taken, once it is: else the last lines before a quiet time would wait for its end.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn drain_log() -> Infallible {
    loop {
        LEFT.notified().await;
        while !LOG.lock().unwrap_or_else(PoisonError::into_inner).is_passed_on(&mut Stderr) {
            sleep(PAUSE).await;
        }
    }
}

/// Writes what is left, before the process ends or becomes another program. Waits for two seconds at most.
pub fn finish_log() {
    let clock = Clock::start();
    let began = clock.now();
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let mut before = usize::MAX;
    // Ready and not taken: a full disk, which nothing is waited for.
    while !log.is_passed_on(&mut Stderr) && log.bytes.len() < before {
        before = log.bytes.len();
        let left = LAST_WAIT.saturating_sub(clock.now().since(began)).min(LAST_PAUSE);
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if left.is_zero() || !Stderr::is_ready_within(wait) {
            return;
        }
    }
}

impl Backlog {
    fn push(&mut self, event: &[u8]) {
        let mut text = String::new();
        if let Some(note) = self.note.filter(|_| self.lost > 0) {
            text = note(self.lost);
        }
        if self.bytes.len() + text.len() + event.len() > BACKLOG_BYTES {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.lost = 0;
        self.bytes.extend(text.as_bytes());
        self.bytes.extend(event);
    }

    /// Tells whether nothing is left, once what is taken was written.
    fn is_passed_on(&mut self, out: &mut impl Out) -> bool {
        self.pass_on(out);
        self.bytes.is_empty()
    }

    fn pass_on(&mut self, out: &mut impl Out) {
        while !self.bytes.is_empty() && out.is_ready() {
            let (first, _) = self.bytes.as_slices();
            match out.write(first.get(..PIECE).unwrap_or(first)) {
                Ok(0) => return,
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Its reader is gone for good: nobody will ever ask for this.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.bytes.clear(),
                // A full disk: what is kept comes later.
                Err(_) => return,
            }
        }
    }
}

/// Where the log goes.
trait Out {
    /// Says whether a piece is taken at once, or refused at once.
    fn is_ready(&self) -> bool;
    fn write(&mut self, piece: &[u8]) -> io::Result<usize>;
}

struct Stderr;

impl Stderr {
    fn is_ready_within(wait: PollTimeout) -> bool {
        let stderr = io::stderr();
        let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        poll(&mut asked, wait).is_ok_and(|ready| ready > 0)
    }
}

impl Out for Stderr {
    fn is_ready(&self) -> bool {
        Self::is_ready_within(PollTimeout::ZERO)
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write(piece)
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes; then it is full (not ready), or refuses.
    struct Tap {
        room: usize,
        refuses: Option<io::ErrorKind>,
        taken: String,
    }

    impl Out for Tap {
        fn is_ready(&self) -> bool {
            self.room > 0 || self.refuses.is_some()
        }

        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            assert!(piece.len() <= PIECE);
            if let Some(kind) = self.refuses {
                return Err(kind.into());
            }
            let count = piece.len().min(self.room);
            self.room -= count;
            self.taken.push_str(&String::from_utf8_lossy(&piece[..count]));
            Ok(count)
        }
    }

    fn backlog() -> Backlog {
        let note: LostNote = |lost| format!("{lost} lost\n");
        Backlog { bytes: VecDeque::new(), lost: 0, note: Some(note) }
    }

    #[test]
    fn what_was_not_taken_comes_later_in_order() {
        let (mut log, mut tap) = (backlog(), Tap { room: 6, refuses: None, taken: String::new() });
        for event in ["one\n", "two\n", "three\n"] {
            log.push(event.as_bytes());
            log.pass_on(&mut tap);
        }
        assert_eq!(tap.taken, "one\ntw");
        tap.room = 100;
        log.pass_on(&mut tap);
        assert_eq!(tap.taken, "one\ntwo\nthree\n");
    }

    #[test]
    fn what_is_over_the_bound_is_counted_and_told() {
        let (mut log, mut tap) = (backlog(), Tap { room: 0, refuses: None, taken: String::new() });
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..BACKLOG_BYTES / 1024 + 3 {
            log.push(line.as_bytes());
        }
        assert_eq!((log.bytes.len(), log.lost), (BACKLOG_BYTES, 3));
        tap.room = usize::MAX;
        log.pass_on(&mut tap);
        log.push(b"last\n");
        log.pass_on(&mut tap);
        assert!(tap.taken.ends_with("x\n3 lost\nlast\n"));
    }

    #[test]
    fn a_full_disk_keeps_the_log_and_a_reader_that_left_does_not() {
        let full = Some(io::ErrorKind::StorageFull);
        let (mut log, mut tap) = (backlog(), Tap { room: 9, refuses: full, taken: String::new() });
        log.push(b"one\n");
        log.pass_on(&mut tap);
        tap.refuses = None;
        log.pass_on(&mut tap);
        assert_eq!(tap.taken, "one\n");
        log.push(b"two\n");
        tap.refuses = Some(io::ErrorKind::BrokenPipe);
        log.pass_on(&mut tap);
        assert!(log.bytes.is_empty());
    }
}

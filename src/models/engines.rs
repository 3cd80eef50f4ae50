//! Finds llama-server and asks it what it can do.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::Instant;

use crate::engine::{self, Flags};

/// Folders that package managers use and that the `PATH` of a service may not name.
const USUAL: [&str; 2] = ["/usr/local/bin", "/opt/homebrew/bin"];
/// How long a program may take to print its version, and its help.
const DEADLINE: Duration = Duration::from_secs(5);
/// The most output that is read; llama-server's help has 60 KiB.
const MAX_OUTPUT: usize = 1 << 20;

/// A program that was asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EngineBinary {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of its version, such as `0.6.0-dev (build 11434, commit 515e85511)`.
    pub version: String,
    /// The options that it names in its help.
    pub flags: Flags,
}

/// Where llama-server may be, best first.
pub(super) fn places(
    own_program: &Path,
    cache: &Path,
    search_path: Option<&OsStr>,
) -> Vec<PathBuf> {
    // PREFIX/bin/slotd, PREFIX/libexec/slotd/llama-server.
    let bundled =
        own_program.parent().and_then(Path::parent).map(|prefix| prefix.join("libexec/slotd"));
    let searched = search_path.into_iter().flat_map(env::split_paths);
    let folders = bundled.into_iter().chain([cache.join("engines")]).chain(searched);
    let mut places = Vec::new();
    for folder in folders.chain(USUAL.map(PathBuf::from)).filter(|folder| folder.is_absolute()) {
        let place = folder.join("llama-server");
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Tells whether a file can be run.
pub(super) fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Device, inode, size and time of change.
type Identity = (u64, u64, u64, i64, i64);

/// Remembers what programs said, until their file changes.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<BTreeMap<PathBuf, (Identity, EngineBinary)>>);

impl Asked {
    /// Returns what the program at `path` says of itself; asks only when its file is new.
    ///
    /// # Errors
    /// What went wrong, to stand after the program's name.
    pub(super) fn ask(
        &self,
        path: &Path,
        environment: &[(OsString, OsString)],
    ) -> Result<EngineBinary, String> {
        let found = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
        let identity = (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec());
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some((_, binary)) = known.filter(|(known, _)| *known == identity) {
            return Ok(binary);
        }
        // Not under the lock: a program that hangs holds up only those who ask for it.
        let binary =
            inspect(path, environment).map_err(|error| format!("does not run: {error}"))?;
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(path.to_owned(), (identity, binary.clone()));
        Ok(binary)
    }
}

fn inspect(path: &Path, environment: &[(OsString, OsString)]) -> io::Result<EngineBinary> {
    let version = run(path, "--version", environment)?;
    let version = version.lines().find_map(|line| line.strip_prefix("version: "));
    let version = version.unwrap_or("unknown").trim().to_owned();
    let flags = Flags::parse(&run(path, "--help", environment)?);
    Ok(EngineBinary { path: path.to_owned(), version, flags })
}

/// Runs a program for what it prints, within the deadline.
fn run(program: &Path, argument: &str, environment: &[(OsString, OsString)]) -> io::Result<String> {
    let (mut reader, writer) = io::pipe()?;
    // The command keeps the writing ends: it must be gone before the end can be read.
    let mut child = Command::new(program)
        .arg(argument)
        .env_clear()
        .envs(engine::inherited(environment))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    let output = read_within(&mut reader, DEADLINE);
    if output.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let output = output.map_err(|error| {
        if error.kind() == io::ErrorKind::TimedOut {
            let seconds = DEADLINE.as_secs();
            io::Error::other(format!("`{argument}` gave no answer within {seconds} s"))
        } else {
            error
        }
    })?;
    if status.success() {
        return Ok(output);
    }
    let first = output.lines().next().unwrap_or("it printed nothing");
    Err(io::Error::other(format!("`{argument}` ended with {status}: {first}")))
}

fn read_within(reader: &mut io::PipeReader, deadline: Duration) -> io::Result<String> {
    let until = Instant::now() + deadline;
    let mut output = Vec::new();
    let mut chunk = [0; 1 << 14];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if left.is_zero() || poll(&mut polled, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let read = reader.read(&mut chunk)?;
        if read == 0 || output.len() > MAX_OUTPUT {
            return Ok(String::from_utf8_lossy(&output).into_owned());
        }
        output.extend(chunk.iter().take(read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("llama-server");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn environment() -> Vec<(OsString, OsString)> {
        env::vars_os().collect()
    }

    #[test]
    fn llama_server_is_looked_for_from_the_nearest_place_to_the_farthest() {
        let places = places(
            Path::new("/opt/slotd/bin/slotd"),
            Path::new("/var/cache/slotd"),
            Some(OsStr::new("/usr/bin:relative:/usr/local/bin")),
        );
        let expected = [
            "/opt/slotd/libexec/slotd/llama-server",
            "/var/cache/slotd/engines/llama-server",
            "/usr/bin/llama-server",
            "/usr/local/bin/llama-server",
            "/opt/homebrew/bin/llama-server",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[test]
    fn a_program_is_asked_again_only_when_its_file_changed() {
        let folder = tempfile::tempdir().unwrap();
        let count = "echo x >> \"$(dirname \"$0\")/asked\"; echo 'version: 7'; echo '--model FILE'";
        let path = script(folder.path(), count);
        let asked = Asked::default();
        let times = || fs::read_to_string(folder.path().join("asked")).unwrap().lines().count();
        let binary = asked.ask(&path, &environment()).unwrap();
        assert_eq!((binary.version.as_str(), binary.flags.names("--model")), ("7", true));
        assert_eq!(asked.ask(&path, &environment()), Ok(binary));
        assert_eq!(times(), 2);
        script(folder.path(), &format!("{count}; echo '--alias NAME'"));
        assert!(asked.ask(&path, &environment()).unwrap().flags.names("--alias"));
        assert_eq!(times(), 4);
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(
            folder.path(),
            "echo 'libcuda.so.1: cannot open shared object file' >&2; exit 127",
        );
        let fault = Asked::default().ask(&path, &environment()).unwrap_err();
        insta::assert_snapshot!(fault, @"does not run: `--version` ended with exit status: 127: libcuda.so.1: cannot open shared object file");
    }

    #[test]
    fn a_program_that_hangs_is_given_up_and_ended() {
        let (mut reader, writer) = io::pipe().unwrap();
        let error = read_within(&mut reader, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer);
    }

    #[test]
    fn secrets_of_the_daemon_are_not_shown_to_programs() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "echo \"version: ${HF_TOKEN:-none}\"");
        let mut environment = environment();
        environment.push(("HF_TOKEN".into(), "secret".into()));
        assert_eq!(Asked::default().ask(&path, &environment).unwrap().version, "none");
    }
}

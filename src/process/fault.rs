//! Why an engine, or the thread that starts engines, did not start.

use std::{io, path::PathBuf};

use nix::errno::Errno;
use thiserror::Error;

/// Says why a [`super::Spawner`] did not start.
#[derive(Debug, Error)]
pub enum StartFault {
    /// The thread could not be made.
    #[error("start the spawning thread")]
    Thread(#[source] io::Error),
    /// The guard could not be started.
    #[error("start the guard `{program}`")]
    Guard {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Says why there is no child.
#[derive(Debug, Error)]
pub enum SpawnFault {
    /// There is no such program: install it, or correct the path.
    #[error("start engine `{program}`: there is no such file")]
    NotFound {
        /// The program.
        program: PathBuf,
    },
    /// The file is there and cannot be run: a script without its interpreter, a program for
    /// another machine, a file without the execute bit.
    #[error("start engine `{program}`: the file cannot be executed")]
    NotExecutable {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory in which it should start is not there.
    #[error("start engine in `{path}`: there is no such directory")]
    WorkingDir {
        /// The directory.
        path: PathBuf,
    },
    /// A file that it needs, its log or its socket, could not be prepared.
    #[error("prepare `{path}` for the engine")]
    Prepare {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine is short of something: processes, memory, open files, disk; or the program is
    /// being replaced. Trying again later may work.
    #[error("start engine `{program}`: the machine is short of a resource")]
    Exhausted {
        /// The program.
        program: PathBuf,
        /// Of which.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("start engine `{program}`")]
    Other {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon is ending: the thread is gone.
    #[error("start engine: the spawning thread has ended")]
    Ended,
}

impl SpawnFault {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a hundred numbers mean anything else")]
    pub(super) fn of(program: PathBuf, source: io::Error) -> Self {
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            Errno::ENOENT if program.exists() => Self::NotExecutable { program, source },
            Errno::ENOENT | Errno::ENOTDIR => Self::NotFound { program },
            Errno::EACCES | Errno::EPERM | Errno::ENOEXEC | Errno::EISDIR => {
                Self::NotExecutable { program, source }
            }
            _ if is_shortage(&source) => Self::Exhausted { program, source },
            _ => Self::Other { program, source },
        }
    }

    /// Tells whether trying again unchanged may work.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Exhausted { .. })
    }
}

/// Tells whether the same call may work later.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [
        Errno::EAGAIN,
        Errno::ENOMEM,
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOSPC,
        Errno::EDQUOT,
        Errno::ETXTBSY,
    ];
    error.raw_os_error().is_some_and(|found| shortages.contains(&Errno::from_raw(found)))
}

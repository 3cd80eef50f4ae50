//! Where things are kept, from what the service manager and the desktop say.
//!
//! Source: `systemd.exec(5)`, `RuntimeDirectory=` and its kin: absolute paths, several with colons
//! between them. XDG Base Directory Specification 0.8: "All paths set in these environment variables
//! must be absolute. If an implementation encounters a relative path in any of these variables it
//! should consider the path invalid and ignore it."

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Reads variables by name; the process's environment, or a test's.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// One kind of directory: the variables that can name it, and where it is without them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// What it holds, for messages.
    pub(super) what: &'static str,
    /// The service manager's variable; it names slotd's own directory.
    service: &'static str,
    /// The desktop's variable; it names the directory of all programs.
    desktop: &'static str,
    /// Where it is in a home directory, if anywhere.
    home: Option<&'static str>,
}

pub(super) const CONFIGURATION: Kind = Kind {
    what: "profiles",
    service: "CONFIGURATION_DIRECTORY",
    desktop: "XDG_CONFIG_HOME",
    home: Some(".config"),
};
pub(super) const STATE: Kind = Kind {
    what: "state",
    service: "STATE_DIRECTORY",
    desktop: "XDG_STATE_HOME",
    home: Some(".local/state"),
};
pub(super) const CACHE: Kind = Kind {
    what: "models and engines",
    service: "CACHE_DIRECTORY",
    desktop: "XDG_CACHE_HOME",
    home: Some(".cache"),
};
pub(super) const RUNTIME: Kind =
    Kind { what: "sockets", service: "RUNTIME_DIRECTORY", desktop: "XDG_RUNTIME_DIR", home: None };

impl Kind {
    /// Returns the directories to consider, best first: the service manager's, the desktop's, the
    /// one in the home directory.
    pub(super) fn candidates(self, environment: Environment<'_>) -> Vec<PathBuf> {
        let service = self.of_service(environment);
        let desktop = absolute(environment, self.desktop).map(|folder| folder.join("slotd"));
        let home =
            home(environment).zip(self.home).map(|(home, folder)| home.join(folder).join("slotd"));
        [service, desktop, home].into_iter().flatten().collect()
    }

    /// Returns the directory that the service manager made for slotd.
    pub(super) fn of_service(self, environment: Environment<'_>) -> Option<PathBuf> {
        let value = environment(self.service)?;
        let first = std::env::split_paths(&value).next()?;
        first.is_absolute().then_some(first)
    }
}

/// Returns the home directory.
pub(super) fn home(environment: Environment<'_>) -> Option<PathBuf> {
    absolute(environment, "HOME")
}

fn absolute(environment: Environment<'_>, name: &str) -> Option<PathBuf> {
    environment(name).map(PathBuf::from).filter(|path: &PathBuf| Path::is_absolute(path))
}

//! Listening sockets that this process was started with: by a socket unit, from the service
//! manager's store, or by the slotd that this one replaces.
//!
//! What is claimed is looked at before it is touched: only a file that is a listening socket is
//! taken over. A stale variable in somebody's shell changes nothing.

use std::{
    env, io,
    os::fd::{AsFd, OwnedFd, RawFd},
    process,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tracing::warn;

use super::sys;

/// The first file of the service manager's protocol. Source: `sd_listen_fds(3)`.
const FIRST: RawFd = 3;
/// More files than anybody passes on purpose.
const MOST: u32 = 64;
/// Names the sockets that an earlier image of this process left open: `PID IMAGES NAME=FD …`.
const HANDOVER: &str = "SLOTD_HANDOVER";

/// A listening socket from before this program began.
#[derive(Debug)]
pub struct Inherited {
    /// Its name: of the socket unit, of the store, or of the earlier image.
    pub name: String,
    /// Who passed it on.
    pub giver: Giver,
    /// The socket.
    pub socket: OwnedFd,
}

/// Who passed a socket on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Giver {
    /// The service manager, from a socket unit or from its store.
    ServiceManager,
    /// The slotd whose place this one took in the same process.
    EarlierImage,
}

/// Takes the listening sockets that this process was started with. Only the first call finds any;
/// it has to come before this process opens listening sockets of its own.
pub fn inherited() -> Vec<Inherited> {
    static IS_TAKEN: AtomicBool = AtomicBool::new(false);
    if IS_TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let given = |name: &str| env::var(name).ok();
    let own = process::id();
    let earlier = of_earlier_image(given(HANDOVER).as_deref(), own);
    let earlier = earlier.into_iter().map(|claim| (claim, Giver::EarlierImage));
    // After a handover the service manager's variables are those of the earlier image.
    let activated = if given(HANDOVER).is_some() {
        Vec::new()
    } else {
        let names = given("LISTEN_FDNAMES");
        of_service_manager((given("LISTEN_PID"), given("LISTEN_FDS")), names.as_deref(), own)
    };
    let activated = activated.into_iter().map(|claim| (claim, Giver::ServiceManager));
    let take = |((name, fd), giver): ((String, RawFd), Giver)| {
        let Some(socket) = sys::take_listener(fd) else {
            warn!(name, fd, "inherited file is no listening socket and is left alone");
            return None;
        };
        Some(Inherited { name, giver, socket })
    };
    earlier.chain(activated).filter_map(take).collect()
}

/// Lets `sockets` survive the `exec` of the next image, and returns the variable that tells it.
///
/// # Errors
/// When a socket's flag cannot be changed.
pub fn hand_over(sockets: &[(&str, &dyn AsFd)]) -> io::Result<(&'static str, String)> {
    use std::{fmt::Write, os::fd::AsRawFd};
    let mut told = format!("{} {}", process::id(), images().saturating_add(1));
    for (name, socket) in sockets {
        fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        write!(told, " {name}={}", socket.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    }
    Ok((HANDOVER, told))
}

/// Returns how many images were before this one in this process.
pub fn images() -> u32 {
    let told = env::var(HANDOVER).unwrap_or_default();
    let mut words = told.split(' ');
    let is_ours = words.next().and_then(|pid| pid.parse().ok()) == Some(process::id());
    words.next().filter(|_| is_ours).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The variables of the service manager that are about the process and not about the program.
pub const STALE_AFTER_HANDOVER: [&str; 4] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", HANDOVER];

fn of_earlier_image(told: Option<&str>, own: u32) -> Vec<(String, RawFd)> {
    let mut words = told.unwrap_or_default().split(' ');
    if words.next().and_then(|pid| pid.parse().ok()) != Some(own) {
        return Vec::new();
    }
    words
        .skip(1)
        .filter_map(|word| {
            let (name, fd) = word.split_once('=')?;
            let fd = fd.parse().ok().filter(|fd| *fd >= FIRST)?;
            Some((name.to_owned(), fd))
        })
        .collect()
}

fn of_service_manager(
    (pid, count): (Option<String>, Option<String>),
    names: Option<&str>,
    own: u32,
) -> Vec<(String, RawFd)> {
    let pid = pid.and_then(|pid| pid.parse().ok());
    let count = count.and_then(|count| count.parse::<u32>().ok()).filter(|count| *count <= MOST);
    let (Some(count), true) = (count, pid == Some(own)) else { return Vec::new() };
    let mut names = names.unwrap_or_default().split(':');
    (FIRST..)
        .zip(0..count)
        .map(|(fd, _)| (names.next().unwrap_or_default().to_owned(), fd))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activated(pid: &str, count: &str, names: Option<&str>) -> Vec<(String, RawFd)> {
        of_service_manager((Some(pid.to_owned()), Some(count.to_owned())), names, 7)
    }

    #[test]
    fn sockets_are_numbered_from_three_and_named_in_order() {
        let named = |name: &str, fd| (name.to_owned(), fd);
        assert_eq!(activated("7", "2", Some("a:b")), [named("a", 3), named("b", 4)]);
        assert_eq!(activated("7", "2", Some("a")), [named("a", 3), named("", 4)]);
        assert_eq!(of_earlier_image(Some("7 1 x=9 y=11"), 7), [named("x", 9), named("y", 11)]);
    }

    #[test]
    fn variables_of_another_process_or_without_sense_claim_nothing() {
        for (pid, count) in [("8", "1"), ("", "1"), ("7", "-1"), ("7", "x"), ("7", "65")] {
            assert!(activated(pid, count, None).is_empty(), "{pid} {count}");
        }
        for told in ["", "7", "8 1 x=9", "7 1 x", "7 1 x=", "7 1 x=2", "7 1 x=-1", "x=9"] {
            assert!(of_earlier_image(Some(told), 7).is_empty(), "{told}");
        }
    }
}

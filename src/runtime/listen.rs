//! The sockets that clients come to: inherited where somebody kept them open, else bound.
//!
//! A socket that outlives the daemon is what makes a restart invisible: the kernel queues who comes
//! meanwhile, and the next daemon answers.
//!
//! 1. What the image before this one handed over, if `--listen` still means it.
//! 2. What a socket unit opened: its address holds, whatever `--listen` says.
//! 3. What the service manager's store kept, if `--listen` still means it.
//! 4. A new one, which goes into the store where there is one.

use std::{
    env, fs, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener as StdUnixListener, UnixStream},
        },
    },
    path::Path,
};

use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use super::{
    access::Doors,
    service_manager,
    start::{StartFault, make_dir},
};
use crate::{
    config::daemon::Settings,
    process::{Giver, Inherited, hand_over, inherited},
};

/// The endpoint's name in a handover and in the service manager's store.
pub(super) const ENDPOINT: &str = "slotd-endpoint";
/// The same of the socket for Ollama's clients.
pub(super) const OLLAMA: &str = "slotd-ollama";
/// Its name in a socket unit (`FileDescriptorName=`).
const OLLAMA_UNIT: &str = "ollama";
/// The control socket's name in a handover.
pub(super) const CONTROL: &str = "slotd-control";

/// What the daemon listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The endpoint.
    pub(super) endpoint: TcpListener,
    /// Where Ollama's clients come, if they may.
    pub(super) ollama: Option<TcpListener>,
    /// The control API.
    pub(super) control: UnixListener,
    /// The same sockets: who holds them keeps clients in the kernel's queue.
    pub(super) kept: Kept,
}

/// Where clients come.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Where Ollama's clients come, if they may.
    pub ollama: Option<SocketAddr>,
}

impl Sockets {
    /// Returns where clients come.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn addresses(&self) -> io::Result<Addresses> {
        let ollama = self.ollama.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(Addresses { endpoint: self.endpoint.local_addr()?, ollama })
    }
}

/// The daemon's sockets, open though nobody accepts on them.
#[derive(Debug)]
pub(super) struct Kept {
    endpoint: StdTcpListener,
    ollama: Option<StdTcpListener>,
    control: StdUnixListener,
    keeper: Keeper,
}

/// Who keeps the endpoint open when the daemon ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Keeper {
    /// Nobody: the address is free again.
    Nobody,
    /// The service manager.
    ServiceManager,
}

impl Kept {
    /// Returns who keeps the endpoint open when the daemon ends.
    pub(super) fn keeper(&self) -> Keeper {
        self.keeper
    }

    /// Lets them survive an `exec`; returns the variable that tells the next image.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn hand_over(&self) -> io::Result<(&'static str, String)> {
        let mut sockets: Vec<(&str, &dyn AsFd)> =
            vec![(ENDPOINT, &self.endpoint), (CONTROL, &self.control)];
        if let Some(ollama) = &self.ollama {
            sockets.push((OLLAMA, ollama));
        }
        hand_over(&sockets)
    }
}

/// Opens the daemon's sockets. Called once, before anything else listens, with the state directory's
/// lock held.
///
/// # Errors
/// [`StartFault`], each variant as it says.
pub(super) fn open(settings: &Settings, doors: &Doors) -> Result<Sockets, StartFault> {
    let mut given = Given::sort(inherited());
    let wanted = Wanted { address: settings.listen, name: ENDPOINT, option: "--listen" };
    let (endpoint, keeper) = open_door(wanted, doors, given.endpoint)?;
    let ollama = if let Some(address) = settings.ollama_listen {
        let wanted = Wanted { address, name: OLLAMA, option: "--ollama-listen" };
        Some(open_door(wanted, doors, given.ollama)?.0)
    } else {
        given.ollama.refuse(OLLAMA);
        None
    };
    let control = match given.control.take() {
        Some(socket) if is_at(&socket, &settings.control) => socket,
        Some(_) | None => bind_control(&settings.control)?,
    };
    let kept = Kept {
        endpoint: endpoint.try_clone()?,
        ollama: ollama.as_ref().map(StdTcpListener::try_clone).transpose()?,
        control: control.try_clone()?,
        keeper,
    };
    endpoint.set_nonblocking(true)?;
    let ollama = ollama.map(|socket| {
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    });
    control.set_nonblocking(true)?;
    Ok(Sockets {
        endpoint: TcpListener::from_std(endpoint)?,
        ollama: ollama.transpose()?,
        control: UnixListener::from_std(control)?,
        kept,
    })
}

/// Inherited sockets by what they are for; those of no use are closed.
#[derive(Debug, Default)]
struct Given {
    endpoint: GivenDoor,
    ollama: GivenDoor,
    control: Option<StdUnixListener>,
}

/// Inherited sockets for one kind of client.
#[derive(Debug, Default)]
struct GivenDoor {
    handed: Option<StdTcpListener>,
    activated: Option<StdTcpListener>,
    stored: Option<StdTcpListener>,
}

impl GivenDoor {
    /// Closes what nobody wants any more.
    fn refuse(self, name: &str) {
        if self.stored.is_some() {
            service_manager::forget_socket(name);
        }
        if self.activated.is_some() {
            warn!(name, "inherited socket is of no use and is closed");
        }
    }
}

/// A socket to be had.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    address: SocketAddr,
    /// Its name in a handover and in the service manager's store.
    name: &'static str,
    /// What sets the address.
    option: &'static str,
}

impl Given {
    fn sort(inherited: Vec<Inherited>) -> Self {
        let mut given = Self::default();
        for Inherited { name, giver, socket } in inherited {
            let tcp = StdTcpListener::from(socket);
            let is_tcp = tcp.local_addr().is_ok();
            match (giver, name.as_str()) {
                (Giver::EarlierImage, ENDPOINT) if is_tcp => given.endpoint.handed = Some(tcp),
                (Giver::EarlierImage, OLLAMA) if is_tcp => given.ollama.handed = Some(tcp),
                (Giver::ServiceManager, ENDPOINT) if is_tcp => given.endpoint.stored = Some(tcp),
                (Giver::ServiceManager, OLLAMA) if is_tcp => given.ollama.stored = Some(tcp),
                (Giver::ServiceManager, OLLAMA_UNIT) if is_tcp => {
                    given.ollama.activated = Some(tcp);
                }
                (Giver::ServiceManager, _) if is_tcp && given.endpoint.activated.is_none() => {
                    given.endpoint.activated = Some(tcp);
                }
                (_, CONTROL) if !is_tcp => {
                    given.control = Some(StdUnixListener::from(OwnedFd::from(tcp)));
                }
                (Giver::EarlierImage | Giver::ServiceManager, _) => {
                    warn!(name, "inherited socket is of no use and is closed");
                }
            }
        }
        given
    }
}

fn open_door(
    Wanted { address: wanted, name, option }: Wanted,
    doors: &Doors,
    given: GivenDoor,
) -> Result<(StdTcpListener, Keeper), StartFault> {
    let GivenDoor { handed, activated, stored } = given;
    let unit_keeps = activated.is_some();
    if let Some(socket) = handed.filter(|socket| means(wanted, socket) || unit_keeps) {
        doors.may_listen(socket.local_addr()?)?;
        return Ok((socket, keeper_of_own())); // (1)
    }
    if let Some(socket) = activated {
        let address = socket.local_addr()?;
        doors.may_listen(address)?;
        if !means(wanted, &socket) {
            info!(name, %address, not_used = %wanted, "socket unit decides where to listen");
        }
        return Ok((socket, Keeper::ServiceManager)); // (2)
    }
    doors.may_listen(wanted)?;
    match stored {
        Some(socket) if means(wanted, &socket) => return Ok((socket, Keeper::ServiceManager)), // (3)
        Some(_) => service_manager::forget_socket(name),
        None => {}
    }
    let fault = |source| StartFault::Listen { option, address: wanted, source };
    let socket = bind(wanted).map_err(fault)?; // (4)
    service_manager::store_socket(name, socket.as_fd());
    Ok((socket, keeper_of_own()))
}

/// Binds and listens with a long queue: it holds who comes while no daemon accepts.
fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)?.into_std()
}

/// Tells whether `wanted` is where `socket` listens; port 0 is content with any.
fn means(wanted: SocketAddr, socket: &StdTcpListener) -> bool {
    socket.local_addr().is_ok_and(|address| {
        address.ip() == wanted.ip() && (wanted.port() == 0 || wanted.port() == address.port())
    })
}

/// A socket of our own outlives us where the service manager says that it has a store (`FDSTORE`,
/// systemd 254; before that our unit says it).
fn keeper_of_own() -> Keeper {
    let room = env::var("FDSTORE").ok().and_then(|room| room.parse::<u32>().ok());
    match room {
        Some(1..) => Keeper::ServiceManager,
        Some(0) | None => Keeper::Nobody,
    }
}

fn is_at(socket: &StdUnixListener, path: &Path) -> bool {
    let is_named = socket.local_addr().is_ok_and(|at| at.as_pathname() == Some(path));
    // Somebody may have taken the file away: then nobody finds this socket any more.
    is_named && path.exists()
}

/// Binds the control socket for this user alone. A socket that nobody serves is a dead daemon's and
/// goes; anything else that is there stays.
fn bind_control(path: &Path) -> Result<StdUnixListener, StartFault> {
    let fault = |source| StartFault::Make { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        make_dir(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(StartFault::NoSocket { path: path.to_path_buf() });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(StartFault::ControlTaken { path: path.to_path_buf() });
        }
        Ok(_) => fs::remove_file(path).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    // Private from the first moment. Nothing else makes files at this point of the start.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = StdUnixListener::bind(path);
    umask(before);
    listener.map_err(fault)
}

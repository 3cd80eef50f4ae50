//! Who holds a port.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
};

/// The process that listens on a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (pid {})", self.name, self.pid)
    }
}

/// Tells whether nobody listens on `address`: binds it for a moment.
pub(super) fn is_free(address: SocketAddr) -> bool {
    match TcpListener::bind(address) {
        Ok(listener) => {
            drop(listener);
            true
        }
        // Other failures are the engine's to meet: they are not about who is there.
        Err(error) => error.kind() != io::ErrorKind::AddrInUse,
    }
}

/// Finds who listens on `address`. Best effort: `None` for other users' processes, and where there
/// is no `/proc`.
#[cfg(target_os = "linux")]
pub fn holder(address: SocketAddr) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| listening_inode(line, address.port()))
    })?;
    let socket = std::path::PathBuf::from(format!("socket:[{inode}]"));
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let mut files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let holds = files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == socket));
        let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        holds.then(|| Holder { pid, name: name().trim().to_owned() })
    })
}

/// There is no `/proc` to ask.
#[cfg(not(target_os = "linux"))]
pub fn holder(_address: SocketAddr) -> Option<Holder> {
    None
}

/// Reads `0: 0100007F:1F90 00000000:0000 0A … INODE …`, a line of `/proc/net/tcp`, if it is a
/// listener on `port`. Source: `proc_pid_net(5)`; state `0A` is `TCP_LISTEN`.
#[cfg(target_os = "linux")]
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (_, local_port) = words.nth(1)?.rsplit_once(':')?;
    let is_listening = words.nth(1)? == "0A";
    let is_port = u16::from_str_radix(local_port, 16).is_ok_and(|found| found == port);
    let inode = words.nth(5)?.parse().ok()?;
    (is_listening && is_port).then_some(inode)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!is_free(address));
        assert_eq!(holder(address).map(|holder| holder.pid), Some(std::process::id()));
        drop(listener);
        assert!(is_free(address));
        assert_eq!(holder(address), None);
    }
}

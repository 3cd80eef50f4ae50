//! Clients that vanish without a word (a closed lid, a dropped network) are found by the system.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::net::TcpStream;

/// How long a connection may be silent before the system asks whether the client is still there, how
/// long between two questions, and how many of them may stay without an answer.
const IDLE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_secs(15);
const QUESTIONS: u32 = 4;

/// Has the system look after a client's connection.
///
/// # Errors
/// When the system refuses; the connection serves all the same.
pub(super) fn set(stream: &TcpStream) -> Result<(), Errno> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds(IDLE))?;
    #[cfg(target_os = "macos")]
    setsockopt(stream, sockopt::TcpKeepAlive, &seconds(IDLE))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds(PAUSE))?;
    setsockopt(stream, sockopt::TcpKeepCount, &QUESTIONS)?;
    // What was sent and not taken is asked after in its own time, which the above does not bound.
    #[cfg(target_os = "linux")]
    setsockopt(stream, sockopt::TcpUserTimeout, &(seconds(IDLE + PAUSE * QUESTIONS) * 1000))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_system_looks_after_a_clients_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set(&stream).unwrap();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).unwrap(), QUESTIONS);
        drop(client);
    }
}

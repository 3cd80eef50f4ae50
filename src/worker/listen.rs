//! The worker's listener: bound before the model is loaded, so that its state can be asked for.

use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
};

use axum::{Router, serve::ListenerExt as _};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::oneshot,
};

use super::{
    exit::{Ending, say},
    options::Address,
};

/// An open listener.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// The file of a Unix socket; removed when it is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

type Serving = Pin<Box<dyn Future<Output = io::Result<()>>>>;

impl Listener {
    /// Binds `address` and writes the log line that says where.
    pub(super) async fn bind(address: &Address) -> Result<Self, Ending> {
        match address {
            Address::Unix(path) => bind_unix(path).await,
            Address::Tcp(address) => bind_tcp(*address).await,
        }
    }

    /// Serves `router` until `stop` fires and the open connections have ended.
    pub(super) fn serve(
        self,
        router: Router,
        stop: oneshot::Receiver<()>,
    ) -> (Serving, Option<SocketFile>) {
        // A sender that is gone stops the server too.
        let stop = async move { drop(stop.await) };
        match self {
            Self::Unix(listener, file) => {
                let serving = axum::serve(listener, router).with_graceful_shutdown(stop);
                (Box::pin(serving.into_future()), Some(file))
            }
            Self::Tcp(listener) => {
                let listener = listener.tap_io(|stream| {
                    // Without it tokens would wait for each other; a failure only costs time.
                    drop(stream.set_nodelay(true));
                });
                let serving = axum::serve(listener, router).with_graceful_shutdown(stop);
                (Box::pin(serving.into_future()), None)
            }
        }
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<Listener, Ending> {
    let fault = |error: io::Error| {
        Ending::cannot_bind(if error.kind() == io::ErrorKind::AddrInUse {
            format!("address {address} is in use")
        } else {
            format!("cannot bind {address}: {error}")
        })
    };
    let listener = TcpListener::bind(address).await.map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    say(format_args!("listening on http://{bound}"));
    Ok(Listener::Tcp(listener))
}

/// A socket file that nobody listens on is left from a worker that was killed; it is replaced.
async fn bind_unix(path: &Path) -> Result<Listener, Ending> {
    let shown = path.display();
    let fault =
        |error: io::Error| Ending::cannot_bind(format!("cannot bind socket `{shown}`: {error}"));
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).await.is_ok() {
            return Err(Ending::cannot_bind(format!("socket `{shown}` is in use")));
        }
        fs::remove_file(path).map_err(fault)?;
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fault)?;
    say(format_args!("listening on unix:{shown}"));
    Ok(Listener::Unix(listener, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it is gone already, or the folder is, there is nothing left to tidy.
        drop(fs::remove_file(&self.0));
    }
}

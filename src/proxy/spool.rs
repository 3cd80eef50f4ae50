//! Uploads: kept in memory while they are small, then in a file without a name, which ends with them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use hyper::{StatusCode, body::Incoming, http::request::Parts};
use tokio::task::spawn_blocking;

use super::{
    body::{Asked, check_encoding, next, too_large},
    fields::Fields,
    payload::Payload,
    record::Fingerprint,
    reply::Fault,
};

/// How much of an upload is kept in memory. The first of a longer one is also its fingerprint.
const IN_MEMORY: usize = 256 << 10;

/// An upload as far as it has come.
enum Spool {
    Memory(BytesMut),
    File { file: Arc<File>, first: Bytes, gathered: BytesMut, length: u64 },
}

/// Takes a form in, whole, and what it says beside its files.
pub(super) async fn read(
    head: &Parts,
    mut body: Incoming,
    (boundary, folder): (&str, &Path),
    limit: usize,
) -> Result<Asked, Fault> {
    check_encoding(&head.headers)?;
    let mut fields = Fields::new(boundary);
    let mut spool = Spool::Memory(BytesMut::new());
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    while let Some(data) = next(&mut body).await? {
        fields.feed(&data);
        spool = spool.take(&data, folder).await.map_err(|error| no_room(&error))?;
        if spool.length() > most {
            return Err(too_large(&head.headers, body, limit).await);
        }
    }
    let Some(found) = fields.end() else {
        let message = "the form has no end: its boundary does not close it".to_owned();
        return Err(Fault::bad_request(None, "invalid_form", message));
    };
    let payload = spool.finish().await.map_err(|error| no_room(&error))?;
    let (model, model_at) = found.model.unzip();
    Ok(Asked { payload, model, is_stream: found.is_stream, model_at })
}

fn no_room(error: &io::Error) -> Fault {
    let message = format!("the upload cannot be kept in the state directory: {error}");
    Fault::unavailable(StatusCode::SERVICE_UNAVAILABLE, "no_room", message)
}

impl Spool {
    fn length(&self) -> u64 {
        let in_memory = |bytes: &BytesMut| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match self {
            Self::Memory(bytes) => in_memory(bytes),
            Self::File { gathered, length, .. } => length.saturating_add(in_memory(gathered)),
        }
    }

    async fn take(self, data: &[u8], folder: &Path) -> io::Result<Self> {
        match self {
            Self::Memory(mut bytes) => {
                bytes.extend_from_slice(data);
                if bytes.len() <= IN_MEMORY {
                    return Ok(Self::Memory(bytes));
                }
                let folder = folder.to_owned();
                let file = spawn_blocking(move || nameless(&folder)).await??;
                let first = bytes.freeze();
                let length = write(&file, first.clone()).await?;
                let gathered = BytesMut::new();
                Ok(Self::File { file, first, gathered, length })
            }
            Self::File { file, first, mut gathered, length } => {
                gathered.extend_from_slice(data);
                if gathered.len() <= IN_MEMORY {
                    return Ok(Self::File { file, first, gathered, length });
                }
                let length = length.saturating_add(write(&file, gathered.freeze()).await?);
                Ok(Self::File { file, first, gathered: BytesMut::new(), length })
            }
        }
    }

    async fn finish(self) -> io::Result<Payload> {
        match self {
            Self::Memory(bytes) => Ok(Payload::bytes(bytes.freeze())),
            Self::File { file, first, gathered, length } => {
                let length = length.saturating_add(write(&file, gathered.freeze()).await?);
                let told = [&first[..], &length.to_le_bytes()].concat();
                Ok(Payload::file(file, length, Fingerprint::of(&told)))
            }
        }
    }
}

/// Appends to a file where a slow disk holds nobody up; returns how much.
async fn write(file: &Arc<File>, bytes: Bytes) -> io::Result<u64> {
    let file = Arc::clone(file);
    spawn_blocking(move || {
        (&*file).write_all(&bytes)?;
        Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    })
    .await?
}

/// Makes a file that has lost its name at once: it ends with whoever holds it open.
fn nameless(folder: &Path) -> io::Result<Arc<File>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = folder.join(format!(".upload-{}-{count}", process::id()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(Arc::new(file))
}

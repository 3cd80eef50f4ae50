//! Whether a file that is there has the content that it is called by: a disk, a crash or a hand may have
//! changed it since it came.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use tokio::task::spawn_blocking;

use super::{broken, catalog::Entry, fault::PullFault, layout::unusable, writer::Sum};
use crate::models::{gguf, safetensors};

/// How much is read before it is looked whether anybody still waits.
const BLOCK: usize = 8 << 20;

/// How closely a pull looks at the files that are there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Scrutiny {
    /// At the headers of weights. A file whose header does not hold is read to its end.
    #[default]
    Headers,
    /// At every byte.
    Hashes,
}

/// Tells whether the file at `path` is what the hub's list says; one of another length is not asked about.
/// `on_read` is told how many bytes were read so far. Dropped, it leaves off soon.
pub(super) async fn is_right(
    (path, entry): (&Path, &Entry),
    scrutiny: Scrutiny,
    mut on_read: impl FnMut(u64),
) -> Result<bool, PullFault> {
    if scrutiny == Scrutiny::Headers {
        let (path, name) = (path.to_owned(), entry.path.clone());
        if spawn_blocking(move || has_sound_header(&path, &name)).await.map_err(broken)? {
            return Ok(true);
        }
    }
    // An odd header may be its owner's: what is called by its content's hash is what was uploaded.
    let opened = path.to_owned();
    let file = spawn_blocking(move || File::open(opened)).await.map_err(broken)?;
    let mut reading = Reading {
        file: file.map_err(unusable(path))?,
        sum: Sum::new(&entry.hash, entry.size),
        read: 0,
    };
    loop {
        let before = reading.read;
        let step = spawn_blocking(move || reading.step()).await.map_err(broken)?;
        reading = step.map_err(unusable(path))?;
        if reading.read == before {
            return Ok(reading.sum.hex() == entry.hash.name());
        }
        on_read(reading.read);
    }
}

/// A file on the way to its end.
struct Reading {
    file: File,
    sum: Sum,
    read: u64,
}

impl Reading {
    /// Reads one block; nothing more at the end.
    fn step(mut self) -> io::Result<Self> {
        let mut block = Vec::with_capacity(BLOCK);
        let most = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        let read = (&mut self.file).take(most).read_to_end(&mut block)?;
        self.sum.add(&block);
        self.read = self.read.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(self)
    }
}

/// Tells whether a file of weights holds what its header says; of other files nothing is known.
fn has_sound_header(path: &Path, name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    match ending.unwrap_or_default().to_ascii_lowercase().as_str() {
        "gguf" => {
            let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
            opened.is_ok_and(|(size, file)| gguf::parse(file, size).is_ok())
        }
        "safetensors" => safetensors::read(path).is_ok(),
        _ => true,
    }
}

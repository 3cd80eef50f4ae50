//! What can be asked of the worker on the command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::exit::Ending;

/// Options of `slotd worker`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The model: a GGUF file, or a folder with an encoder (BERT) in safetensors, which embeds or ranks.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The model's name in answers; the file name without its ending if absent.
    #[arg(long, value_name = "NAME")]
    pub alias: Option<String>,
    /// Listens on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listens on this TCP address; port 0 takes any free port.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Tokens one request may use, prompt and answer together; 0 takes what the model was trained
    /// with, at most 4096.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub context: usize,
    /// Requests worked on at once; the others wait in order.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub parallel: usize,
    /// Threads used for computing; all physical cores if absent.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Layers put on the GPU; 0 computes on the CPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpu_layers: usize,
}

/// Where the worker listens.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

const MOST_PARALLEL: usize = 256;
const MOST_THREADS: usize = 1024;

impl Options {
    /// Checks what the argument parser cannot, and gives the address.
    pub(super) fn address(&self) -> Result<Address, Ending> {
        if !(1..=MOST_PARALLEL).contains(&self.parallel) {
            return Err(Ending::bad_arguments(format!(
                "--parallel: `{}` is out of range, expected 1..={MOST_PARALLEL}",
                self.parallel
            )));
        }
        if let Some(threads) = self.threads.filter(|n| !(1..=MOST_THREADS).contains(n)) {
            return Err(Ending::bad_arguments(format!(
                "--threads: `{threads}` is out of range, expected 1..={MOST_THREADS}"
            )));
        }
        match (&self.socket, self.listen) {
            (Some(path), None) => Ok(Address::Unix(path.clone())),
            (None, Some(address)) => Ok(Address::Tcp(address)),
            (Some(_), Some(_)) => {
                Err(Ending::bad_arguments("--socket and --listen exclude each other"))
            }
            (None, None) => Err(Ending::bad_arguments("one of --socket and --listen is needed")),
        }
    }

    /// Gives the name under which the model is listed.
    pub(super) fn model_name(&self) -> String {
        self.alias.clone().unwrap_or_else(|| {
            self.model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        })
    }
}

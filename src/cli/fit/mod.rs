//! `slotd fit`: how much memory a model will take, before anything is loaded.

mod answer;
mod target;
mod text;

use clap::{Args, ValueEnum};

use self::answer::{Answer, Loaded};
use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::{
    admin::SlotObject,
    sensor,
    spec::{ladder::CacheType, memory::MemoryReading},
};

/// Options of `slotd fit`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// A slot, a model file, or `org/repo:QUANT`
    #[arg(value_name = "SLOT|MODEL")]
    target: String,
    /// Tokens of one request, in place of the profile's
    #[arg(long, visible_alias = "context", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    ctx: Option<u32>,
    /// Requests at once, in place of the profile's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: Option<u32>,
    /// Layers on the GPU, in place of the profile's
    #[arg(long, value_name = "N")]
    gpu_layers: Option<u32>,
    /// How keys and values are kept; of llama-server only
    #[arg(long, value_name = "TYPE", value_enum)]
    cache_type: Option<Cache>,
    /// The engine of a model file
    #[arg(long, value_name = "ENGINE", value_parser = ["auto", "llama-server", "candle"], default_value = "auto")]
    engine: String,
    /// Print JSON, all sizes in bytes
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    #[value(name = "f16")]
    F16,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
}

impl From<Cache> for CacheType {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::F16 => Self::F16,
            Cache::Q8 => Self::Q8_0,
            Cache::Q4 => Self::Q4_0,
        }
    }
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let target = target::find(options)?;
    // Without a daemon there is nothing that could go.
    let slots = match client.slots().await {
        Ok(slots) => slots,
        Err(Failure::NoDaemon { .. } | Failure::Denied { .. }) => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let memory = MemoryReading { host: sensor::host_room(), ..MemoryReading::default() };
    let answer = Answer::of(&target, &memory, &slots.iter().filter_map(loaded).collect::<Vec<_>>());
    if options.json {
        out::json(&answer)?;
    } else {
        out::print(text::shown(&answer))?;
    }
    Ok(Exit::Success)
}

/// A slot that holds memory now.
fn loaded(slot: &SlotObject) -> Option<Loaded> {
    Some(Loaded {
        slot: slot.slot.clone(),
        resident: slot.rss_bytes?,
        is_idle: slot.in_flight == Some(0) && slot.waiting == 0,
    })
}

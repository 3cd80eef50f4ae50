//! `slotd fit`: how much memory a model will take, before anything is loaded.

mod answer;
mod pinned;
mod sources;
mod target;
mod text;

use std::{collections::BTreeMap, env, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use tokio::time::{Instant, sleep};

use self::{
    answer::{Answer, Ledger},
    sources::Sources,
};
use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::{
    admin::{FitObject, FitWish},
    sensor::{self, GpuOptions, Gpus, NVML_LIBRARY, VISIBLE},
    spec::{
        SlotName,
        ladder::CacheType,
        memory::{GpuReading, GpuState, MemoryReading, Need},
    },
};

/// How long the drivers of GPUs are waited for, and how often they are looked at.
const GPU_DEADLINE: Duration = Duration::from_secs(2);
const GPU_PAUSE: Duration = Duration::from_millis(20);

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
    client.beside_daemon("`slotd fit`")?;
    let sources = Sources::find(client).await?;
    let memory = MemoryReading { host: sensor::host_room(), gpus: gpus().await };
    let target = target::find(options, &sources, &memory)?;
    let needs = target.needs();
    let ledger = match asked(client, target.slot.clone(), &needs).await {
        Ok(Some(fit)) => Ledger::of_daemon(fit),
        // Without a daemon that knows this there is nothing that could go.
        Ok(None) | Err(Failure::NoDaemon { .. } | Failure::Denied { .. }) => {
            Ledger::of_settings(&sources.memory, &memory, &needs)
        }
        Err(failure) => return Err(failure),
    };
    let answer = Answer::of((&target, &sources), &memory, (&needs, ledger));
    if options.json {
        out::json(&answer)?;
    } else {
        out::print(text::shown(&answer))?;
    }
    Ok(Exit::Success)
}

/// Asks the daemon, for a slot that it has not taken as for one that is not there yet.
async fn asked(
    client: &Client,
    slot: Option<SlotName>,
    needs: &[Need],
) -> Result<Option<FitObject>, Failure> {
    let is_slot = slot.is_some();
    let wish = FitWish { slot, needs: needs.to_vec() };
    match client.fit(&wish).await? {
        None if is_slot => client.fit(&FitWish { slot: None, ..wish }).await,
        answer => Ok(answer),
    }
}

/// Reads the GPUs once. A driver that hangs has until the deadline, and then is one that says nothing.
async fn gpus() -> BTreeMap<u32, GpuReading> {
    let library = env::var_os(NVML_LIBRARY).map(PathBuf::from);
    if library.is_none() && !sensor::has_gpu() {
        return BTreeMap::new();
    }
    let visible = env::var(VISIBLE).ok();
    let gpus = Gpus::start(&GpuOptions { library, visible, ..GpuOptions::default() });
    let until = Instant::now() + GPU_DEADLINE;
    loop {
        let seen = gpus.look_now();
        let is_read = |gpu: &GpuReading| !matches!(gpu.state, GpuState::Silent { .. });
        if (!seen.is_empty() && seen.values().all(is_read)) || Instant::now() >= until {
            return seen;
        }
        sleep(GPU_PAUSE).await;
    }
}

//! From a file name to an engine: checks first, then weights, then one warm-up step.

use std::path::Path;

use candle_core::Device;
use tokio::sync::mpsc;

use super::{
    engine::{Engine, Parts},
    exit::{Ending, say},
    http::Served,
    memory::{Room, room},
    model::{Encoder, Header, Loading, Network, Part, Shape, Want},
    options::Options,
    text::{Template, Vocabulary},
};
use crate::spec::Bytes;

/// The context when nobody asks for one, unless the model was trained with less.
const USUAL_CONTEXT: usize = 4096;
const MOST_CONTEXT: usize = 1 << 24;
/// What computing takes beside weights and cache: rows of a step, scores, logits.
const SCRATCH: u64 = 64 << 20;

/// Says whether the file is there, before anything is opened for the world.
pub(super) fn check_file(path: &Path) -> Result<(), Ending> {
    std::fs::File::open(path).map(drop).map_err(|error| {
        Ending::missing_file(format!("cannot read model `{}`: {error}", path.display()))
    })
}

/// Says whether a GPU can be used, if one is asked for, and gives it.
pub(super) fn gpu(options: &Options) -> Result<Option<(Device, usize)>, Ending> {
    if options.gpu_layers == 0 {
        return Ok(None);
    }
    let device = if cfg!(feature = "cuda") {
        Device::new_cuda(0)
    } else if cfg!(feature = "metal") {
        Device::new_metal(0)
    } else {
        return Err(Ending::bad_arguments(format!(
            "--gpu-layers {}: this build computes on the CPU only, use 0",
            options.gpu_layers
        )));
    };
    match device {
        Ok(device) => Ok(Some((device, options.gpu_layers))),
        Err(error) => Err(Ending::from_candle("opening the GPU", &error)),
    }
}

/// Loads the model of `options`, telling `served` how far it is.
pub(super) fn load(
    options: &Options,
    served: &Served,
    gpu: Option<(Device, usize)>,
    fatal: mpsc::Sender<Ending>,
) -> Result<Engine, Ending> {
    let loaded = if options.model.is_dir() {
        load_encoder(options, served, gpu.as_ref(), fatal)
    } else {
        load_text(options, served, gpu, fatal)
    };
    loaded.map_err(|ending| ending.of(&options.model))
}

/// Loads a model that writes, from a file.
fn load_text(
    options: &Options,
    served: &Served,
    gpu: Option<(Device, usize)>,
    fatal: mpsc::Sender<Ending>,
) -> Result<Engine, Ending> {
    let header = Header::open(&options.model)?;
    let shape = Shape::read(&header)?;
    let context = context(options.context, shape.trained_context)?;
    let shape = shape.for_context(context);
    if gpu.is_some() && !shape.goes_on_gpu() {
        return Err(Ending::bad_arguments(format!(
            "--gpu-layers {}: models of this architecture are computed on the CPU only, use 0",
            options.gpu_layers
        )));
    }
    let model_bytes = header.tensor_bytes()?;
    let cache =
        shape.cache_bytes(context).saturating_mul(options.parallel.try_into().unwrap_or(u64::MAX));
    if gpu.is_none() {
        fits(model_bytes, cache, room().as_ref())?;
    }
    let vocabulary = Vocabulary::read(&header)?;
    let template = template(&header, &vocabulary)?;
    let loading = Loading { header: &header, shape, gpu, progress: progress(served) };
    let model = Network::Text(Box::new(loading.run()?));
    check_tokens(&vocabulary, model.vocabulary())?;
    // The first step starts the pools of threads and packs weights; no request should pay for it.
    let warm_up =
        |mut cache| model.step(&mut [Part { tokens: &[0], cache: &mut cache, want: Want::Last }]);
    model.cache(1).and_then(warm_up).map_err(|error| Ending::from_candle("warming up", &error))?;
    Engine::start(Parts {
        model,
        vocabulary,
        template,
        context,
        parallel: options.parallel,
        model_bytes,
        file_type: header.number("general.file_type").map_or("", file_type),
        fatal,
    })
}

/// Loads an encoder from a folder.
fn load_encoder(
    options: &Options,
    served: &Served,
    gpu: Option<&(Device, usize)>,
    fatal: mpsc::Sender<Ending>,
) -> Result<Engine, Ending> {
    if gpu.is_some() {
        return Err(Ending::bad_arguments(format!(
            "--gpu-layers {}: models in folders are computed on the CPU only, use 0",
            options.gpu_layers
        )));
    }
    let model_bytes = Encoder::bytes(&options.model)?;
    fits(model_bytes, 0, room().as_ref())?;
    let vocabulary = Vocabulary::of_folder(&options.model)?;
    let encoder = Encoder::load(&options.model, progress(served))?;
    let positions = encoder.config.positions;
    let context = context(options.context, positions)?.min(positions);
    check_tokens(&vocabulary, encoder.vocabulary())?;
    let template = Template::new(None, &vocabulary)
        .map_err(|fault| Ending::internal(format!("the ChatML template fails: {fault}")))?;
    let model = Network::Encoder(Box::new(encoder));
    Engine::start(Parts {
        model,
        vocabulary,
        template,
        context,
        parallel: options.parallel,
        model_bytes,
        file_type: "",
        fatal,
    })
}

fn check_tokens(vocabulary: &Vocabulary, known: usize) -> Result<(), Ending> {
    if vocabulary.len() > known {
        return Err(Ending::bad_model(format!(
            "the model's tokenizer has {} tokens, its weights know {known}",
            vocabulary.len()
        )));
    }
    Ok(())
}

/// Source: `llama_ftype` of llama.cpp's `llama.h`, and the names it writes.
fn file_type(number: u64) -> &'static str {
    match number {
        0 => "all F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K - Medium",
        11 => "Q3_K - Small",
        12 => "Q3_K - Medium",
        13 => "Q3_K - Large",
        14 => "Q4_K - Small",
        15 => "Q4_K - Medium",
        16 => "Q5_K - Small",
        17 => "Q5_K - Medium",
        18 => "Q6_K",
        21 => "Q2_K - Small",
        32 => "BF16",
        _ => "unknown, may not work",
    }
}

fn context(asked: usize, trained: usize) -> Result<usize, Ending> {
    match asked {
        0 => Ok(trained.min(USUAL_CONTEXT)),
        1..=MOST_CONTEXT => Ok(asked),
        _ => Err(Ending::bad_arguments(format!(
            "--context: `{asked}` is out of range, expected 0..={MOST_CONTEXT}"
        ))),
    }
}

fn fits(weights: u64, cache: u64, room: Option<&Room>) -> Result<(), Ending> {
    let needed = weights.saturating_add(cache).saturating_add(SCRATCH);
    match room {
        Some(room) if needed > room.left.0 => Err(Ending::out_of_memory(format!(
            "out of memory: {} are needed ({} weights, {} context, {} for computing), {} leaves {}",
            Bytes(needed),
            Bytes(weights),
            Bytes(cache),
            Bytes(SCRATCH),
            room.set_by,
            room.left
        ))),
        _ => Ok(()),
    }
}

/// A template that cannot be compiled only spoils chats: completions and embeddings still work.
fn template(header: &Header, vocabulary: &Vocabulary) -> Result<Template, Ending> {
    let own = header.text("tokenizer.chat_template");
    Template::new(own, vocabulary).or_else(|fault| {
        say(format_args!("warning: the model's chat template is replaced by ChatML: {fault}"));
        Template::new(None, vocabulary)
            .map_err(|fault| Ending::internal(format!("the ChatML template fails: {fault}")))
    })
}

/// Tells the progress, in the log at each new twentieth.
fn progress(served: &Served) -> impl FnMut(u64, u64) {
    let mut told = 0;
    move |read, total| {
        let parts = u128::from(read) * 10_000 / u128::from(total.max(1));
        let parts = u32::try_from(parts.min(10_000)).unwrap_or(10_000);
        served.set_progress(parts);
        let step = parts / 500;
        if step > told {
            told = step;
            say(format_args!("loading: {} %", parts / 100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_the_figures() {
        let room = Room { left: Bytes(1 << 30), set_by: "the control group" };
        assert_eq!(fits(1 << 29, 1 << 20, Some(&room)), Ok(()));
        assert_eq!(fits(u64::MAX, u64::MAX, None), Ok(()));
        let ending = fits(1 << 30, 4 << 30, Some(&room)).unwrap_err();
        assert_eq!(
            ending.to_string(),
            "out of memory: 5.0 GiB are needed (1.0 GiB weights, 4.0 GiB context, 64 MiB for \
             computing), the control group leaves 1.0 GiB"
        );
    }
}

//! What an engine takes of the machine's CPU cores.

use super::EngineKind;
use crate::spec::profile::{EngineChoice, Profile};

/// What an engine wants of the cores.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CoreNeed {
    /// As many threads as it is given.
    Share,
    /// This many threads, because its profile says so.
    Said(u32),
    /// One core to feed a GPU, which holds all its layers.
    Feeder,
    /// Nobody knows: a program with arguments of its own.
    Unknown,
}

/// What a machine computes with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    /// The CPU cores that engines may use.
    pub cores: u32,
    /// Whether it has a GPU that engines can use.
    pub has_gpu: bool,
}

/// What an engine is given of the machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CoreShare {
    /// The machine.
    pub machine: Machine,
    /// How many threads it computes with, should it want a share.
    pub threads: u32,
}

impl CoreNeed {
    /// Judges a slot before its engine is chosen and its model read.
    pub fn expected(profile: &Profile, machine: Machine) -> Self {
        let kind = match profile.engine {
            EngineChoice::Auto | EngineChoice::LlamaServer => EngineKind::LlamaServer,
            EngineChoice::Candle => EngineKind::Candle,
            EngineChoice::Command(_) => EngineKind::Command,
            // It runs on what others gave it, be it here or elsewhere.
            EngineChoice::External(_) => return Self::Unknown,
        };
        Self::of(profile, kind, (machine, None))
    }

    /// Judges a slot by the profile that its engine is started with, and by the layers of its model
    /// where their number is known.
    pub fn of(
        profile: &Profile,
        kind: EngineKind,
        (machine, layers): (Machine, Option<u32>),
    ) -> Self {
        if kind == EngineKind::Command {
            return Self::Unknown;
        }
        if let Some(threads) = said(profile, kind, machine.cores) {
            return Self::Said(threads);
        }
        let is_on_gpu = machine.has_gpu && is_all_on_gpu(profile, kind, layers);
        if is_on_gpu { Self::Feeder } else { Self::Share }
    }

    /// Returns how many cores the engine is counted with where its share is `share`.
    pub fn counted(self, share: u32) -> u32 {
        match self {
            Self::Share => share,
            Self::Said(threads) => threads,
            Self::Feeder => 1,
            Self::Unknown => 0,
        }
    }
}

/// The threads that a person chose, by a key or in the engine's own words.
/// Source: `common/arg.cpp` of llama.cpp b11434: the last of several counts, and none or fewer
/// threads means all cores.
fn said(profile: &Profile, kind: EngineKind, cores: u32) -> Option<u32> {
    let (options, variable): (&[&str], _) = match kind {
        EngineKind::LlamaServer => {
            (&["--threads", "-t", "--threads-batch", "-tb"], "LLAMA_ARG_THREADS")
        }
        EngineKind::Candle => (&["--threads"], "RAYON_NUM_THREADS"),
        EngineKind::Command => return None,
    };
    let meant = |text: &str| match text.parse::<i64>() {
        Ok(threads) if threads > 0 => u32::try_from(threads).unwrap_or(u32::MAX),
        Ok(_) | Err(_) => cores,
    };
    let words = profile.args.iter().zip(profile.args.iter().skip(1));
    let in_words = words
        .filter(|(option, _)| options.contains(&option.as_str()))
        .map(|(_, value)| meant(value));
    let in_one_word = profile.args.iter().filter_map(|word| {
        let (option, value) = word.split_once('=')?;
        options.contains(&option).then(|| meant(value))
    });
    let in_environment = profile.env.get(variable).map(|value| meant(value));
    // Each phase of its work has a number of its own; it runs with the larger at times.
    let in_arguments = in_words.chain(in_one_word).chain(in_environment).max();
    profile.threads.max(in_arguments)
}

/// llama-server puts all layers on a GPU unless it is told otherwise, the worker none.
fn is_all_on_gpu(profile: &Profile, kind: EngineKind, layers: Option<u32>) -> bool {
    let set = profile.gpu_layers.or_else(|| said_layers(profile));
    match (set, kind) {
        // The output counts as one more layer.
        (Some(set), _) => layers.is_some_and(|layers| set > layers),
        (None, EngineKind::LlamaServer) => true,
        (None, EngineKind::Candle | EngineKind::Command) => false,
    }
}

fn said_layers(profile: &Profile) -> Option<u32> {
    const OPTIONS: [&str; 3] = ["--n-gpu-layers", "--gpu-layers", "-ngl"];
    let mut words = profile.args.iter().zip(profile.args.iter().skip(1));
    let (_, value) = words.find(|(option, _)| OPTIONS.contains(&option.as_str()))?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::launch::tests::profile;

    const CPU: Machine = Machine { cores: 8, has_gpu: false };
    const GPU: Machine = Machine { has_gpu: true, ..CPU };

    fn need(change: impl FnOnce(&mut Profile), machine: Machine) -> CoreNeed {
        let mut profile = profile(EngineChoice::Auto);
        change(&mut profile);
        CoreNeed::expected(&profile, machine)
    }

    fn with_args(args: &[&str]) -> CoreNeed {
        need(|profile| profile.args = args.iter().map(|arg| (*arg).to_owned()).collect(), CPU)
    }

    #[test]
    fn threads_that_a_person_chose_are_taken_as_they_are() {
        assert_eq!(need(|profile| profile.threads = Some(3), CPU), CoreNeed::Said(3));
        assert_eq!(with_args(&["-t", "5"]), CoreNeed::Said(5));
        assert_eq!(with_args(&["--threads=5", "-tb", "6"]), CoreNeed::Said(6));
        assert_eq!(with_args(&["--threads", "-1"]), CoreNeed::Said(8), "all cores");
        let by_variable = |profile: &mut Profile| {
            profile.env.insert("LLAMA_ARG_THREADS".to_owned(), "2".to_owned());
        };
        assert_eq!(need(by_variable, CPU), CoreNeed::Said(2));
        assert_eq!(with_args(&["--temp", "5"]), CoreNeed::Share);
    }

    #[test]
    fn what_a_gpu_holds_whole_takes_one_core() {
        assert_eq!(need(|_| {}, GPU), CoreNeed::Feeder);
        let with_layers = |set, layers| {
            let profile = Profile { gpu_layers: Some(set), ..profile(EngineChoice::Auto) };
            CoreNeed::of(&profile, EngineKind::LlamaServer, (GPU, layers))
        };
        assert_eq!(with_layers(99, Some(30)), CoreNeed::Feeder);
        assert_eq!(with_layers(12, Some(30)), CoreNeed::Share);
        assert_eq!(with_layers(99, None), CoreNeed::Share, "not known to be all of them");
        assert_eq!(need(|profile| profile.gpu_layers = Some(0), GPU), CoreNeed::Share);
        let by_word = |profile: &mut Profile| profile.args = vec!["-ngl".into(), "0".into()];
        assert_eq!(need(by_word, GPU), CoreNeed::Share);
        let worker = |profile: &mut Profile| profile.engine = EngineChoice::Candle;
        assert_eq!(need(worker, GPU), CoreNeed::Share);
        assert_eq!(need(|profile| profile.gpu_layers = Some(99), CPU), CoreNeed::Share);
    }

    #[test]
    fn a_command_is_not_counted() {
        let command = |profile: &mut Profile| profile.engine = EngineChoice::Command(Vec::new());
        assert_eq!(need(command, CPU), CoreNeed::Unknown);
        assert_eq!(CoreNeed::Unknown.counted(4), 0);
    }
}

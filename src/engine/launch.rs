//! Profile to argument vector.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{Endpoint, EngineKind, Flags, environment};
use crate::spec::profile::{Capability, EngineChoice, Profile};

/// How many requests llama-server works on at once when nothing is said; its own default.
const LLAMA_PARALLEL: u32 = 4;
/// The same for the candle worker.
const CANDLE_PARALLEL: u32 = 1;
/// The same for a command, of which nothing is known.
const COMMAND_PARALLEL: u32 = 8;

/// Everything that an argument vector is made from.
#[derive(Clone, Debug)]
pub struct LaunchInput<'a> {
    /// What to serve.
    pub profile: &'a Profile,
    /// By which engine.
    pub kind: EngineKind,
    /// The engine's program; unused for a command, which names its own.
    pub program: &'a Path,
    /// The model file, where the profile names one.
    pub model: Option<&'a Path>,
    /// The projector beside it.
    pub mmproj: Option<&'a Path>,
    /// The options that this version knows.
    pub flags: &'a Flags,
    /// Where it shall listen.
    pub endpoint: &'a Endpoint,
    /// The daemon's environment.
    pub environment: &'a [(OsString, OsString)],
}

/// How to start an engine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: BTreeMap<OsString, OsString>,
    /// How many requests it works on at once.
    pub parallel: u32,
}

/// Says why there is no argument vector.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LaunchFault {
    /// The engine needs a model.
    #[error("engine `{0}` needs a `model`")]
    NoModel(EngineKind),
    /// The context of all sequences together is beyond what can be asked for.
    #[error("`context` {context} × `parallel` {parallel} is too large")]
    TooLarge {
        /// Tokens of one sequence.
        context: u32,
        /// Sequences.
        parallel: u32,
    },
    /// The version is too old for what the profile asks for.
    #[error("this `llama-server` has no `{0}`; use a newer one, `make engine` builds it")]
    UnknownFlag(&'static str),
}

/// Makes the argument vector.
///
/// # Errors
/// [`LaunchFault`], each variant as it says.
pub fn launch(input: &LaunchInput<'_>) -> Result<Launch, LaunchFault> {
    let profile = input.profile;
    let (program, mut args, parallel) = match input.kind {
        EngineKind::LlamaServer => {
            let parallel = profile.parallel.unwrap_or(LLAMA_PARALLEL);
            (input.program.to_path_buf(), llama_server(input, parallel)?, parallel)
        }
        EngineKind::Candle => {
            let parallel = profile.parallel.unwrap_or(CANDLE_PARALLEL);
            (input.program.to_path_buf(), candle(input, parallel)?, parallel)
        }
        EngineKind::Command => {
            let (program, args) = command(input);
            (program, args, profile.parallel.unwrap_or(COMMAND_PARALLEL))
        }
    };
    args.extend(profile.args.iter().map(OsString::from));
    let env = environment::for_engine(input.environment, &profile.env);
    Ok(Launch { program, args, env, parallel })
}

fn llama_server(input: &LaunchInput<'_>, parallel: u32) -> Result<Vec<OsString>, LaunchFault> {
    let profile = input.profile;
    let model = input.model.ok_or(LaunchFault::NoModel(input.kind))?;
    let mut args = Arguments::for_flags(input.flags);
    args.needed("--model", model)?;
    args.needed("--alias", profile.slot.as_str())?;
    match input.endpoint {
        // A path that ends in `.sock` is a Unix socket to it.
        Endpoint::Unix(path) => args.needed("--host", path)?,
        Endpoint::Tcp(address) => {
            args.needed("--host", address.ip().to_string())?;
            args.needed("--port", address.port().to_string())?;
        }
    }
    args.needed("--parallel", parallel.to_string())?;
    if let Some(context) = profile.context {
        // `--ctx-size` is shared out among the sequences; a profile says what one of them gets.
        let total = context
            .checked_mul(parallel)
            .ok_or(LaunchFault::TooLarge { context, parallel })?;
        args.needed("--ctx-size", total.to_string())?;
    }
    if let Some(threads) = profile.threads {
        args.needed("--threads", threads.to_string())?;
    }
    if let Some(layers) = profile.gpu_layers {
        args.needed("--n-gpu-layers", layers.to_string())?;
    }
    if let Some(mmproj) = input.mmproj {
        args.needed("--mmproj", mmproj)?;
    }
    if profile.offers(Capability::Embed) {
        args.switch("--embeddings")?;
        args.needed("--pooling", "mean")?;
    }
    // Nobody sees its pages behind slotd; versions without the option have none.
    args.wanted("--no-ui");
    Ok(args.list)
}

fn candle(input: &LaunchInput<'_>, parallel: u32) -> Result<Vec<OsString>, LaunchFault> {
    let profile = input.profile;
    let model = input.model.ok_or(LaunchFault::NoModel(input.kind))?;
    let mut args: Vec<OsString> = vec!["worker".into()];
    let mut push = |flag: &str, value: &OsStr| args.extend([flag.into(), value.to_owned()]);
    push("--model", model.as_os_str());
    push("--alias", profile.slot.as_str().as_ref());
    match input.endpoint {
        Endpoint::Unix(path) => push("--socket", path.as_os_str()),
        Endpoint::Tcp(address) => push("--listen", address.to_string().as_ref()),
    }
    push("--parallel", parallel.to_string().as_ref());
    let numbers = [
        ("--context", profile.context),
        ("--threads", profile.threads),
        ("--gpu-layers", profile.gpu_layers),
    ];
    for (flag, value) in numbers {
        if let Some(value) = value {
            push(flag, value.to_string().as_ref());
        }
    }
    Ok(args)
}

fn command(input: &LaunchInput<'_>) -> (PathBuf, Vec<OsString>) {
    let EngineChoice::Command(words) = &input.profile.engine else {
        return (input.program.to_path_buf(), Vec::new());
    };
    let (port, socket) = match input.endpoint {
        Endpoint::Unix(path) => (String::new(), path.as_os_str().to_owned()),
        Endpoint::Tcp(address) => (address.port().to_string(), OsString::new()),
    };
    let model = input.model.map_or_else(OsString::new, |path| path.as_os_str().to_owned());
    let values =
        [("{port}", OsString::from(port)), ("{socket}", socket), ("{model}", model)];
    let mut filled = words.iter().map(|word| fill(word, &values));
    let program = filled.next().unwrap_or_default();
    (program.into(), filled.collect())
}

/// Puts each value in the place of its name. A value is never searched for names.
fn fill(word: &str, values: &[(&str, OsString)]) -> OsString {
    let mut filled = OsString::new();
    let mut rest = word;
    loop {
        let next = values
            .iter()
            .filter_map(|(name, value)| rest.split_once(name).map(|parts| (parts, value)))
            .min_by_key(|((before, _), _)| before.len());
        let Some(((before, after), value)) = next else { break };
        filled.push(before);
        filled.push(value);
        rest = after;
    }
    filled.push(rest);
    filled
}

/// Arguments for a program whose options are known.
struct Arguments<'a> {
    flags: &'a Flags,
    list: Vec<OsString>,
}

impl<'a> Arguments<'a> {
    fn for_flags(flags: &'a Flags) -> Self {
        Self { flags, list: Vec::new() }
    }

    fn needed(&mut self, flag: &'static str, value: impl AsRef<OsStr>) -> Result<(), LaunchFault> {
        self.switch(flag)?;
        self.list.push(value.as_ref().to_owned());
        Ok(())
    }

    fn switch(&mut self, flag: &'static str) -> Result<(), LaunchFault> {
        if !self.flags.knows(flag) {
            return Err(LaunchFault::UnknownFlag(flag));
        }
        self.list.push(flag.into());
        Ok(())
    }

    fn wanted(&mut self, flag: &str) {
        if self.flags.knows(flag) && self.flags != &Flags::default() {
            self.list.push(flag.into());
        }
    }
}

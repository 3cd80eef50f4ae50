//! From what was typed to what is meant: the only place that makes a [`Profile`].

use std::{collections::BTreeMap, path::Path};

use toml::de::DeTable;

use super::{
    Context,
    arguments::{check_args, check_command, check_stop_command},
    external,
    fault::Fault,
    file::{EngineKey, ProfileFile},
    ladder, model,
    names::{self, Claim, Sharing},
    syntax,
    walk::{At, Walk},
};
use crate::spec::{
    Endpoint, SlotName,
    profile::{EngineChoice, External, ModelSource, Profile},
};

/// What became of one file.
#[derive(Debug)]
pub(super) struct Reading {
    /// The profile; none when there is a fault.
    pub(super) profile: Option<Profile>,
    /// The names that the file claims, also when it has faults elsewhere.
    pub(super) claims: Vec<Claim>,
    /// Every fault, in the order of the file.
    pub(super) faults: Vec<Fault>,
}

/// Reads the text of a profile that is in no file; relative paths in it start at the folder of `file`.
///
/// # Errors
/// Every fault of it.
pub fn parse(
    text: &str,
    (slot, file): (&SlotName, &Path),
    context: &Context,
) -> Result<Profile, Vec<Fault>> {
    let Reading { profile, faults, .. } = read(file, slot, text, context);
    profile.ok_or(faults)
}

/// Reads the text of one profile.
pub(super) fn read(file: &Path, slot: &SlotName, text: &str, context: &Context) -> Reading {
    // Editors on Windows put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mended = syntax::mend(text);
    let (table, _) = DeTable::parse_recoverable(&mended.text);
    let mut walk = Walk::new(file, text, &mended, table.get_ref());
    let typed = ProfileFile::take(&mut walk);

    check_command(&mut walk, &typed);
    check_stop_command(&mut walk, &typed);
    check_args(&mut walk, &typed);
    ladder::check(&mut walk, &typed);
    let endpoint = external::check(&mut walk, &typed);
    let model = mean_model(&mut walk, &typed, file, context);
    let env = mean_env(&mut walk, &typed.env);
    let claims = names::claims(&mut walk, &typed, slot, (file, text));

    let faults = walk.into_faults();
    let (requests, residence) = (typed.requests(), typed.residence());
    let profile =
        mean_engine(&typed, endpoint).filter(|_| faults.is_empty()).map(|engine| Profile {
            slot: slot.clone(),
            source: file.to_owned(),
            model,
            engine,
            stop_command: typed.stop_command.into_iter().map(|word| word.value).collect(),
            args: typed.args.into_iter().map(|argument| argument.value).collect(),
            env,
            aliases: names::of(&claims, Sharing::Alone),
            routes: names::of(&claims, Sharing::Shared),
            resume: typed.resume,
            capabilities: typed.capabilities,
            context: typed.context,
            parallel: typed.parallel,
            threads: typed.threads,
            gpu_layers: typed.gpu_layers,
            ladder: typed.ladder,
            autostart: typed.autostart,
            essential: typed.essential,
            max_restarts: typed.max_restarts,
            start_timeout: typed.start_timeout,
            stop_timeout: typed.stop_timeout,
            hang_timeout: typed.hang_timeout,
            idle_timeout: typed.idle_timeout,
            on_exit: typed.on_exit,
            pull: typed.pull,
            residence,
            requests,
        });
    Reading { profile, claims, faults }
}

fn mean_engine(typed: &ProfileFile, endpoint: Option<Endpoint>) -> Option<EngineChoice> {
    match typed.engine? {
        EngineKey::Auto => Some(EngineChoice::Auto),
        EngineKey::LlamaServer => Some(EngineChoice::LlamaServer),
        EngineKey::Candle => Some(EngineChoice::Candle),
        EngineKey::Command => {
            let command = typed.command.as_ref()?;
            Some(EngineChoice::Command(command.iter().map(|item| item.value.clone()).collect()))
        }
        EngineKey::External => {
            let model = typed.model.as_ref().map(|model| model.value.clone());
            Some(EngineChoice::External(External { endpoint: endpoint?, model }))
        }
    }
}

fn mean_model(
    walk: &mut Walk<'_>,
    typed: &ProfileFile,
    file: &Path,
    context: &Context,
) -> Option<ModelSource> {
    if typed.engine == Some(EngineKey::External) {
        return None;
    }
    let Some(text) = &typed.model else {
        let is_absent = walk.offset_of_key("model").is_none();
        if is_absent && !matches!(typed.engine, Some(EngineKey::Command) | None) {
            walk.refuse_missing(
                "model",
                "missing, a profile names its model",
                "add `model = \"FILE.gguf\"` or `model = \"org/repo:QUANT\"`",
            );
        }
        return None;
    };
    let beside = file.parent().unwrap_or(Path::new(""));
    match model::read(&text.value, beside, context) {
        Ok(source) => Some(source),
        Err(none) => {
            walk.refuse_value(text, none.message, none.hint);
            None
        }
    }
}

fn mean_env(walk: &mut Walk<'_>, pairs: &[(At<String>, At<String>)]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, value) in pairs {
        if name.value.is_empty() || name.value.contains(['=', '\0']) {
            let message = "is not the name of a variable, it cannot be empty or hold `=` or NUL";
            walk.refuse_value(name, message, "write `env = { NAME = \"value\" }`");
        } else {
            env.insert(name.value.clone(), value.value.clone());
        }
    }
    env
}

//! From what was typed to what is meant: the only place that makes a [`Profile`].

use std::{collections::BTreeMap, path::Path};

use toml::de::DeTable;

use super::{
    Context,
    arguments::{check_args, check_command},
    external,
    fault::Fault,
    file::{EngineKey, ProfileFile},
    ladder, model, syntax,
    walk::{At, Walk},
};
use crate::spec::{
    Endpoint, SlotName,
    profile::{EngineChoice, External, ModelSource, Profile},
};

/// The longest alias, in bytes.
const MAX_ALIAS: usize = 128;
/// The most aliases of a slot.
const MAX_ALIASES: usize = 64;

/// What became of one file.
#[derive(Debug)]
pub(super) struct Reading {
    /// The profile; none when there is a fault.
    pub(super) profile: Option<Profile>,
    /// The aliases that the file claims, also when it has faults elsewhere.
    pub(super) claims: Vec<Claim>,
    /// Every fault, in the order of the file.
    pub(super) faults: Vec<Fault>,
}

/// A name that a file claims for its slot, and where.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) alias: String,
    /// A fault without a message, at the place of the alias.
    pub(super) place: Fault,
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
    check_args(&mut walk, &typed);
    ladder::check(&mut walk, &typed);
    let endpoint = external::check(&mut walk, &typed);
    let model = mean_model(&mut walk, &typed, file, context);
    let env = mean_env(&mut walk, &typed.env);
    let claims = mean_aliases(&mut walk, &typed.aliases, slot, file, text);

    let faults = walk.into_faults();
    let profile =
        mean_engine(&typed, endpoint).filter(|_| faults.is_empty()).map(|engine| Profile {
            slot: slot.clone(),
            source: file.to_owned(),
            model,
            engine,
            args: typed.args.into_iter().map(|argument| argument.value).collect(),
            env,
            aliases: claims.iter().map(|claim| claim.alias.clone()).collect(),
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

fn mean_aliases(
    walk: &mut Walk<'_>,
    aliases: &[At<String>],
    slot: &SlotName,
    file: &Path,
    text: &str,
) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    if let Some(alias) = aliases.get(MAX_ALIASES) {
        let message = format!("a slot has at most {MAX_ALIASES} aliases");
        walk.refuse_value(alias, message, "take this one and those after it out");
    }
    for alias in aliases.iter().take(MAX_ALIASES) {
        let name = alias.value.as_str();
        if let Some(message) = bad_alias(name) {
            let hint = "use the name that clients send as `model`, `gpt-4o-mini` say";
            walk.refuse_value(alias, message, hint);
        } else if name == slot.as_str() {
            let message = format!("`{name}` is the slot's own name already");
            walk.refuse_value(alias, message, "take it out");
        } else if claims.iter().any(|claim| claim.alias == name) {
            let message = format!("`{name}` is there twice");
            walk.refuse_value(alias, message, "take one of the two out");
        } else {
            let place = Fault::of_file(file, "").with_key(&alias.key).at(text, alias.offset);
            claims.push(Claim { alias: name.to_owned(), place });
        }
    }
    claims
}

fn bad_alias(alias: &str) -> Option<String> {
    if alias.len() > MAX_ALIAS {
        return Some(format!(
            "an alias has at most {MAX_ALIAS} bytes, this one has {}",
            alias.len()
        ));
    }
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@' | '+');
    let bad = alias.chars().find(|c| !is_allowed(*c))?;
    Some(format!(
        "`{}` does not fit, an alias is made of `a-z A-Z 0-9 . _ - / : @ +`",
        bad.escape_debug()
    ))
}

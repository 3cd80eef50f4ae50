//! What mends a damaged model of the hub's cache, said with the damage.

use super::{
    hub::is_projector,
    inventory::{Entry, Source},
    pull::Reference,
};

/// What words end with that ask for a download.
const ASKS: &str = "download it again";

/// Adds to words that ask for another download of `model` the command that brings it.
pub(super) fn with_command(words: String, model: &str) -> String {
    if words.ends_with(ASKS) { format!("{words}: `slotd pull --verify {model}`") } else { words }
}

/// Names, with each damage in the hub's cache, the command that mends it.
pub fn name_commands(models: &mut [Entry]) {
    let known: Vec<_> =
        models.iter().filter_map(|model| Some((model.path.clone(), reference(model)?))).collect();
    for model in models.iter_mut().filter(|model| model.source == Source::Hub) {
        let own = reference(model);
        // A projector comes with the model that it is for.
        let beside = || {
            let folder = model.path.parent().filter(|_| is_projector(&model.model))?;
            Some(known.iter().find(|(path, _)| path.starts_with(folder))?.1.clone())
        };
        let Some(wanted) = own.or_else(beside) else { continue };
        for gap in &mut model.gaps {
            let words = std::mem::take(&mut gap.message);
            gap.message = with_command(words, &wanted.to_string());
        }
    }
}

/// What a model of the hub's cache is fetched by; nothing where its name does not say it.
fn reference(model: &Entry) -> Option<Reference> {
    let named: Reference = model.model.parse().ok().filter(|_| model.source == Source::Hub)?;
    let is_main = model.refs.iter().any(|name| name == "main");
    let revision = model.refs.first().or(model.revision.as_ref()).filter(|_| !is_main);
    Some(Reference { revision: revision.cloned(), ..named })
}

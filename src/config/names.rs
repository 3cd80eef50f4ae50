//! The names that a profile claims for its slot: aliases are its own, routes it shares with other slots.

use std::path::Path;

use super::{
    fault::Fault,
    file::ProfileFile,
    walk::{At, Walk},
};
use crate::spec::SlotName;

/// The longest name, in bytes.
const MAX_NAME: usize = 128;
/// The most names of each kind.
const MAX_NAMES: usize = 64;

/// A name that a file claims for its slot, and where.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) name: String,
    pub(super) sharing: Sharing,
    /// A fault without a message, at the place of the name.
    pub(super) place: Fault,
}

/// Whether other slots may have the name as well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sharing {
    /// An alias.
    Alone,
    /// A route.
    Shared,
}

impl Sharing {
    /// The word for such a name.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Alone => "alias",
            Self::Shared => "route",
        }
    }

    fn counted(self) -> &'static str {
        match self {
            Self::Alone => "aliases",
            Self::Shared => "routes",
        }
    }
}

/// Reads the names of a profile; every bad one is a fault.
pub(super) fn claims(
    walk: &mut Walk<'_>,
    typed: &ProfileFile,
    slot: &SlotName,
    at: (&Path, &str),
) -> Vec<Claim> {
    let mut claims = Vec::new();
    // A variant is an alias with parameters of its own.
    let variants = typed.variants.iter().map(|(name, _)| name);
    let aliases: Vec<&At<String>> = typed.aliases.iter().chain(variants).collect();
    let routes: Vec<&At<String>> = typed.routes.iter().collect();
    for (sharing, names) in [(Sharing::Alone, aliases), (Sharing::Shared, routes)] {
        if let Some(name) = names.get(MAX_NAMES) {
            let message = format!("a slot has at most {MAX_NAMES} {}", sharing.counted());
            walk.refuse_value(name, message, "take this one and those after it out");
        }
        for name in names.into_iter().take(MAX_NAMES) {
            claim(walk, &mut claims, (sharing, name), slot, at);
        }
    }
    claims
}

/// Returns the names of one kind.
pub(super) fn of(claims: &[Claim], sharing: Sharing) -> Vec<String> {
    let claims = claims.iter().filter(|claim| claim.sharing == sharing);
    claims.map(|claim| claim.name.clone()).collect()
}

fn claim(
    walk: &mut Walk<'_>,
    claims: &mut Vec<Claim>,
    (sharing, name): (Sharing, &At<String>),
    slot: &SlotName,
    (file, text): (&Path, &str),
) {
    let typed = name.value.as_str();
    if let Some(message) = bad_name(typed, sharing) {
        let hint = "use the name that clients send as `model`, `gpt-4o-mini` say";
        walk.refuse_value(name, message, hint);
    } else if typed == slot.as_str() {
        let message = format!("`{typed}` is the slot's own name already");
        walk.refuse_value(name, message, "take it out");
    } else if claims.iter().any(|claim| claim.name == typed) {
        let message = format!("`{typed}` is there twice");
        walk.refuse_value(name, message, "take one of the two out");
    } else {
        let place = Fault::of_file(file, "").with_key(&name.key).at(text, name.offset);
        claims.push(Claim { name: typed.to_owned(), sharing, place });
    }
}

fn bad_name(name: &str, sharing: Sharing) -> Option<String> {
    let article = match sharing {
        Sharing::Alone => "an",
        Sharing::Shared => "a",
    };
    let noun = sharing.noun();
    if name.len() > MAX_NAME {
        let length = name.len();
        return Some(format!(
            "{article} {noun} has at most {MAX_NAME} bytes, this one has {length}"
        ));
    }
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@' | '+');
    let bad = name.chars().find(|c| !is_allowed(*c))?;
    Some(format!(
        "`{}` does not fit, {article} {noun} is made of `a-z A-Z 0-9 . _ - / : @ +`",
        bad.escape_debug()
    ))
}

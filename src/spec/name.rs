//! Names and numbers that identify things: slots, generations, waiting requests.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest slot name, in bytes: it becomes part of a Unix socket path (108 bytes on Linux).
const MAX_SLOT_NAME: usize = 48;

/// What stands behind the name of a slot in that of the slot that stands in for it. No profile's file can be named so.
const STAND_IN: &str = "~new";

/// Names one slot: 1 to 48 bytes of `a-z A-Z 0-9 . _ -`, the first one a letter or a digit; with `~new` behind
/// them where it stands in for that slot.
///
/// The set is what file names, systemd instance names, URLs and metric labels all take unquoted.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlotName(Arc<str>);

/// Says why a text is not a slot name.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum NameFault {
    /// Nothing was given.
    #[error("a slot name cannot be empty")]
    Empty,
    /// Longer than [`SlotName`] allows.
    #[error("a slot name has at most {MAX_SLOT_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// A character outside the allowed set, or a first one that is no letter or digit.
    #[error(
        "a slot name is made of `a-z A-Z 0-9 . _ -` and starts with a letter or digit, `{0}` does not fit"
    )]
    BadCharacter(char),
}

impl SlotName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the slot that stands in for this one.
    #[must_use]
    pub fn stand_in(&self) -> Self {
        Self(format!("{self}{STAND_IN}").into())
    }

    /// Tells whether it stands in for another slot.
    pub fn is_stand_in(&self) -> bool {
        self.0.ends_with(STAND_IN)
    }

    /// Returns the slot that this one stands in for; `None` for a slot that has a profile's file.
    pub fn stands_in_for(&self) -> Option<Self> {
        self.0.strip_suffix(STAND_IN).map(|name| Self(name.into()))
    }

    /// Returns the slot that clients know it by: the one that it stands in for, else itself.
    #[must_use]
    pub fn known_as(&self) -> Self {
        self.stands_in_for().unwrap_or_else(|| self.clone())
    }
}

impl FromStr for SlotName {
    type Err = NameFault;

    fn from_str(text: &str) -> Result<Self, NameFault> {
        let name = text.strip_suffix(STAND_IN).unwrap_or(text);
        let first = name.chars().next().ok_or(NameFault::Empty)?;
        if name.len() > MAX_SLOT_NAME {
            return Err(NameFault::TooLong(name.len()));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameFault::BadCharacter(first));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match name.chars().find(|c| !allowed(*c)) {
            Some(c) => Err(NameFault::BadCharacter(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for SlotName {
    type Error = NameFault;

    fn try_from(text: String) -> Result<Self, NameFault> {
        text.parse()
    }
}

impl From<SlotName> for String {
    fn from(name: SlotName) -> Self {
        name.as_str().to_owned()
    }
}

impl Borrow<str> for SlotName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Counts the spawns of one slot, from 1. It grows with each spawn and never repeats, also over
/// restarts of the daemon, so that news of an old child is told from news of the present one.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// Returns the generation of the next spawn.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one request that waits for a slot. Unique for the life of the daemon.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct WaiterId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_work_everywhere_are_taken() {
        for name in ["chat", "qwen3-8b", "a", "Qwen2.5_coder", "0"] {
            assert_eq!(name.parse::<SlotName>().map(String::from).as_deref(), Ok(name));
        }
    }

    #[test]
    fn a_stand_in_is_told_by_its_name() {
        let chat: SlotName = "chat".parse().unwrap();
        let beside = chat.stand_in();
        assert_eq!(beside.as_str().parse(), Ok(beside.clone()), "it is read back");
        assert_eq!((beside.stands_in_for(), beside.known_as()), (Some(chat.clone()), chat.clone()));
        assert_eq!((chat.stands_in_for(), chat.known_as()), (None, chat));
        assert_eq!("~new".parse::<SlotName>(), Err(NameFault::Empty));
        assert_eq!("a~new~new".parse::<SlotName>(), Err(NameFault::BadCharacter('~')));
    }

    #[test]
    fn names_that_break_a_path_or_a_url_are_refused() {
        assert_eq!("".parse::<SlotName>(), Err(NameFault::Empty));
        assert_eq!("../up".parse::<SlotName>(), Err(NameFault::BadCharacter('.')));
        assert_eq!("a/b".parse::<SlotName>(), Err(NameFault::BadCharacter('/')));
        assert_eq!("a b".parse::<SlotName>(), Err(NameFault::BadCharacter(' ')));
        assert_eq!("x".repeat(49).parse::<SlotName>(), Err(NameFault::TooLong(49)));
    }
}

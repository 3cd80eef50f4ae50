//! `slotd schema`: the JSON Schema of a profile, for editors.

use super::{exit::Exit, failure::Failure, out};
use crate::config;

pub(super) fn run() -> Result<Exit, Failure> {
    out::json(&config::schema())?;
    Ok(Exit::Success)
}

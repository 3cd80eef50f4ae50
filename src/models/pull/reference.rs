//! What a person asks for: `org/repo`, `org/repo:QUANT`, either with `@REVISION`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(super) use crate::models::hub::is_commit;
use crate::{
    config::{is_hub_name, is_hub_revision},
    spec::profile::ModelSource,
};

/// The revision that is meant where none is named.
pub(super) const MAIN: &str = "main";

/// A model of the hub.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// `org/repo`.
    pub repo: String,
    /// The quantisation; the usual one without it.
    pub quant: Option<String>,
    /// A branch, a tag or a commit; `main` without it.
    pub revision: Option<String>,
}

/// Says why a text names no model of the hub.
#[derive(Debug, Error, Eq, PartialEq)]
#[error(
    "`{typed}` names no model of the hub, expected `org/repo`, `org/repo:QUANT` or `org/repo@REVISION`{hint}"
)]
pub struct ReferenceFault {
    typed: String,
    hint: String,
}

impl Reference {
    /// Returns what a profile's `model` names of the hub; nothing of a file.
    pub fn of(source: &ModelSource) -> Option<Self> {
        match source {
            ModelSource::Hub { repo, quant, revision } => {
                Some(Self { repo: repo.clone(), quant: quant.clone(), revision: revision.clone() })
            }
            ModelSource::File { .. } => None,
        }
    }

    /// Returns the revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl FromStr for Reference {
    type Err = ReferenceFault;

    fn from_str(typed: &str) -> Result<Self, ReferenceFault> {
        let fault = || ReferenceFault { typed: typed.to_owned(), hint: hint(typed) };
        let (name, revision) = match typed.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (typed, None),
        };
        let (repo, quant) = match name.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant)),
            None => (name, None),
        };
        let (org, rest) = repo.split_once('/').ok_or_else(fault)?;
        let is_legal = is_hub_name(org)
            && is_hub_name(rest)
            && quant.is_none_or(is_hub_name)
            && revision.is_none_or(is_hub_revision);
        let owned = |part: Option<&str>| part.map(str::to_owned);
        let (quant, revision) = (owned(quant), owned(revision));
        is_legal.then(|| Self { repo: repo.to_owned(), quant, revision }).ok_or_else(fault)
    }
}

fn hint(typed: &str) -> String {
    let rest = ["huggingface.co/", "hf.co/"].iter().find_map(|host| typed.split_once(host));
    match rest {
        Some((_, rest)) => {
            let repo = rest.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
            format!("; write the repository alone: `{repo}`")
        }
        None => String::new(),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(quant) = &self.quant {
            write!(f, ":{quant}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceFault;

    fn try_from(text: String) -> Result<Self, ReferenceFault> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_and_said_alike() {
        for typed in ["o/r", "o/r:Q4_K_M", "o/r@v1.0", "o/r:Q8_0@refs/pr/7"] {
            assert_eq!(typed.parse::<Reference>().map(|read| read.to_string()), Ok(typed.into()));
        }
        let read: Reference = "o/r:Q8_0@refs/pr/7".parse().unwrap();
        assert_eq!((read.quant.as_deref(), read.revision()), (Some("Q8_0"), "refs/pr/7"));
        assert_eq!("o/r".parse::<Reference>().unwrap().revision(), "main");
    }

    #[test]
    fn what_could_leave_the_cache_names_nothing() {
        for typed in [
            "r", "o/r/x", "../r", "o/..", "o/r@", "o/r@../x", "o/r@a//b", "o/r@/x", "o/r@.x",
            "o/r:", "o/r@a b", "o/r@a%2F",
        ] {
            assert!(typed.parse::<Reference>().is_err(), "{typed}");
        }
    }

    #[test]
    fn the_address_of_a_page_gets_the_name_in_it() {
        let fault = "https://huggingface.co/o/r/tree/main".parse::<Reference>().unwrap_err();
        insta::assert_snapshot!(fault, @"`https://huggingface.co/o/r/tree/main` names no model of the hub, expected `org/repo`, `org/repo:QUANT` or `org/repo@REVISION`; write the repository alone: `o/r`");
    }
}

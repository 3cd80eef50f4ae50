//! Keys made and taken away: what `slotd key` does to the file.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{
    super::{fault::Fault, replace::replace_file},
    Role, SHA256, check_name, read, to_hex,
};

/// Says why the file of keys was not changed.
#[derive(Debug, Error)]
pub enum EditFault {
    /// The name is none.
    #[error("{0}")]
    Name(String),
    /// Another key has the name.
    #[error("there is a key `{name}` already; `slotd key remove {name}` takes it away")]
    Taken {
        /// The name.
        name: String,
    },
    /// The file has faults, which an edit would hide.
    #[error("the file of keys has faults")]
    Faults(Vec<Fault>),
    /// The file cannot be written.
    #[error("write `{}`", path.display())]
    Write {
        /// The file or its folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("get random bytes from the system")]
    Random(#[source] getrandom::Error),
}

/// Makes a key, puts its digest into `file` and returns it: 64 hexadecimal digits after a mark. The
/// file and its folder are made where they are missing, for this user alone.
///
/// # Errors
/// [`EditFault`], each variant as it says.
pub fn add(file: &Path, name: &str, role: Role) -> Result<String, EditFault> {
    check_name(name).map_err(EditFault::Name)?;
    let known = read(file).map_err(EditFault::Faults)?.unwrap_or_default();
    if known.iter().any(|key| *key.name == *name) {
        return Err(EditFault::Taken { name: name.to_owned() });
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(EditFault::Random)?;
    let mark = match role {
        Role::Infer => "sk-slotd-",
        Role::Admin => "sk-slotd-admin-",
    };
    let key = format!("{mark}{}", to_hex(&bytes));
    let digest = to_hex(&Sha256::digest(&key));
    append(file, &format!("{} {name} {SHA256}{digest}\n", role.as_str()))
        .map_err(|source| EditFault::Write { path: file.to_owned(), source })?;
    Ok(key)
}

/// Adds a line by one write: a reader sees all of it or nothing, owner and mode stay.
fn append(file: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let has_end = fs::read(file).unwrap_or_default().last().is_none_or(|byte| *byte == b'\n');
    let line = if has_end { line.to_owned() } else { format!("\n{line}") };
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// Takes the key of this name out of `file`; tells whether it was there.
///
/// # Errors
/// [`EditFault`], each variant as it says.
pub fn remove(file: &Path, name: &str) -> Result<bool, EditFault> {
    let known = read(file).map_err(EditFault::Faults)?.unwrap_or_default();
    if !known.iter().any(|key| *key.name == *name) {
        return Ok(false);
    }
    without(file, name).map_err(|source| EditFault::Write { path: file.to_owned(), source })?;
    Ok(true)
}

/// Replaces the file as a whole.
fn without(file: &Path, name: &str) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    let is_other = |line: &&str| line.split_ascii_whitespace().nth(1) != Some(name);
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let rest: String =
        text.split_inclusive('\n').filter(|line| is_comment(line) || is_other(line)).collect();
    replace_file(file, &rest)
}

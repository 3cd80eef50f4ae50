//! The file of keys: who may ask the endpoint, each by a name and the digest of a key.
//!
//! ```text
//! # comment
//! infer laptop sha256:9f86d0…      asks models
//! infer phone  sha256:2c624…  max_in_flight=2
//! admin ops    sha256:60303a…      gives orders to the daemon
//! ```
//!
//! A key is 256 random bits, so that its plain digest tells nothing; the key itself is shown once,
//! when it is made, and kept nowhere. See `docs/decisions/0007-keys.md`.

mod edit;

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use nix::{fcntl::OFlag, unistd::geteuid};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

pub use self::edit::{EditFault, add, remove};
use super::fault::Fault;

/// The largest file of keys that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The most requests that one key may be bounded to.
pub(super) const MOST_IN_FLIGHT: u32 = 65_536;
const SHA256: &str = "sha256:";
const FORM: &str = "write `infer NAME sha256:…` or `admin NAME sha256:…`, as `slotd key new` does";

/// What a key is for. One does not stand for the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Asking models.
    Infer,
    /// Giving orders to the daemon.
    Admin,
}

impl Role {
    /// Returns the word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Admin => "admin",
        }
    }
}

/// One line of the file.
#[derive(Clone, Eq, PartialEq)]
pub struct Key {
    /// Who it was made for.
    pub name: Arc<str>,
    /// What it is for.
    pub role: Role,
    /// How many of its requests may be in flight, where its line says.
    pub max_in_flight: Option<u32>,
    digest: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The keys in force.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Keys {
    /// There is no file: nobody is asked for a key.
    #[default]
    Unasked,
    /// Everybody is asked for one of these, be there none.
    Asked(Vec<Key>),
}

impl Keys {
    /// Finds the key that was presented. Takes as long for a wrong one as for a right one: all
    /// digests are compared to their end.
    pub fn find(&self, presented: &[u8]) -> Option<&Key> {
        let Self::Asked(keys) = self else { return None };
        let digest = <[u8; 32]>::from(Sha256::digest(presented));
        let mut found = 0_u32;
        for (place, key) in (1_u32..).zip(keys) {
            found.conditional_assign(&place, key.digest.ct_eq(&digest));
        }
        keys.get(usize::try_from(found).ok()?.checked_sub(1)?)
    }

    /// Returns how many keys have a role.
    pub fn count(&self, role: Role) -> usize {
        match self {
            Self::Unasked => 0,
            Self::Asked(keys) => keys.iter().filter(|key| key.role == role).count(),
        }
    }
}

/// Reads the file of keys; `None` when there is none. Blocks on the disk.
///
/// # Errors
/// Every fault of the file. One that other users may write, or that all may read, is refused.
pub fn read(file: &Path) -> Result<Option<Vec<Key>>, Vec<Fault>> {
    match open(file) {
        Ok(Some(text)) => parse(file, &text).map(Some),
        Ok(None) => Ok(None),
        Err(fault) => Err(vec![*fault]),
    }
}

/// Reads a file that holds a secret, by the same rules; `None` when there is none. Blocks on the disk.
///
/// # Errors
/// The fault of the file.
pub fn read_secret(file: &Path) -> Result<Option<String>, Box<Fault>> {
    open(file)
}

fn open(file: &Path) -> Result<Option<String>, Box<Fault>> {
    let fault = |what: &str, hint: &str| Box::new(Fault::of_file(file, what).with_hint(hint));
    // Without waiting: it may be a pipe.
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("the keys cannot be read: {}", error.kind());
            return Err(fault(
                &message,
                "slotd's user needs to read the file, and nobody to guess",
            ));
        }
    };
    check_owner(file, &opened)?;
    let mut text = String::new();
    let read = opened.take(MAX_FILE + 1).read_to_string(&mut text);
    match read.map(u64::try_from) {
        Ok(Ok(..=MAX_FILE)) => Ok(Some(text)),
        Ok(_) => Err(fault("is larger than 1 MiB, the most a file of keys can have", FORM)),
        Err(error) => Err(fault(&format!("the keys cannot be read: {}", error.kind()), FORM)),
    }
}

/// Who can write the file can make keys; who can read it learns who has one.
fn check_owner(file: &Path, opened: &File) -> Result<(), Box<Fault>> {
    let fault = |what: String, hint: String| Box::new(Fault::of_file(file, what).with_hint(hint));
    let Ok(metadata) = opened.metadata() else {
        return Err(fault("the keys cannot be read".to_owned(), FORM.to_owned()));
    };
    if !metadata.is_file() {
        return Err(fault("is not a regular file".to_owned(), FORM.to_owned()));
    }
    let (own, owner, mode) = (geteuid().as_raw(), metadata.uid(), metadata.mode() & 0o7777);
    // Root edits the file for slotd's user as well.
    if owner != 0 && owner != own && own != 0 {
        let message = format!("belongs to user {owner}, neither to root nor to slotd's user {own}");
        return Err(fault(message, format!("`chown root {}`", file.display())));
    }
    if mode & 0o027 != 0 {
        let message = format!("has mode {mode:04o}: other users can read or write the keys");
        return Err(fault(message, format!("`chmod 600 {}`, or 640", file.display())));
    }
    Ok(())
}

fn parse(file: &Path, text: &str) -> Result<Vec<Key>, Vec<Fault>> {
    let (mut keys, mut faults) = (Vec::<Key>::new(), Vec::new());
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_line(line, &keys) {
            Ok(key) => keys.push(key),
            Err(message) => {
                faults.push(Fault::of_file(file, message).at(text, start).with_hint(FORM));
            }
        }
    }
    if faults.is_empty() { Ok(keys) } else { Err(faults) }
}

/// Reads one line. What stands in the place of a digest may be a key: it is never said again.
fn parse_line(line: &str, before: &[Key]) -> Result<Key, String> {
    let mut words = line.split_ascii_whitespace();
    let (Some(role), Some(name), Some(digest), limit, None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err("is not a role, a name and a digest".to_owned());
    };
    let max_in_flight = limit.map(parse_limit).transpose()?;
    let role = match role {
        "infer" => Role::Infer,
        "admin" => Role::Admin,
        _ => return Err("the role is neither `infer` nor `admin`".to_owned()),
    };
    check_name(name)?;
    let digest = digest.strip_prefix(SHA256).and_then(from_hex).ok_or_else(|| {
        format!("the digest of `{name}` is not `sha256:` and 64 hexadecimal digits")
    })?;
    if before.iter().any(|key| *key.name == *name) {
        return Err(format!("the name `{name}` is there twice"));
    }
    if before.iter().any(|key| key.digest == digest) {
        return Err(format!("the key of `{name}` is there twice"));
    }
    Ok(Key { name: name.into(), role, max_in_flight, digest })
}

fn parse_limit(word: &str) -> Result<u32, String> {
    let limit = word.strip_prefix("max_in_flight=").and_then(|count| count.parse().ok());
    limit.filter(|limit| (1..=MOST_IN_FLIGHT).contains(limit)).ok_or_else(|| {
        format!("what follows the digest is not `max_in_flight=N`, N in 1..={MOST_IN_FLIGHT}")
    })
}

/// Tells whether a key can have this name: logs show it.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err("the name of a key has 1 to 64 letters, digits, `-`, `_`, `.` or `@`".to_owned())
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).flatten().collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn shown(text: &str) -> String {
        let faults = parse(Path::new("keys"), text).unwrap_err();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_key_is_made_found_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/keys");
        assert_eq!(read(&file), Ok(None));
        let infer = add(&file, "laptop", Role::Infer).unwrap();
        let admin = add(&file, "ops", Role::Admin).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&infer) && !text.contains(&admin), "{text}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let keys = Keys::Asked(read(&file).unwrap().unwrap());
        assert_eq!(keys.find(infer.as_bytes()).unwrap().name.as_ref(), "laptop");
        assert_eq!(keys.find(admin.as_bytes()).unwrap().role, Role::Admin);
        for wrong in ["", "sk-slotd-", infer.get(1..).unwrap(), &infer.to_uppercase()] {
            assert_eq!(keys.find(wrong.as_bytes()), None, "{wrong}");
        }
        assert!(matches!(add(&file, "ops", Role::Infer), Err(EditFault::Taken { .. })));
        assert!(remove(&file, "laptop").unwrap());
        assert!(!remove(&file, "laptop").unwrap());
        let keys = Keys::Asked(read(&file).unwrap().unwrap());
        assert_eq!(keys.find(infer.as_bytes()), None);
        assert_eq!((keys.count(Role::Infer), keys.count(Role::Admin)), (0, 1));
    }

    #[test]
    fn a_line_without_its_end_is_not_run_into() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        add(&file, "one", Role::Infer).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.trim_end()).unwrap();
        add(&file, "two", Role::Infer).unwrap();
        assert_eq!(read(&file).unwrap().unwrap().len(), 2);
    }

    #[test]
    fn a_key_may_be_bounded_in_its_line() {
        let digest = "0".repeat(64);
        let parse = |end: &str| parse(Path::new("keys"), &format!("infer a sha256:{digest}{end}"));
        assert_eq!(parse("").unwrap()[0].max_in_flight, None);
        assert_eq!(parse(" max_in_flight=2").unwrap()[0].max_in_flight, Some(2));
        for wrong in [" max_in_flight=0", " max_in_flight=x", " 2", " max_in_flight=2 3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        add(&file, "one", Role::Infer).unwrap();
        for (mode, is_fine) in [(0o400, true), (0o640, true), (0o644, false), (0o660, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&file).is_ok(), is_fine, "{mode:o}");
        }
    }

    #[test]
    fn faults_have_their_line_and_never_repeat_what_may_be_a_key() {
        let digest = "0".repeat(64);
        let text = format!(
            "# mine\ninfer a sha256:{digest}\n\nsk-secret\ninfer b sk-secret\nuser c sha256:{digest}\n\
             infer a sha256:{}\ninfer d sha256:{digest}\n",
            "1".repeat(64)
        );
        let shown = shown(&text);
        assert!(!shown.contains("sk-secret"));
        let lines: Vec<_> = shown.lines().filter(|line| !line.contains("hint:")).collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        keys:4:1: is not a role, a name and a digest
        keys:5:1: the digest of `b` is not `sha256:` and 64 hexadecimal digits
        keys:6:1: the role is neither `infer` nor `admin`
        keys:7:1: the name `a` is there twice
        keys:8:1: the key of `d` is there twice
        ");
    }
}

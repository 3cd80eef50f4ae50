//! Profiles on disk: which files count, and their text.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::fault::Fault;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

const MAY_NOT_READ: &str = "slotd needs to read it: check its owner and mode";

/// A file's text, or what is wrong with it, and a digest of its bytes.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) text: Result<String, Box<Fault>>,
    /// Differs when the bytes differ, or when they could not be read; only ever compared.
    pub(super) digest: u64,
}

/// Lists the profiles of a directory, by name: `*.toml` directly inside. Hidden files and what
/// editors leave behind (`x.toml~`, `.x.toml.swp`, `#x.toml#`, `.#x.toml`) do not count.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, Box<Fault>> {
    let entries = fs::read_dir(directory).map_err(|error| no_directory(directory, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| no_directory(directory, &error))?;
        if is_profile(&entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn is_profile(name: &str) -> bool {
    name.strip_suffix(".toml").is_some() && !name.starts_with(['.', '#'])
}

fn no_directory(directory: &Path, error: &io::Error) -> Fault {
    let (message, hint) = if error.kind() == io::ErrorKind::NotFound {
        let hint = format!("make it with `mkdir -p {}`, or name another", directory.display());
        ("there is no such directory of profiles".to_owned(), hint)
    } else {
        (format!("cannot read the directory: {}", plain(error)), MAY_NOT_READ.to_owned())
    };
    Fault::of_file(directory, message).with_hint(hint)
}

fn no_file(file: &Path, error: &io::Error) -> Fault {
    let hint = if error.kind() == io::ErrorKind::NotFound {
        "check the name; a link may lead nowhere"
    } else {
        MAY_NOT_READ
    };
    let message = format!("cannot read the file: {}", plain(error));
    Fault::of_file(file, message).with_hint(hint)
}

/// Reads a file of at most 1 MiB. Never waits: a pipe or a device is refused.
pub(super) fn read(file: &Path) -> Content {
    match bytes(file) {
        Ok(bytes) => Content { digest: digest(&bytes), text: text(file, bytes) },
        Err(fault) => Content { digest: digest(fault.message.as_bytes()), text: Err(fault) },
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, Box<Fault>> {
    let metadata = fs::metadata(file).map_err(|error| no_file(file, &error))?;
    if !metadata.is_file() {
        let hint = "rename it, or move it out of the profiles directory";
        return Err(Box::new(Fault::of_file(file, "is not a regular file").with_hint(hint)));
    }
    let mut bytes = Vec::new();
    let mut reader = File::open(file).map_err(|error| no_file(file, &error))?.take(MAX_FILE + 1);
    let length = reader.read_to_end(&mut bytes).map_err(|error| no_file(file, &error))?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_FILE) {
        return Ok(bytes);
    }
    let hint = "is it a profile at all? move it out of the profiles directory";
    let fault = Fault::of_file(file, "is larger than 1 MiB, the most a profile can have");
    Err(Box::new(fault.with_hint(hint)))
}

fn text(file: &Path, bytes: Vec<u8>) -> Result<String, Box<Fault>> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        // Up to the first bad byte both texts are the same.
        let fault = Fault::of_file(file, "is not UTF-8 text").at(&text, valid);
        Box::new(fault.with_hint("save it as UTF-8"))
    })
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Says an error of the system without its number: `permission denied`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text.get(..end).unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_editors_are_no_profiles() {
        let names = ["chat.toml", "a.b.toml"];
        assert!(names.iter().all(|name| is_profile(name)));
        let leftovers = [
            "chat.toml~",
            ".chat.toml.swp",
            "#chat.toml#",
            ".#chat.toml",
            ".toml",
            "chat.toml.bak",
        ];
        assert!(!leftovers.iter().any(|name| is_profile(name)));
    }

    #[test]
    fn a_file_that_is_not_text_is_named_with_the_first_bad_byte() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
        let fault = read(&file).text.unwrap_err();
        assert_eq!((fault.line, fault.column), (Some(2), Some(6)));
    }

    #[test]
    fn a_huge_file_and_a_directory_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        fs::write(&file, vec![b'#'; 1 << 20]).unwrap();
        assert!(read(&file).text.is_ok());
        fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert!(read(&file).text.unwrap_err().message.contains("1 MiB"));
        assert!(read(folder.path()).text.unwrap_err().message.contains("regular file"));
    }
}

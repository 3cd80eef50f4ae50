//! What profiles say, on text and on real files.

mod faults;
mod keeping;
mod laddering;
mod loading;
mod properties;
mod resolving;
mod shipped;
mod watching;

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Context, fault::Fault, load, profile::Reading};

/// Reads `text` as the profile `qwen.toml`.
fn read(text: &str) -> Reading {
    let slot = "qwen".parse().expect("`qwen` is a slot name");
    super::profile::read(Path::new("qwen.toml"), &slot, text, &Context::default())
}

/// Shows faults as a person sees them.
fn shown(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Every fault of `text` as the profile `qwen.toml`.
fn faults(text: &str) -> String {
    shown(&read(text).faults)
}

/// A folder with files in it, that goes away with its test.
#[derive(Debug)]
struct Folder(TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("the system has room for a folder"));
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a scratch folder can be written");
        }
        fs::write(path, text).expect("a scratch folder can be written");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("the file was there");
    }

    fn load(&self) -> super::Loaded {
        load(&[self.0.path().to_owned()], &Context::default())
    }

    /// The faults, without the folder's own name.
    fn shown(&self, faults: &[Fault]) -> String {
        shown(faults).replace(&format!("{}/", self.0.path().display()), "")
    }
}

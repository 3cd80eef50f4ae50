//! Where models are kept on this machine, by the variables and habits of the programs that keep them.

use std::{ffi::OsString, fs, path::PathBuf};

use super::entry::{Inventory, Source};
use crate::models::hub_cache_dir;

/// The stores of this machine; not all of them need be there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stores(pub(super) Vec<(Source, PathBuf)>);

impl Stores {
    /// Finds the stores by the environment; `model_dirs` are the configured folders.
    ///
    /// **Source:** `constants.py` of `huggingface_hub`; `common/common.cpp` of llama.cpp,
    /// `fs_get_cache_directory`; LM Studio's `.lmstudio-home-pointer`; `envconfig/config.go` of Ollama
    /// and its installer, which makes a user whose home is `/usr/share/ollama`.
    pub fn of(environment: &dyn Fn(&str) -> Option<OsString>, model_dirs: &[PathBuf]) -> Self {
        let folder =
            |name: &str| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = folder("HOME");
        let cache = folder("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
        let mut stores = Self::default();
        // The one that llama.cpp reads, then that of `huggingface_hub`.
        stores.add(Source::Hub, hub_cache_dir(environment));
        let of_python = |name: &str| environment(name).filter(|_| name != "LLAMA_CACHE");
        stores.add(Source::Hub, hub_cache_dir(&of_python));
        for folder in model_dirs {
            stores.add(Source::Folder, Some(folder.clone()));
        }
        stores.add(Source::LlamaCpp, folder("LLAMA_CACHE"));
        stores.add(Source::LlamaCpp, cache.as_ref().map(|cache| cache.join("llama.cpp")));
        stores
            .add(Source::LlamaCpp, home.as_ref().map(|home| home.join("Library/Caches/llama.cpp")));
        let lm_studio = home.as_ref().map(|home| {
            let pointed = fs::read_to_string(home.join(".lmstudio-home-pointer")).ok();
            let pointed =
                pointed.map(|path| PathBuf::from(path.trim())).filter(|path| path.is_absolute());
            pointed.unwrap_or_else(|| home.join(".lmstudio"))
        });
        stores.add(Source::LmStudio, lm_studio.map(|home| home.join("models")));
        stores.add(Source::LmStudio, cache.map(|cache| cache.join("lm-studio/models")));
        stores.add(Source::Ollama, folder("OLLAMA_MODELS"));
        stores.add(Source::Ollama, home.map(|home| home.join(".ollama/models")));
        stores.add(Source::Ollama, Some(PathBuf::from("/usr/share/ollama/.ollama/models")));
        stores
    }

    /// Takes the stores that an inventory was made of.
    pub fn named_in(inventory: &Inventory) -> Self {
        Self(inventory.stores.iter().map(|store| (store.source, store.path.clone())).collect())
    }

    fn add(&mut self, source: Source, path: Option<PathBuf>) {
        let Some(path) = path else { return };
        if !self.0.iter().any(|(known, found)| *known == source && *found == path) {
            self.0.push((source, path));
        }
    }
}

//! Which engine serves a profile, and whether its program runs.

use std::{env, ffi::OsStr, path::PathBuf};

use super::{
    check::{Checks, Places, Refused},
    engines,
    locate::{locate, locate_or_encoder},
};
use crate::{
    engine::{EngineKind, Flags},
    spec::{
        death::Verdict,
        profile::{EngineChoice, Profile},
    },
};

/// An engine that runs.
pub(super) struct Engine {
    pub(super) kind: EngineKind,
    pub(super) program: PathBuf,
    pub(super) version: Option<String>,
    pub(super) flags: Flags,
}

impl Checks {
    /// Chooses the engine of a profile: with `auto`, llama-server where there is one, else the worker;
    /// and the worker for what llama-server cannot read.
    pub(super) fn engine(&self, profile: &Profile) -> Result<Engine, Refused> {
        match &profile.engine {
            EngineChoice::LlamaServer => self.llama_server(),
            EngineChoice::Candle => self.candle(profile),
            EngineChoice::Command(words) => self.command(profile, words),
            EngineChoice::External(external) => Err(Refused {
                verdict: Verdict::SpawnFailed,
                reason: format!("slotd does not start the engine at {}", external.endpoint.url()),
                engine: None,
            }),
            EngineChoice::Auto if self.is_for_worker_alone(profile) => self.candle(profile),
            // One that is there and broken is not passed by in silence.
            EngineChoice::Auto => match self.find_llama_server()? {
                Some(_) => self.llama_server(),
                None if cfg!(feature = "worker") => self.candle(profile),
                None => Err(self.no_llama_server()),
            },
        }
    }

    /// Says whether a profile's model is a folder that no other engine of slotd's serves.
    fn is_for_worker_alone(&self, profile: &Profile) -> bool {
        let is_folder = |source| {
            locate(source, self.hub()).is_err() && locate_or_encoder(source, self.hub()).is_ok()
        };
        cfg!(feature = "worker") && profile.model.as_ref().is_some_and(is_folder)
    }

    /// Finds llama-server; a configured path is taken or refused, never passed by.
    fn find_llama_server(&self) -> Result<Option<PathBuf>, Refused> {
        let Some(configured) = &self.places.llama_server else {
            return Ok(self.llama_places().into_iter().find(|path| engines::is_program(path)));
        };
        if engines::is_program(configured) {
            return Ok(Some(configured.clone()));
        }
        let reason = format!(
            "`llama_server` in slotd.toml is `{}`, which is no program that can be run; correct it or \
             leave it out",
            configured.display()
        );
        Err(Refused::new(Verdict::SpawnFailed, reason))
    }

    fn llama_server(&self) -> Result<Engine, Refused> {
        let program = self.find_llama_server()?.ok_or_else(|| self.no_llama_server())?;
        match self.asked.ask(&program, &self.places.environment) {
            Ok(binary) => Ok(Engine {
                kind: EngineKind::LlamaServer,
                program,
                version: Some(binary.version),
                flags: binary.flags,
            }),
            Err(fault) => {
                let reason = format!(
                    "llama-server `{}` {fault}; build one with `make engine`, or use \
                     `engine = \"candle\"`",
                    program.display()
                );
                let engine = Some((EngineKind::LlamaServer, program));
                Err(Refused { engine, ..Refused::new(Verdict::SpawnFailed, reason) })
            }
        }
    }

    fn no_llama_server(&self) -> Refused {
        let looked: Vec<_> = self
            .llama_places()
            .iter()
            .filter_map(|place| Some(format!("`{}`", place.parent()?.display())))
            .collect();
        let reason = format!(
            "`llama-server` was not found (looked in {}); install it with `make engine`, set \
             `llama_server` in slotd.toml, or use `engine = \"candle\"`",
            looked.join(", ")
        );
        Refused::new(Verdict::SpawnFailed, reason)
    }

    fn llama_places(&self) -> Vec<PathBuf> {
        let Places { own_program, cache_dir, .. } = &self.places;
        engines::places(own_program, cache_dir, self.variable("PATH"))
    }

    fn candle(&self, profile: &Profile) -> Result<Engine, Refused> {
        if !cfg!(feature = "worker") {
            let reason = "this slotd was built without the candle worker; use \
                          `engine = \"llama-server\"`, or build it with `--features worker`";
            return Err(Refused::new(Verdict::SpawnFailed, reason.to_owned()));
        }
        let wants_gpu = profile.gpu_layers.is_some_and(|layers| layers > 0);
        if wants_gpu && !cfg!(any(feature = "cuda", feature = "metal")) {
            let reason = "this slotd's candle worker computes on the CPU only; take `gpu_layers` \
                          out, use `engine = \"llama-server\"`, or build slotd with `--features \
                          cuda` or `--features metal`";
            return Err(Refused::new(Verdict::BadConfig, reason.to_owned()));
        }
        Ok(Engine {
            kind: EngineKind::Candle,
            program: self.places.own_program.clone(),
            version: None,
            flags: Flags::default(),
        })
    }

    fn command(&self, profile: &Profile, words: &[String]) -> Result<Engine, Refused> {
        let typed = words.first().map_or("", String::as_str);
        let of_profile = profile.env.get("PATH").map(OsStr::new);
        let search_path = of_profile.or_else(|| self.variable("PATH"));
        let Some(program) = find_program(typed, search_path) else {
            let place = if typed.contains('/') {
                "is no program that can be run"
            } else {
                "is not in `PATH`"
            };
            let reason = format!("engine `{typed}` {place}; install it, or correct `command`");
            return Err(Refused::new(Verdict::SpawnFailed, reason));
        };
        Ok(Engine { kind: EngineKind::Command, program, version: None, flags: Flags::default() })
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        let mut all = self.places.environment.iter();
        all.find(|(found, _)| found == name).map(|(_, value)| value.as_os_str())
    }
}

/// Looks a program up as `execvp(3)` does.
fn find_program(typed: &str, search_path: Option<&OsStr>) -> Option<PathBuf> {
    if typed.contains('/') {
        let path = PathBuf::from(typed);
        // A relative one starts where the engine does, which is not known here.
        return (path.is_relative() || engines::is_program(&path)).then_some(path);
    }
    let mut folders = search_path.into_iter().flat_map(env::split_paths);
    folders.find_map(|folder| {
        let path = folder.join(typed);
        (!typed.is_empty() && engines::is_program(&path)).then_some(path)
    })
}

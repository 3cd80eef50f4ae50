//! What a start that came to nothing tells: a verdict, and a sentence for a person.

use std::{error::Error, io};

use crate::{
    models::{Refused, pull::PullStatus},
    process::SpawnFault,
    spec::death::Verdict,
    supervisor::EngineInfo,
};

/// What a failed start tells.
#[derive(Debug)]
pub(super) struct Failure {
    /// What becomes of the slot hangs on it.
    pub(super) verdict: Verdict,
    /// One sentence without the full stop.
    pub(super) reason: String,
    /// What was to be started, as far as that is known.
    pub(super) engine: Option<EngineInfo>,
}

impl Failure {
    pub(super) fn new(verdict: Verdict, reason: String) -> Self {
        Self { verdict, reason, engine: None }
    }

    pub(super) fn of_pull(status: PullStatus) -> Self {
        let why = status.error.unwrap_or_default();
        let reason = format!("model `{}` was not fetched: {why}", status.model);
        // What may pass by itself is tried again; the rest needs a person.
        match status.code.as_deref() {
            Some("hub_unreachable" | "bad_answer") => Self::new(Verdict::StartTimeout, reason),
            Some(_) | None => Self::new(Verdict::ModelNotFetched, reason),
        }
    }

    /// Says of a pull that has failed what it was for: a damaged model stays one.
    pub(super) fn after(self, pull: Self) -> Self {
        if self.verdict != Verdict::BadModel {
            return pull;
        }
        let reason = format!("{}; {}", self.reason, pull.reason);
        Self { reason, ..self }
    }

    pub(super) fn no_address(fault: &io::Error) -> Self {
        let reason = format!("no address could be had for the engine: {fault}");
        Self::new(Verdict::SpawnFailed, reason)
    }

    pub(super) fn of_check(refused: Refused) -> Self {
        let engine = refused.engine.map(|(kind, program)| EngineInfo {
            name: kind.as_str().to_owned(),
            program: program.display().to_string(),
            parallel: 0,
            cores: 0,
            sole: None,
        });
        Self { verdict: refused.verdict, reason: refused.reason, engine }
    }

    pub(super) fn of_spawn(fault: &SpawnFault, info: EngineInfo) -> Self {
        // What may be there the next time is tried again; the rest needs a person.
        let verdict =
            if fault.is_temporary() { Verdict::UnexpectedExit } else { Verdict::SpawnFailed };
        let reason = match fault.source() {
            Some(source) => format!("{fault}: {source}"),
            None => fault.to_string(),
        };
        Self { verdict, reason, engine: Some(info) }
    }
}

//! What comes before a spawn: the checks, the model that is fetched, and how much memory it takes.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::{
    clock,
    engine_task::{Reporter, Tools},
    failure::Failure,
    models::is_damaged,
    pulls::Limits,
};
use crate::{
    engine::{Endpoint, wants_port},
    models::{
        Checked,
        pull::{Formats, Reference, Stage},
    },
    spec::{
        death::Verdict,
        ladder::Rung,
        memory::Need,
        profile::{EngineChoice, Profile, Pull},
    },
    supervisor::ChildEvent,
};

/// The longest that the checks before a spawn may take: a dead network mount must not hold a slot.
const CHECKS_DEADLINE: Duration = Duration::from_secs(30);

/// Checks what a start needs, and finds out what memory it takes.
pub(super) async fn size(tools: Arc<Tools>, profile: Arc<Profile>, reporter: Reporter) {
    let event = match sized(&tools, &profile, &reporter).await {
        Ok((rungs, needs)) => ChildEvent::Sized { rungs, needs },
        Err(Failure { verdict, reason, engine }) => {
            ChildEvent::SpawnFailed { verdict, reason, at_unix_ms: clock::unix_ms(), engine }
        }
    };
    reporter.tell(event).await;
}

async fn sized(
    tools: &Arc<Tools>,
    profile: &Arc<Profile>,
    reporter: &Reporter,
) -> Result<(Arc<[Rung]>, Arc<[Need]>), Failure> {
    let endpoint =
        endpoint(tools, profile, reporter).map_err(|fault| Failure::no_address(&fault))?;
    let checked = match check(tools, profile, &endpoint).await {
        Ok(checked) => checked,
        Err(failure) => {
            fetch(tools, profile, reporter, failure).await?;
            check(tools, profile, &endpoint).await?
        }
    };
    let rungs: Arc<[Rung]> = checked.ladder(profile, tools.machine.has_gpu).into();
    let has_gpu = tools.machine.has_gpu;
    // What a person has written down is believed, on every rung.
    let need = |rung| {
        let said = profile.residence.need();
        said.unwrap_or_else(|| {
            let peak = tools.peaks.of(checked.peak_key((profile, rung)).as_deref());
            checked.estimate((profile, rung), has_gpu).corrected(peak).need()
        })
    };
    let needs = rungs.iter().map(need).collect();
    Ok((rungs, needs))
}

/// Fetches a model that is not whole, or is damaged, where the profile says so; else it stays at what was found.
async fn fetch(
    tools: &Arc<Tools>,
    profile: &Arc<Profile>,
    reporter: &Reporter,
    found: Failure,
) -> Result<(), Failure> {
    let wanted = profile.model.as_ref().and_then(Reference::of);
    let Some(wanted) = wanted.filter(|_| profile.pull == Pull::Auto) else { return Err(found) };
    let is_missing = matches!(found.verdict, Verdict::MissingFile | Verdict::ModelNotFetched);
    if !is_missing && (found.verdict != Verdict::BadModel || !damaged(tools, profile).await) {
        return Err(found);
    }
    let limits = Limits::of(formats(&profile.engine));
    let (_, mut watched) = tools.pulls.start(wanted, limits);
    let mut told = None;
    loop {
        let status = watched.borrow_and_update().clone();
        match status.stage {
            Stage::Done => return Ok(()),
            Stage::Failed | Stage::Cancelled => return Err(found.after(Failure::of_pull(status))),
            Stage::Waiting | Stage::Asking | Stage::Downloading => {}
        }
        let percent = status.percent().unwrap_or(0);
        if told != Some(percent) {
            told = Some(percent);
            reporter.tell(ChildEvent::Progressed { percent }).await;
        }
        if watched.changed().await.is_err() {
            return Err(found);
        }
    }
}

async fn damaged(tools: &Arc<Tools>, profile: &Arc<Profile>) -> bool {
    let (tools, profile) = (Arc::clone(tools), Arc::clone(profile));
    let looking = spawn_blocking(move || is_damaged(&tools, &profile));
    timeout(CHECKS_DEADLINE, looking).await.is_ok_and(|looked| looked.unwrap_or(false))
}

/// Says what an engine may be fetched: nothing that it cannot load.
fn formats(engine: &EngineChoice) -> Formats {
    match engine {
        EngineChoice::LlamaServer => Formats::Gguf,
        // The worker takes embedders and rerankers in safetensors.
        EngineChoice::Auto if !cfg!(feature = "worker") => Formats::Gguf,
        EngineChoice::Auto
        | EngineChoice::Candle
        | EngineChoice::Command(_)
        | EngineChoice::External(_) => Formats::Any,
    }
}

/// Runs the checks off the threads that others wait for, and not for ever.
pub(super) async fn check(
    tools: &Arc<Tools>,
    profile: &Arc<Profile>,
    endpoint: &Endpoint,
) -> Result<Checked, Failure> {
    let (checks, profile, endpoint) =
        (Arc::clone(&tools.checks), Arc::clone(profile), endpoint.clone());
    let checking = spawn_blocking(move || checks.run(&profile, &endpoint));
    match timeout(CHECKS_DEADLINE, checking).await {
        Ok(Ok(checked)) => checked.map_err(Failure::of_check),
        Ok(Err(error)) => {
            let reason = format!("the checks before the start broke off: {error}");
            Err(Failure::new(Verdict::UnexpectedExit, reason))
        }
        Err(_) => {
            let reason = format!(
                "the model or the engine's program could not be read within {} s; is the disk or the mount there?",
                CHECKS_DEADLINE.as_secs()
            );
            Err(Failure::new(Verdict::StartTimeout, reason))
        }
    }
}

/// A private socket of this generation, or a free port for a command that wants one.
pub(super) fn endpoint(
    tools: &Tools,
    profile: &Profile,
    reporter: &Reporter,
) -> io::Result<Endpoint> {
    if wants_port(&profile.engine) {
        // Freed again at once: the engine binds it. If somebody is faster, the next start takes another.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        return Ok(Endpoint::Tcp(listener.local_addr()?));
    }
    Ok(Endpoint::Unix(tools.settings.engine_socket(&reporter.slot, reporter.generation)))
}

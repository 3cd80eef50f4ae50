//! `slotd pull`: fetches a model from the hub, with or without a daemon.

use std::{convert::Infallible, env, future::pending, time::Duration};

use clap::Args;
use serde::Serialize;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    exit::Exit,
    failure::Failure,
    out,
    text::{brief, counted, cut},
};
use crate::{
    models::pull::{
        Brake, Job, Manner, Patience, PullFault, PullStatus, Pulled, Reference, Scrutiny, Site,
        Stage, pull,
    },
    runtime::since_1970,
    spec::Bytes,
};

/// The narrowest and the widest bar.
const BAR: (usize, usize) = (10, 30);
/// The terminal's width where it does not tell.
const USUAL_WIDTH: usize = 80;
/// Erases the terminal's present line.
const ERASE: &str = "\r\x1b[2K";
/// How long the speed is averaged over.
const WINDOW: Duration = Duration::from_secs(5);

/// Options of `slotd pull`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// What to fetch: `org/repo`, `org/repo:QUANT`, either with `@REVISION`
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<Reference>,
    /// The most bytes a second, `20MiB` say
    #[arg(long, value_name = "SIZE")]
    limit_rate: Option<Bytes>,
    /// How many files come at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// What has to stay free on the disk [default: 1GiB, or a twentieth of a smaller disk]
    #[arg(long, value_name = "SIZE")]
    reserve: Option<Bytes>,
    /// Read all of what is there, and fetch anew what is damaged; without it only headers are looked at
    #[arg(long)]
    verify: bool,
    /// Print what was fetched as JSON in the end
    #[arg(long)]
    json: bool,
}

impl Options {
    fn scrutiny(&self) -> Scrutiny {
        if self.verify { Scrutiny::Hashes } else { Scrutiny::Headers }
    }
}

/// A pull as scripts see it.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    status: PullStatus,
    /// The folder that holds the model's files; `null` where it is not whole.
    snapshot: Option<String>,
    /// Its files, by their paths in the folder.
    paths: Vec<String>,
}

/// Fetches one model after the other; the first that fails ends it.
pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let site = Site::of_environment(&|name| env::var_os(name)).map_err(Failure::Pull)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    runtime.block_on(async {
        for model in &options.models {
            one(model, options, site.clone()).await?;
        }
        Ok(Exit::Success)
    })
}

async fn one(model: &Reference, options: &Options, site: Site) -> Result<(), Failure> {
    let cancel = CancellationToken::new();
    let mut interrupts = signal(SignalKind::interrupt()).map_err(Failure::System)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(Failure::System)?;
    let (shown, watched) = watch::channel(PullStatus::default());
    let job = Job {
        wanted: model.clone(),
        site,
        at_once: usize::from(options.jobs),
        limit: options.limit_rate.unwrap_or_default(),
        reserve: options.reserve,
        patience: Patience::default(),
        brake: Brake::none(),
        manner: Manner { scrutiny: options.scrutiny(), ..Manner::default() },
        clock: since_1970,
    };
    let status = watched.clone();
    let mut view = View::new();
    let pulling = pull(job, shown, cancel.clone());
    tokio::pin!(pulling);
    let showing = view.follow(watched);
    tokio::pin!(showing);
    let end = loop {
        tokio::select! {
            biased;
            end = &mut pulling => break end,
            _ = interrupts.recv() => cancel.cancel(),
            _ = terminations.recv() => cancel.cancel(),
            never = &mut showing => match never {},
        }
    };
    let status = status.borrow().clone();
    tell(end, &status, options)
}

fn tell(
    end: Result<Pulled, PullFault>,
    status: &PullStatus,
    options: &Options,
) -> Result<(), Failure> {
    if out::notes_are_seen() {
        out::note(ERASE);
    }
    if options.json {
        let pulled = end.as_ref().ok();
        out::json(&Outcome {
            status: status.clone(),
            snapshot: pulled.map(|pulled| pulled.snapshot.display().to_string()),
            paths: pulled.map(|pulled| pulled.files.clone()).unwrap_or_default(),
        })?;
    }
    let pulled = end.map_err(Failure::Pull)?;
    if !options.json {
        out::print(done(&pulled, status))?;
    }
    Ok(())
}

fn done(pulled: &Pulled, status: &PullStatus) -> String {
    let PullStatus { model, size_bytes, fetched_bytes, .. } = status;
    let files = counted(pulled.files.len(), "file");
    let place = pulled.snapshot.display();
    match *fetched_bytes {
        0 => format!("{model} is there: {files} in {place}\n"),
        fetched if fetched >= *size_bytes => {
            format!("{model} was fetched: {files}, {}, in {place}\n", Bytes(*size_bytes))
        }
        fetched => format!(
            "{model} was fetched: {files}, {}, in {place}; {} came now, the rest was there\n",
            Bytes(*size_bytes),
            Bytes(fetched)
        ),
    }
}

/// Shows a pull on standard error: one moving line on a terminal, else a line for each step.
struct View {
    /// The terminal's width, if it is one.
    width: Option<usize>,
    last: String,
    told: Option<String>,
    /// When the average began, and what had come by then.
    since: (Instant, u64),
    speed: u64,
}

impl View {
    fn new() -> Self {
        let width = out::notes_are_seen().then(|| out::width().unwrap_or(USUAL_WIDTH));
        Self { width, last: String::new(), told: None, since: (Instant::now(), 0), speed: 0 }
    }

    async fn follow(&mut self, mut watched: watch::Receiver<PullStatus>) -> Infallible {
        while watched.changed().await.is_ok() {
            let status = watched.borrow_and_update().clone();
            self.show(&status);
        }
        // The pull's own end says more.
        pending().await
    }

    fn show(&mut self, status: &PullStatus) {
        self.measure(status.fetched_bytes);
        if status.trouble != self.told
            && let Some(trouble) = &status.trouble
        {
            let erase = if self.width.is_some() { ERASE } else { "" };
            out::note(&format!("{erase}{trouble}\n"));
            self.told.clone_from(&status.trouble);
        }
        if let Some(width) = self.width {
            out::note(&format!("{ERASE}{}", moving(status, self.speed, width)));
            return;
        }
        // Nothing is asked yet, and offline nothing will be.
        if status.stage == Stage::Waiting && status.held_by.is_none() {
            return;
        }
        let line = step(status);
        if self.last != line {
            out::note(&format!("{line}\n"));
            self.last = line;
        }
    }

    fn measure(&mut self, fetched: u64) {
        let elapsed = self.since.0.elapsed();
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if ms < 200 {
            return;
        }
        self.speed = fetched.saturating_sub(self.since.1).saturating_mul(1000) / ms;
        if elapsed > WINDOW {
            self.since = (Instant::now(), fetched);
        }
    }
}

/// `org/repo: downloading, 40 %`; in steps of ten per cent.
fn step(status: &PullStatus) -> String {
    let model = &status.model;
    if let Some(holder) = &status.held_by {
        return format!("{model}: waiting for {holder}, which fetches it");
    }
    match (status.stage, status.percent()) {
        (Stage::Downloading, Some(percent)) => {
            format!("{model}: {} % of {}", percent / 10 * 10, Bytes(status.size_bytes))
        }
        (Stage::Downloading, None) | (Stage::Done, _) => format!("{model}: 100 %"),
        (Stage::Waiting | Stage::Asking, _) => format!("{model}: asking the hub"),
        (Stage::Failed, _) => format!("{model}: failed"),
        (Stage::Cancelled, _) => format!("{model}: cancelled"),
    }
}

/// `org/repo  [#####-----]  42 %  1.7 GiB of 4.1 GiB  85 MiB/s  28s left`.
fn moving(status: &PullStatus, speed: u64, width: usize) -> String {
    let Some(percent) = status.percent().filter(|_| status.held_by.is_none()) else {
        return cut(&step(status), width);
    };
    let left = status.size_bytes.saturating_sub(status.done_bytes);
    let mut tail =
        format!("{percent:>2} %  {} of {}", Bytes(status.done_bytes), Bytes(status.size_bytes));
    if speed > 0 && left > 0 {
        let left = brief((left / speed).saturating_mul(1000));
        tail = format!("{tail}  {}/s  {left} left", Bytes(speed));
    }
    let taken = status.model.chars().count() + tail.chars().count() + 6;
    let room = width.saturating_sub(taken).clamp(BAR.0, BAR.1);
    let done = room * usize::from(percent) / 100;
    let bar = format!("{}{}", "#".repeat(done), "-".repeat(room - done));
    cut(&format!("{}  [{bar}]  {tail}", status.model), width)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn half() -> PullStatus {
        PullStatus {
            model: "org/repo:Q8_0".to_owned(),
            stage: Stage::Downloading,
            size_bytes: 4 << 30,
            done_bytes: 1800 << 20,
            fetched_bytes: 800 << 20,
            ..PullStatus::default()
        }
    }

    #[test]
    fn a_pull_shows_how_far_it_is_and_how_long_it_takes() {
        assert_snapshot!(moving(&half(), 85 << 20, 100), @"org/repo:Q8_0  [############------------------]  43 %  1.7 GiB of 4.0 GiB  85 MiB/s  27s left");
        assert_snapshot!(moving(&half(), 0, 60), @"org/repo:Q8_0  [#######----------]  43 %  1.7 GiB of 4.0 GiB");
        assert_snapshot!(step(&half()), @"org/repo:Q8_0: 40 % of 4.0 GiB");
        let held = PullStatus { held_by: Some("`slotd` (pid 7)".into()), ..half() };
        assert_snapshot!(moving(&held, 1, 100), @"org/repo:Q8_0: waiting for `slotd` (pid 7), which fetches it");
    }

    #[test]
    fn the_end_says_what_came_and_what_was_there() {
        let pulled = Pulled {
            commit: "c".into(),
            snapshot: "/h/snapshots/c".into(),
            files: vec!["m.gguf".into()],
        };
        assert_snapshot!(done(&pulled, &half()), @"org/repo:Q8_0 was fetched: 1 file, 4.0 GiB, in /h/snapshots/c; 800 MiB came now, the rest was there");
        let there = PullStatus { fetched_bytes: 0, ..half() };
        assert_snapshot!(done(&pulled, &there), @"org/repo:Q8_0 is there: 1 file in /h/snapshots/c");
    }
}

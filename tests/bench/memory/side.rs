//! One that serves the five models in its box: slotd, or llama-server's router.

use std::{
    cell::RefCell,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    BOX_MIB, LIMIT_MIB, MODELS,
    cell::Cell,
    sample::{Events, Samples},
    trace::{Ask, Kind},
};

/// What the embedder gets besides: texts are short, and a whole batch of 512 has 512 rows of logits.
const EMBEDS_SLOT: &str =
    "capabilities = [\"embed\"]\nargs = [\"--batch-size\", \"256\", \"--ubatch-size\", \"256\"]\n";
const EMBEDS_PRESET: &str =
    "embeddings = true\npooling = mean\nbatch-size = 256\nubatch-size = 256\n";
/// How long a client waits.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a run is made of.
pub(crate) struct Paths {
    pub(crate) slotd: PathBuf,
    pub(crate) llama: PathBuf,
    pub(crate) models: PathBuf,
    pub(crate) kept: Option<PathBuf>,
}

/// How one request came out.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) index: usize,
    /// Until the first token of a stream, or the whole of another answer, came.
    pub(crate) wait: Duration,
    pub(crate) total: Duration,
    /// Why it failed.
    pub(crate) fault: Option<String>,
}

pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) control: Option<reqwest::Client>,
    pub(crate) client: reqwest::Client,
    pub(crate) url: String,
    pub(crate) outcomes: RefCell<Vec<Outcome>>,
    /// Requests to each model of which nothing has come yet.
    pub(crate) unanswered: RefCell<[u32; MODELS.len()]>,
    pub(crate) samples: RefCell<Samples>,
    pub(crate) events: RefCell<Events>,
    pub(crate) log: PathBuf,
    child: RefCell<Option<Child>>,
    // Goes after the child.
    pub(crate) cell: Cell,
    _dir: TempDir,
}

impl Side {
    /// Starts slotd on `core`, with a profile for each model.
    pub(crate) async fn slotd(paths: &Paths, core: usize, quiet: Duration) -> Self {
        let (dir, cell) = set_up(paths, "slotd", core).await;
        let root = dir.path();
        fs::create_dir(root.join("profiles")).unwrap();
        for model in &MODELS {
            let path = root.join(model.file).display().to_string();
            let capability = if model.name == "embed" { EMBEDS_SLOT } else { "" };
            let text = format!(
                "model = {path:?}\nengine = \"llama-server\"\ncontext = {}\nparallel = {}\nthreads = 1\nautostart = {}\n{capability}",
                model.context, model.parallel, model.is_kept
            );
            fs::write(root.join(format!("profiles/{}.toml", model.name)), text).unwrap();
        }
        let settings = format!(
            "llama_server = {:?}\nmemory_limit = \"{LIMIT_MIB}MiB\"\nmemory_reserve = \"64MiB\"\nrestore_after = \"{}ms\"\n",
            paths.llama.display().to_string(),
            quiet.as_millis() / 2
        );
        fs::write(root.join("slotd.toml"), settings).unwrap();
        let log = paths.kept.as_deref().unwrap_or(root).join("slotd.log");
        let mut command = cell.command(&paths.slotd);
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(root.join("slotd.toml"));
        command.arg("--state-dir").arg(root.join("state"));
        command.arg("--profiles").arg(root.join("profiles")).stdout(Stdio::piped());
        if paths.kept.is_some() {
            command.env("RUST_LOG", "info,slotd=debug");
        }
        let mut child = started(command, &log);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("slotd says where it listens");
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        let socket = root.join("state/run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Self::of("slotd", (url, Some(control)), (child, log), (cell, dir))
    }

    /// Starts llama-server's router on `core`, with the arguments that slotd gives its engines.
    pub(crate) async fn router(paths: &Paths, core: usize, most: u32) -> Self {
        let (dir, cell) = set_up(paths, "router", core).await;
        let root = dir.path();
        let mut preset = "version = 1\n".to_owned();
        for model in &MODELS {
            let embeds = if model.name == "embed" { EMBEDS_PRESET } else { "" };
            let text = format!(
                "[{}]\nmodel = {}\nctx-size = {}\nparallel = {}\nthreads = 1\ncache-ram = {}\nload-on-startup = {}\n{embeds}",
                model.name,
                root.join(model.file).display(),
                model.context * model.parallel,
                model.parallel,
                model.cache_ram,
                model.is_kept
            );
            preset.push_str(&text);
        }
        fs::write(root.join("models.ini"), preset).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = paths.kept.as_deref().unwrap_or(root).join("router.log");
        let mut command = cell.command(&paths.llama);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--models-max", &most.to_string(), "--models-preset"]);
        command.arg(root.join("models.ini")).stdout(fs::File::create(root.join("stdout")).unwrap());
        let child = started(command, &log);
        let url = format!("http://127.0.0.1:{port}");
        let side = Self::of("llama-server's router", (url, None), (child, log), (cell, dir));
        let health = format!("{}/health", side.url);
        while !side
            .client
            .get(&health)
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            sleep(Duration::from_millis(50)).await;
        }
        side
    }

    fn of(
        name: &'static str,
        (url, control): (String, Option<reqwest::Client>),
        (child, log): (Child, PathBuf),
        (cell, dir): (Cell, TempDir),
    ) -> Self {
        Self {
            name,
            control,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            url,
            outcomes: RefCell::default(),
            unanswered: RefCell::default(),
            samples: RefCell::default(),
            events: RefCell::default(),
            log,
            child: RefCell::new(Some(child)),
            cell,
            _dir: dir,
        }
    }

    /// Sends one request, and notes how it came out.
    pub(crate) async fn ask(&self, index: usize, ask: &Ask) {
        let began = Instant::now();
        let mut first = None;
        self.unanswered.borrow_mut()[ask.model] += 1;
        let ended = timeout(PATIENCE, self.send(ask, &mut first)).await;
        let fault = ended.unwrap_or_else(|_| Err("no answer in time".to_owned())).err();
        let total = began.elapsed();
        let wait = first.map_or(total, |first: Instant| first - began);
        if first.is_none() {
            self.unanswered.borrow_mut()[ask.model] -= 1;
        }
        self.outcomes.borrow_mut().push(Outcome { index, wait, total, fault });
    }

    async fn send(&self, ask: &Ask, first: &mut Option<Instant>) -> Result<(), String> {
        let request = self.client.post(format!("{}{}", self.url, ask.path)).json(&ask.body);
        let mut answer = request.send().await.map_err(|error| format!("not sent: {error}"))?;
        let status = answer.status();
        let mut text = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| format!("broken off: {error}"))?
        {
            text.extend_from_slice(&chunk);
            // What only shows that slotd is alive is no answer yet.
            let is_answer = ask.kind != Kind::Stream || contains(&text, b"data: ");
            if first.is_none() && is_answer {
                *first = Some(Instant::now());
                self.unanswered.borrow_mut()[ask.model] -= 1;
            }
        }
        let text = String::from_utf8_lossy(&text);
        if !status.is_success() {
            return Err(format!("{} {}", status.as_u16(), text.trim()));
        }
        let is_whole = match ask.kind {
            Kind::Stream => text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""),
            Kind::Short | Kind::Long => field(&text, "/choices/0/message/content").is_string(),
            Kind::Embed => field(&text, "/data/0/embedding/0").is_number(),
        };
        if is_whole { Ok(()) } else { Err(format!("not whole: {text}")) }
    }

    /// Ends it; returns once it is gone.
    pub(crate) async fn end(&self) {
        let Some(mut child) = self.child.borrow_mut().take() else { return };
        let Some(pid) = child.id() else { return };
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM).unwrap();
        if timeout(Duration::from_secs(30), child.wait()).await.is_err() {
            child.kill().await.unwrap();
        }
    }
}

/// Makes a box and a directory with copies of the models, whose pages count as the box's own.
async fn set_up(paths: &Paths, name: &str, core: usize) -> (TempDir, Cell) {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::new(name, BOX_MIB << 20, core);
    for model in &MODELS {
        let mut copy = cell.command(Path::new("/bin/cp"));
        let done = copy.arg(paths.models.join(model.file)).arg(dir.path()).status().await;
        assert!(done.unwrap().success(), "{} is there", model.file);
    }
    (dir, cell)
}

fn started(mut command: Command, log: &Path) -> Child {
    let command = command.stdin(Stdio::null()).stderr(fs::File::create(log).unwrap());
    command.kill_on_drop(true).spawn().unwrap()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn field(text: &str, pointer: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    value.pointer(pointer).cloned().unwrap_or_default()
}

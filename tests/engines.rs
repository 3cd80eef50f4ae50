//! The real llama-server and the real model: found, checked, started, asked, and told apart when
//! they die.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken set-up is a failed test")]

use std::{
    env,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use slotd::{
    engine::{self, CoreShare, Endpoint, EngineKind, Launch, code_cause},
    models::{Checks, Places, Refused, gguf},
    probe::{Health, Probe},
    spec::{
        death::{LogCause, Verdict},
        ladder::{LadderChoice, Rung},
        profile::{Capability, EngineChoice, ModelSource, OnExit, Profile, Pull},
        requests::Requests,
        residence::Residence,
    },
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Longer than anything here takes on a slow machine; only a failure waits this long.
const DEADLINE: Duration = Duration::from_mins(1);

fn from_environment(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(path) => path.into(),
        None => panic!("set {name}, `make test` does"),
    }
}

/// A scratch folder and the checks of a daemon that lives there.
struct Machine {
    folder: TempDir,
    checks: Checks,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

/// One engine, killed when dropped.
struct Running {
    child: Child,
    endpoint: Endpoint,
    log: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        let environment: Vec<_> = env::vars_os().collect();
        let checks = Checks::new(Places {
            llama_server: Some(from_environment("SLOTD_TEST_LLAMA_SERVER")),
            own_program: "/nowhere/bin/slotd".into(),
            cache_dir: folder.path().to_owned(),
            hub_cache: None,
            environment: environment.clone(),
        });
        Self { folder, checks, environment }
    }

    fn profile(model: &Path) -> Profile {
        Profile {
            slot: "chat".parse().unwrap(),
            source: "chat.toml".into(),
            model: Some(ModelSource::File {
                typed: model.display().to_string(),
                candidates: vec![model.to_owned()],
            }),
            pull: Pull::Never,
            engine: EngineChoice::Auto,
            stop_command: Vec::new(),
            args: Vec::new(),
            env: [].into(),
            aliases: Vec::new(),
            routes: Vec::new(),
            resume: false,
            capabilities: Vec::new(),
            context: None,
            parallel: None,
            threads: Some(1),
            gpu_layers: None,
            ladder: LadderChoice::default(),
            autostart: false,
            essential: false,
            max_restarts: 5,
            start_timeout: DEADLINE,
            stop_timeout: DEADLINE,
            hang_timeout: None,
            idle_timeout: None,
            on_exit: OnExit::Stop,
            residence: Residence::default(),
            requests: Requests::default(),
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.folder.path().join("chat.sock"))
    }

    fn launch(&self, profile: &Profile) -> Result<Launch, Refused> {
        let endpoint = self.endpoint();
        let checked = self.checks.run(profile, &endpoint)?;
        let cores = CoreShare { machine: engine::Machine { cores: 2, has_gpu: false }, threads: 2 };
        checked
            .launch((profile, &Rung::default()), cores, &endpoint, &self.environment)
            .map_err(|fault| Refused::of_launch(&fault, &checked))
    }

    /// Starts what the checks and the profile say, with more arguments.
    fn start(&self, profile: &Profile, more: &[&str]) -> Running {
        let Launch { program, args, env, .. } = self.launch(profile).unwrap();
        self.spawn(Command::new(program).args(args).args(more).env_clear().envs(env))
    }

    fn spawn(&self, command: &mut Command) -> Running {
        let log = self.folder.path().join("engine.log");
        let file = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Running { child, endpoint: self.endpoint(), log }
    }
}

impl Running {
    /// Waits until a look says that the engine is ready; returns how long that took.
    async fn ready(&self) -> Duration {
        let probe = Probe::new(&self.endpoint, EngineKind::LlamaServer, "chat");
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            match probe.look(DEADLINE).await {
                Health::Ready => return began.elapsed(),
                Health::Loading { .. } | Health::Refused | Health::Unknown => {}
                wrong @ (Health::NotReady { .. } | Health::Impostor { .. }) => panic!("{wrong:?}"),
            }
            // The pace of looking, not a wait for something.
            sleep(Duration::from_millis(5)).await;
        }
        panic!("not ready in time; its log:\n{}", self.lines().join("\n"));
    }

    async fn post(&self, path: &str, body: serde_json::Value) -> serde_json::Value {
        let Endpoint::Unix(socket) = &self.endpoint else { panic!("a Unix socket") };
        let client = reqwest::Client::builder().unix_socket(socket.as_path()).build().unwrap();
        let request = client.post(format!("http://engine{path}")).json(&body).send();
        timeout(DEADLINE, request).await.unwrap().unwrap().json().await.unwrap()
    }

    async fn get(&self, path: &str) -> serde_json::Value {
        let Endpoint::Unix(socket) = &self.endpoint else { panic!("a Unix socket") };
        let client = reqwest::Client::builder().unix_socket(socket.as_path()).build().unwrap();
        let request = client.get(format!("http://engine{path}")).send();
        timeout(DEADLINE, request).await.unwrap().unwrap().json().await.unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let log = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }

    /// Waits for its end; returns what its log says about it.
    async fn cause(mut self) -> Option<LogCause> {
        let status = timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        assert!(!status.success() || status.signal().is_some(), "it ended well");
        assert_eq!(code_cause(EngineKind::LlamaServer, status.code().unwrap_or(1)), None);
        let lines = self.lines();
        let found = engine::log::death_cause(EngineKind::LlamaServer, &lines);
        assert!(found.is_some(), "{status}, and its log says:\n{}", lines.join("\n"));
        found.map(|found| found.cause)
    }
}

#[test]
fn the_real_models_header_is_read() {
    let header = gguf::read(&from_environment("SLOTD_TEST_MODEL")).unwrap();
    assert_eq!(header.architecture, "llama");
    assert_eq!(header.quantisation, Some("Q4_1"));
    assert_eq!((header.parameters, header.tensors, header.parts), (134_515_008, 272, 1));
    assert_eq!((header.context_length, header.pooling), (Some(8192), None));
}

#[test]
fn the_real_header_changed_or_cut_anywhere_is_refused_or_read_and_never_worse() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    fs::copy(from_environment("SLOTD_TEST_MODEL"), &path).unwrap();
    let mut file = File::options().write(true).open(&path).unwrap();
    // Over the metadata's and the tensors' part of the header, in odd steps.
    for at in (4..1_700_000).step_by(9973) {
        let mut old = [0; 8];
        File::open(&path).unwrap().read_exact_at(&mut old, at).unwrap();
        for bytes in [[0xff; 8], [0; 8], [0x80, 0, 0, 0, 0, 0, 0, 0x7f]] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&bytes).unwrap();
            drop(gguf::read(&path));
        }
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&old).unwrap();
    }
    assert!(gguf::read(&path).is_ok());
    for length in [98_000_000, 50_000_000, 1_700_000, 100_000, 1500, 24, 8, 3] {
        file.set_len(length).unwrap();
        assert!(gguf::read(&path).is_err(), "{length}");
    }
}

#[tokio::test]
async fn a_bare_profile_chats_and_embeds_with_the_whole_context_in_each_sequence() {
    let machine = Machine::new();
    let profile = Machine::profile(&from_environment("SLOTD_TEST_MODEL"));
    let engine = machine.start(&profile, &[]);
    engine.ready().await;

    let properties = engine.get("/props").await;
    assert_eq!(properties["total_slots"], 4);
    assert_eq!(properties["default_generation_settings"]["n_ctx"], 8192);
    let message = serde_json::json!([{"role": "user", "content": "Say hello."}]);
    let chat = serde_json::json!({"messages": message, "max_tokens": 4});
    let answer = engine.post("/v1/chat/completions", chat).await;
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant", "{answer}");
    let embedding = engine.post("/v1/embeddings", serde_json::json!({"input": "hello"})).await;
    assert_eq!(embedding["data"][0]["embedding"].as_array().map(Vec::len), Some(576));
    let lines = engine.lines();
    let is_ready_line = |line: &String| engine::log::is_ready_line(EngineKind::LlamaServer, line);
    assert!(lines.iter().any(is_ready_line), "{}", lines.join("\n"));
    assert_eq!(engine::log::death_cause(EngineKind::LlamaServer, &lines), None);
}

#[tokio::test]
async fn a_context_in_the_profile_is_what_one_sequence_gets() {
    let machine = Machine::new();
    let profile = Profile {
        context: Some(1024),
        parallel: Some(3),
        capabilities: vec![Capability::Chat],
        ..Machine::profile(&from_environment("SLOTD_TEST_MODEL"))
    };
    let engine = machine.start(&profile, &[]);
    engine.ready().await;
    let properties = engine.get("/props").await;
    assert_eq!(properties["total_slots"], 3);
    assert_eq!(properties["default_generation_settings"]["n_ctx"], 1024);
}

#[tokio::test]
async fn another_engine_on_the_socket_is_an_impostor() {
    let machine = Machine::new();
    let profile = Machine::profile(&from_environment("SLOTD_TEST_MODEL"));
    let engine = machine.start(&profile, &[]);
    engine.ready().await;
    let probe = Probe::new(&engine.endpoint, EngineKind::LlamaServer, "embed");
    let found = "chat".to_owned();
    assert_eq!(probe.look(DEADLINE).await, Health::Impostor { found });
}

#[tokio::test]
async fn deaths_at_start_are_told_from_the_log() {
    let machine = Machine::new();
    let profile = Machine::profile(&from_environment("SLOTD_TEST_MODEL"));
    let cause = async |more: &[&str]| {
        drop(fs::remove_file(machine.folder.path().join("chat.sock")));
        machine.start(&profile, more).cause().await
    };
    assert_eq!(cause(&["--bogus"]).await, Some(LogCause::BadConfig));
    assert_eq!(cause(&["--pooling", "some"]).await, Some(LogCause::BadConfig));
    assert_eq!(cause(&["--lora", "/nowhere.gguf"]).await, Some(LogCause::MissingFile));
    assert_eq!(cause(&["--model", "/nowhere.gguf"]).await, Some(LogCause::MissingFile));
    assert_eq!(cause(&["--model", "/dev/null"]).await, Some(LogCause::BadModel));
    // One that was killed leaves its socket behind, and the next one cannot bind it.
    drop(fs::remove_file(machine.folder.path().join("chat.sock")));
    fs::write(machine.folder.path().join("chat.sock"), "").unwrap();
    assert_eq!(machine.start(&profile, &[]).cause().await, Some(LogCause::PortBusy));
}

#[tokio::test]
async fn a_limit_of_memory_is_told_from_the_log() {
    let machine = Machine::new();
    let profile = Machine::profile(&from_environment("SLOTD_TEST_MODEL"));
    let Launch { program, args, env, .. } = machine.launch(&profile).unwrap();
    // Too little for the model; enough for the model and not for its context.
    for (limit_kib, context) in [("256000", "512"), ("8000000", "8000000")] {
        drop(fs::remove_file(machine.folder.path().join("chat.sock")));
        let script = format!("ulimit -v {limit_kib}; exec \"$0\" \"$@\"");
        let mut limited = Command::new("sh");
        limited.args(["-c", &script]).arg(&program).args(&args).args(["--ctx-size", context]);
        let engine = machine.spawn(limited.env_clear().envs(env.clone()));
        assert_eq!(engine.cause().await, Some(LogCause::OutOfMemory), "{limit_kib} KiB");
    }
}

#[test]
fn a_cut_model_is_refused_before_a_spawn() {
    let machine = Machine::new();
    let path = machine.folder.path().join("cut.gguf");
    fs::copy(from_environment("SLOTD_TEST_MODEL"), &path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(50_000_000).unwrap();
    let refused = machine.launch(&Machine::profile(&path)).unwrap_err();
    assert_eq!(refused.verdict, Verdict::BadModel);
    assert!(refused.reason.contains("is cut short: tensor `"), "{}", refused.reason);
    assert!(refused.reason.ends_with("the file has 50000000; download it again"));
}

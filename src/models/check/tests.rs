use std::{
    collections::BTreeMap, fs, net::TcpListener, os::unix::fs::PermissionsExt, time::Duration,
};

use super::*;
use crate::spec::ladder::LadderChoice;
use crate::spec::profile::EngineChoice;
use crate::spec::profile::{OnExit, Pull};
use crate::spec::{requests::Requests, residence::Residence};

/// A machine of its own: programs, models, caches.
struct Machine {
    folder: tempfile::TempDir,
    checks: Checks,
    gpu_layers: Option<u32>,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "cache", "hub", "models"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let places = Places {
            llama_server: None,
            own_program: folder.path().join("prefix/bin/slotd"),
            cache_dir: folder.path().join("cache"),
            hub_cache: Some(folder.path().join("hub")),
            environment: vec![("PATH".into(), folder.path().join("bin").into())],
        };
        let checks = Checks::new(places);
        Self { folder, checks, gpu_layers: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn llama_server(&self) {
        self.program("bin/llama-server", "echo 'version: 1'; echo '--model FILE'");
    }

    /// A GGUF file without tensors.
    fn model(&self, architecture: &str) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend([0_u64, 1].map(u64::to_le_bytes).concat());
        for text in ["general.architecture", architecture] {
            file.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
            file.extend(text.as_bytes());
            if text == "general.architecture" {
                file.extend(8_u32.to_le_bytes());
            }
        }
        fs::write(self.path("models/a.gguf"), file).unwrap();
    }

    fn run(&self, engine: EngineChoice) -> Result<Checked, Refused> {
        self.run_at(engine, &Endpoint::Unix("/run/a.sock".into()))
    }

    fn run_at(&self, engine: EngineChoice, endpoint: &Endpoint) -> Result<Checked, Refused> {
        self.checks.run(&self.profile(engine), endpoint)
    }

    fn profile(&self, engine: EngineChoice) -> Profile {
        let file = self.path("models/a.gguf");
        Profile {
            slot: "chat".parse().unwrap(),
            source: "chat.toml".into(),
            model: Some(ModelSource::File { typed: "a.gguf".into(), candidates: vec![file] }),
            engine,
            stop_command: Vec::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            aliases: Vec::new(),
            routes: Vec::new(),
            resume: false,
            capabilities: Vec::new(),
            context: None,
            parallel: None,
            threads: None,
            gpu_layers: self.gpu_layers,
            ladder: LadderChoice::default(),
            autostart: false,
            essential: false,
            max_restarts: 5,
            start_timeout: Duration::from_mins(5),
            stop_timeout: Duration::from_secs(10),
            hang_timeout: None,
            idle_timeout: None,
            on_exit: OnExit::Stop,
            pull: Pull::Never,
            residence: Residence::default(),
            requests: Requests::default(),
        }
    }

    fn refused(&self, engine: EngineChoice) -> (Verdict, String) {
        let refused = self.run(engine).unwrap_err();
        let folder = self.folder.path().display().to_string();
        (refused.verdict, refused.reason.replace(&folder, "DIR"))
    }
}

#[test]
fn auto_takes_llama_server_where_there_is_one() {
    let machine = Machine::new();
    machine.model("qwen2");
    machine.llama_server();
    let checked = machine.run(EngineChoice::Auto).unwrap();
    assert_eq!(checked.kind, EngineKind::LlamaServer);
    assert_eq!(checked.program, machine.path("bin/llama-server"));
    assert_eq!(checked.version.as_deref(), Some("1"));
    assert!(checked.flags.names("--model"));
}

#[cfg(feature = "worker")]
#[test]
fn the_worker_takes_a_folder_with_an_embedder_and_no_other_folder() {
    let machine = Machine::new();
    let folder = machine.path("models/a.gguf");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::write(folder.join(name), "{}").unwrap();
    }
    assert!(machine.run(EngineChoice::Candle).is_err());
    fs::write(folder.join("model.safetensors"), "").unwrap();
    let checked = machine.run(EngineChoice::Candle).unwrap();
    assert_eq!((checked.kind, checked.model), (EngineKind::Candle, Some(folder.clone())));
    machine.llama_server();
    assert!(machine.run(EngineChoice::LlamaServer).is_err(), "it serves GGUF files only");
    assert_eq!(machine.run(EngineChoice::Auto).unwrap().kind, EngineKind::Candle);

    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let (verdict, reason) = machine.refused(EngineChoice::Candle);
    assert_eq!(verdict, Verdict::MissingFile);
    insta::assert_snapshot!(reason, @"model `DIR/models/a.gguf` names 2 files, and `m-1.safetensors` is not beside it; download it");
    for name in ["m-1.safetensors", "m-2.safetensors"] {
        fs::write(folder.join(name), "").unwrap();
    }
    let checked = machine.run(EngineChoice::Candle).unwrap();
    assert_eq!((checked.encoder, checked.model), (None, Some(folder.clone())));

    let header = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let length = u64::try_from(header.len()).unwrap().to_le_bytes();
    let weights = [&length, header.as_bytes(), &[0; 16]].concat();
    fs::write(folder.join("model.safetensors"), weights).unwrap();
    fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    let config = r#"{"model_type":"bert","hidden_size":8,"intermediate_size":32,"num_hidden_layers":2,
        "max_position_embeddings":64,"vocab_size":100}"#;
    fs::write(folder.join("config.json"), config).unwrap();
    let encoder = machine.run(EngineChoice::Candle).unwrap().encoder.unwrap();
    assert_eq!((encoder.number("context_length"), encoder.vocabulary), (Some(64), 100));
    assert_eq!(encoder.bytes_of(|_| true), 16);
}

#[cfg(feature = "worker")]
#[test]
fn auto_takes_the_worker_where_there_is_no_llama_server() {
    let machine = Machine::new();
    machine.model("llama");
    assert_eq!(machine.run(EngineChoice::Auto).unwrap().kind, EngineKind::Candle);
    machine.model("mamba");
    let (verdict, reason) = machine.refused(EngineChoice::Auto);
    assert_eq!(verdict, Verdict::BadModel);
    insta::assert_snapshot!(reason, @"model `DIR/models/a.gguf` has the architecture `mamba`, and the candle worker knows only `llama`, `qwen2`, `qwen3`, `gemma3`, `phi3`; use llama-server (`make engine` builds it)");
}

#[cfg(all(feature = "worker", not(any(feature = "cuda", feature = "metal"))))]
#[test]
fn layers_on_a_gpu_that_this_build_cannot_use_are_refused_before_a_spawn() {
    let mut machine = Machine::new();
    machine.model("llama");
    machine.gpu_layers = Some(0);
    assert_eq!(machine.run(EngineChoice::Candle).unwrap().kind, EngineKind::Candle);
    machine.gpu_layers = Some(1);
    let (verdict, reason) = machine.refused(EngineChoice::Candle);
    assert_eq!(verdict, Verdict::BadConfig);
    insta::assert_snapshot!(reason, @r#"this slotd's candle worker computes on the CPU only; take `gpu_layers` out, use `engine = "llama-server"`, or build slotd with `--features cuda` or `--features metal`"#);
}

#[test]
fn a_missing_llama_server_is_said_with_the_places_and_the_ways_to_get_one() {
    let machine = Machine::new();
    machine.model("llama");
    let (verdict, reason) = machine.refused(EngineChoice::LlamaServer);
    assert_eq!(verdict, Verdict::SpawnFailed);
    insta::assert_snapshot!(reason, @r#"`llama-server` was not found (looked in `DIR/prefix/libexec/slotd`, `DIR/cache/engines`, `DIR/bin`, `/usr/local/bin`, `/opt/homebrew/bin`); install it with `make engine`, set `llama_server` in slotd.toml, or use `engine = "candle"`"#);
}

#[test]
fn a_broken_llama_server_is_not_passed_by_in_silence() {
    let machine = Machine::new();
    machine.model("llama");
    machine.program("bin/llama-server", "echo 'libcuda.so.1: cannot open' >&2; exit 127");
    let refused = machine.run(EngineChoice::Auto).unwrap_err();
    assert_eq!(refused.engine, Some((EngineKind::LlamaServer, machine.path("bin/llama-server"))));
    let (verdict, reason) = machine.refused(EngineChoice::Auto);
    assert_eq!(verdict, Verdict::SpawnFailed);
    insta::assert_snapshot!(reason, @r#"llama-server `DIR/bin/llama-server` does not run: `--version` ended with exit status: 127: libcuda.so.1: cannot open; build one with `make engine`, or use `engine = "candle"`"#);
}

#[test]
fn a_configured_llama_server_is_taken_or_refused() {
    let mut machine = Machine::new();
    machine.model("llama");
    machine.llama_server();
    machine.checks.places.llama_server = Some(machine.path("other"));
    insta::assert_snapshot!(machine.refused(EngineChoice::Auto).1, @"`llama_server` in slotd.toml is `DIR/other`, which is no program that can be run; correct it or leave it out");
    machine.program("other", "echo 'version: 2'");
    let checked = machine.run(EngineChoice::Auto).unwrap();
    assert_eq!(checked.version.as_deref(), Some("2"));
}

#[test]
fn a_model_that_is_missing_or_cut_is_refused_with_the_engine_that_was_chosen() {
    let machine = Machine::new();
    machine.llama_server();
    let (verdict, reason) = machine.refused(EngineChoice::Auto);
    assert_eq!(verdict, Verdict::MissingFile);
    insta::assert_snapshot!(reason, @"model file `a.gguf` was not found (looked at `DIR/models/a.gguf`); correct `model`, or put the file there");
    machine.model("llama");
    let file = fs::read(machine.path("models/a.gguf")).unwrap();
    fs::write(machine.path("models/a.gguf"), &file[..40]).unwrap();
    let (verdict, reason) = machine.refused(EngineChoice::Auto);
    assert_eq!(verdict, Verdict::BadModel);
    insta::assert_snapshot!(reason, @"model `DIR/models/a.gguf` is cut short inside its header, at byte 40; download it again");
    let refused = machine.run(EngineChoice::Auto).unwrap_err();
    assert_eq!(refused.engine.map(|(kind, _)| kind), Some(EngineKind::LlamaServer));
}

#[test]
fn a_model_that_embeds_or_ranks_alone_is_known_as_such_once_it_was_checked() {
    let machine = Machine::new();
    machine.llama_server();
    machine.program("bin/serve", "");
    let sole = |engine: EngineChoice| {
        let profile = machine.profile(engine.clone());
        machine.run(engine).unwrap().sole(&profile)
    };
    machine.model("bert");
    let embeds = Sole { model: "a.gguf".into(), capability: Capability::Embed };
    assert_eq!(sole(EngineChoice::Auto), Some(embeds.clone()));
    let command = EngineChoice::Command(vec!["serve".into(), "{port}".into()]);
    assert_eq!(sole(command), None, "what a foreign program does with it is not known");
    machine.model("llama");
    assert_eq!(sole(EngineChoice::Auto), None);

    let folder = machine.path("models/a.gguf");
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    for file in ["tokenizer.json", "model.safetensors"] {
        fs::write(folder.join(file), "{}").unwrap();
    }
    for (class, capability) in
        [("BertModel", Capability::Embed), ("BertForSequenceClassification", Capability::Rerank)]
    {
        let config = format!(r#"{{"model_type":"bert","architectures":["{class}"]}}"#);
        fs::write(folder.join("config.json"), config).unwrap();
        let model = embeds.model.clone();
        assert_eq!(sole(EngineChoice::Candle), Some(Sole { model, capability }));
    }
}

#[test]
fn a_commands_program_is_looked_up_and_its_model_may_be_anything() {
    let machine = Machine::new();
    let command = |program: &str| EngineChoice::Command(vec![program.into(), "{port}".into()]);
    let (verdict, reason) = machine.refused(command("serve"));
    assert_eq!(verdict, Verdict::SpawnFailed);
    insta::assert_snapshot!(reason, @"engine `serve` is not in `PATH`; install it, or correct `command`");
    machine.program("bin/serve", "");
    fs::create_dir(machine.path("models/a.gguf")).unwrap();
    fs::rename(machine.path("models/a.gguf"), machine.path("models/a")).unwrap();
    let profile_of = |machine: &Machine| {
        let source =
            ModelSource::File { typed: "a".into(), candidates: vec![machine.path("models/a")] };
        machine.checks.locate(&source, EngineKind::Command).unwrap().path
    };
    assert_eq!(profile_of(&machine), machine.path("models/a"));
    machine.model("anything");
    let checked = machine.run(command("serve")).unwrap();
    assert_eq!((checked.kind, checked.program), (EngineKind::Command, machine.path("bin/serve")));
}

#[test]
fn the_weights_of_a_commands_folder_are_counted_and_a_damaged_one_is_its_own_affair() {
    let machine = Machine::new();
    machine.program("bin/serve", "");
    let folder = machine.path("models/a.gguf");
    fs::create_dir(&folder).unwrap();
    // A folder of that name is no GGUF file.
    fs::rename(&folder, machine.path("models/a")).unwrap();
    let weights = machine.path("models/a/model.safetensors");
    let json = br#"{"t":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
    let file = [&[u8::try_from(json.len()).unwrap(), 0, 0, 0, 0, 0, 0, 0][..], json, &[0; 12]];
    fs::write(&weights, file.concat()).unwrap();
    let words = EngineChoice::Command(vec!["serve".into(), "{port}".into()]);
    let source =
        ModelSource::File { typed: "a".into(), candidates: vec![machine.path("models/a")] };
    let profile = Profile { model: Some(source), ..machine.profile(words) };
    let checked = || machine.checks.run(&profile, &Endpoint::Unix("a.sock".into()));
    assert_eq!(checked().unwrap().files, Some(Bytes(12)));
    fs::write(&weights, "what only the command knows").unwrap();
    assert_eq!(checked().unwrap().files, None);
    fs::write(&weights, &file.concat()[..40]).unwrap();
    let refused = checked().unwrap_err();
    assert_eq!(
        refused.verdict,
        Verdict::MissingFile,
        "a cut one fails in every command: {refused:?}"
    );
}

#[test]
fn a_command_is_asked_for_its_model_by_the_name_that_it_was_given() {
    let machine = Machine::new();
    machine.model("llama");
    machine.program("bin/serve", "");
    let name = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let engine = EngineChoice::Command(words);
        let checked = machine.run(engine.clone()).unwrap();
        checked.insisted_name(&machine.profile(engine)).unwrap()
    };
    assert_eq!(name(&["serve", "{port}"]), "a.gguf");
    let path = machine.path("models/a.gguf").display().to_string();
    assert_eq!(name(&["serve", "--model={model}", "{port}"]), path);
}

#[test]
fn a_taken_port_is_said_with_its_holder() {
    let machine = Machine::new();
    machine.model("llama");
    machine.llama_server();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let refused = machine.run_at(EngineChoice::Auto, &Endpoint::Tcp(address)).unwrap_err();
    assert_eq!(refused.verdict, Verdict::PortBusy);
    if cfg!(target_os = "linux") {
        let own = format!("(pid {})", std::process::id());
        assert!(refused.reason.contains(&own), "{}", refused.reason);
    }
    drop(listener);
    assert!(machine.run_at(EngineChoice::Auto, &Endpoint::Tcp(address)).is_ok());
}

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use super::*;
use crate::engine::Machine;
use crate::spec::ladder::LadderChoice;
use crate::spec::profile::{OnExit, Pull};
use crate::spec::{requests::Requests, residence::Residence};

/// What `--help` of llama.cpp b11434 says of the options that slotd uses.
const HELP: &str = "-c,    --ctx-size N\n\
    -ngl,  --gpu-layers, --n-gpu-layers N\n\
    -t,    --threads N\n\
    -kvu,  --kv-unified, -no-kvu, --no-kv-unified\n\
    --pooling {none,mean,cls,last,rank}\n\
    -np,   --parallel N\n\
    -mm,   --mmproj FILE\n\
    -a,    --alias STRING\n\
    --host HOST\n\
    --port PORT\n\
    -fa,   --flash-attn [on|off|auto]\n\
    -ctk,  --cache-type-k TYPE\n\
    -ctv,  --cache-type-v TYPE\n\
    -m,    --model FNAME\n\
    --ui,  --webui, --no-ui, --no-webui\n\
    --embedding, --embeddings\n\
    --rerank, --reranking\n";

static FULL: Rung =
    Rung { name: None, gpu_layers: None, context: None, parallel: None, cache_type: None };
static FLAGS: LazyLock<Flags> = LazyLock::new(|| Flags::parse(HELP));

pub(in crate::engine) fn profile(engine: EngineChoice) -> Profile {
    Profile {
        slot: "chat".parse().unwrap(),
        source: "chat.toml".into(),
        model: None,
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
        gpu_layers: None,
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

fn socket() -> Endpoint {
    Endpoint::Unix("/run/slotd/engines/chat.g1.sock".into())
}

/// The whole command line, with spaces between the words.
fn line<'a>(
    profile: &'a Profile,
    kind: EngineKind,
    endpoint: &'a Endpoint,
    adjust: impl FnOnce(&mut LaunchInput<'a>),
) -> Result<String, LaunchFault> {
    let mut input = LaunchInput {
        profile,
        rung: &FULL,
        kind,
        program: Path::new("/bin/engine"),
        model: Some(Path::new("/models/a.gguf")),
        mmproj: None,
        pooling: None,
        facts: None,
        flags: &FLAGS,
        layers: None,
        cores: CoreShare { machine: Machine { cores: 8, has_gpu: false }, threads: 3 },
        endpoint,
        environment: &[],
    };
    adjust(&mut input);
    let launch = launch(&input)?;
    Ok(launch.args.join(OsStr::new(" ")).into_string().unwrap())
}

fn llama(profile: &Profile) -> Result<String, LaunchFault> {
    line(profile, EngineKind::LlamaServer, &socket(), |_| {})
}

#[test]
fn a_bare_profile_gets_the_engines_own_defaults() {
    insta::assert_snapshot!(
        llama(&profile(EngineChoice::Auto)).unwrap(),
        @"--model /models/a.gguf --alias chat --host /run/slotd/engines/chat.g1.sock --parallel 4 --kv-unified --threads 3 --embeddings --pooling mean --no-ui"
    );
}

#[test]
fn the_context_of_one_sequence_is_multiplied_by_their_number() {
    let profile = Profile {
        context: Some(4096),
        parallel: Some(2),
        threads: Some(1),
        gpu_layers: Some(0),
        capabilities: vec![Capability::Chat],
        args: vec!["--cache-ram".into(), "0".into()],
        ..profile(EngineChoice::LlamaServer)
    };
    insta::assert_snapshot!(
        llama(&profile).unwrap(),
        @"--model /models/a.gguf --alias chat --host /run/slotd/engines/chat.g1.sock --parallel 2 --ctx-size 8192 --threads 1 --n-gpu-layers 0 --no-ui --cache-ram 0"
    );
}

#[test]
fn a_context_beyond_what_llama_server_can_count_is_refused() {
    let profile = Profile {
        context: Some(1 << 20),
        parallel: Some(4096),
        ..profile(EngineChoice::LlamaServer)
    };
    assert!(matches!(llama(&profile), Err(LaunchFault::TooLarge { .. })));
}

#[test]
fn a_place_for_tensors_that_llama_server_would_refuse_is_refused_before_the_start() {
    let args = vec!["--n-cpu-moe".into(), "most".into()];
    let profile = Profile { args, ..profile(EngineChoice::Auto) };
    insta::assert_snapshot!(
        llama(&profile).unwrap_err(),
        @"`--n-cpu-moe` in `args` takes a number of layers, 0 or more, found `most`"
    );
}

#[test]
fn a_model_with_its_own_pooling_keeps_it() {
    let profile = profile(EngineChoice::Auto);
    let args = line(&profile, EngineKind::LlamaServer, &socket(), |input| input.pooling = Some(2));
    let args = args.unwrap();
    assert!(args.contains("--embeddings") && !args.contains("--pooling"), "{args}");
}

#[test]
fn a_model_that_gives_scores_is_started_for_that_unless_the_profile_says_otherwise() {
    let bare = profile(EngineChoice::Auto);
    let args = line(&bare, EngineKind::LlamaServer, &socket(), |input| input.pooling = Some(4));
    let args = args.unwrap();
    assert!(args.contains("--reranking") && !args.contains("--embeddings"), "{args}");
    let named = Profile { capabilities: vec![Capability::Embed], ..bare };
    let args = line(&named, EngineKind::LlamaServer, &socket(), |input| input.pooling = Some(4));
    let args = args.unwrap();
    assert!(args.contains("--embeddings") && !args.contains("--reranking"), "{args}");
    let old = Flags::parse(&HELP.replace("--rerank, --reranking", ""));
    let bare = profile(EngineChoice::Auto);
    let args = line(&bare, EngineKind::LlamaServer, &socket(), |input| {
        input.pooling = Some(4);
        input.flags = &old;
    });
    assert!(args.unwrap().contains("--embeddings"), "what nobody asked for is no reason to refuse");
}

#[test]
fn a_pooling_among_the_arguments_is_not_given_twice() {
    let args = vec!["--pooling".into(), "last".into()];
    let profile = Profile { args, ..profile(EngineChoice::Auto) };
    assert!(llama(&profile).unwrap().ends_with("--embeddings --no-ui --pooling last"));
}

#[test]
fn a_port_and_a_projector_are_passed_on() {
    let address: SocketAddr = "127.0.0.1:4000".parse().unwrap();
    let profile = Profile { capabilities: vec![Capability::Chat], ..profile(EngineChoice::Auto) };
    let args = line(&profile, EngineKind::LlamaServer, &Endpoint::Tcp(address), |input| {
        input.mmproj = Some(Path::new("/models/mmproj.gguf"));
    });
    insta::assert_snapshot!(
        args.unwrap(),
        @"--model /models/a.gguf --alias chat --host 127.0.0.1 --port 4000 --parallel 4 --kv-unified --threads 3 --mmproj /models/mmproj.gguf --no-ui"
    );
}

#[test]
fn arguments_fit_the_version() {
    let old = HELP.replace("--no-ui, ", "").replace("--kv-unified, ", "");
    let flags = Flags::parse(&old);
    let (profile, socket) = (profile(EngineChoice::Auto), socket());
    let args = line(&profile, EngineKind::LlamaServer, &socket, |input| input.flags = &flags);
    let args = args.unwrap();
    assert!(args.ends_with("--no-webui") && !args.contains(" --kv-unified"), "{args}");

    let older = Flags::parse("--model\n--alias\n--host\n");
    let fault = line(&profile, EngineKind::LlamaServer, &socket, |input| input.flags = &older);
    assert_eq!(fault, Err(LaunchFault::UnknownFlag("--parallel")));
}

#[test]
fn a_socket_that_llama_server_would_take_for_a_host_is_refused() {
    for path in ["/run/chat", "/run/a,b/chat.sock"] {
        let endpoint = Endpoint::Unix(path.into());
        let profile = profile(EngineChoice::Auto);
        let fault = line(&profile, EngineKind::LlamaServer, &endpoint, |_| {});
        assert_eq!(fault, Err(LaunchFault::SocketPath(path.into())));
    }
}

#[test]
fn the_worker_is_a_subcommand() {
    let profile = Profile { threads: Some(2), context: Some(512), ..profile(EngineChoice::Candle) };
    insta::assert_snapshot!(
        line(&profile, EngineKind::Candle, &socket(), |_| {}).unwrap(),
        @"worker --model /models/a.gguf --alias chat --socket /run/slotd/engines/chat.g1.sock --parallel 1 --context 512 --threads 2"
    );
}

#[test]
fn a_commands_words_are_filled_in_and_templates_left_alone() {
    let words = ["serve", "--bind=127.0.0.1:{port}", "{model}", "{{port}}", r#"{"a":1}"#, "{", "x"];
    let profile = Profile {
        args: vec!["{port}".into()],
        ..profile(EngineChoice::Command(words.map(Into::into).into()))
    };
    let endpoint = Endpoint::Tcp("127.0.0.1:4000".parse().unwrap());
    let args = line(&profile, EngineKind::Command, &endpoint, |input| {
        input.model = Some(Path::new("/m/{socket}"));
    });
    insta::assert_snapshot!(
        args.unwrap(),
        @r#"--bind=127.0.0.1:4000 /m/{socket} {{port}} {"a":1} { x {port}"#
    );
}

#[test]
fn an_engine_that_needs_a_model_is_not_started_without() {
    for kind in [EngineKind::LlamaServer, EngineKind::Candle] {
        let fault = line(&profile(EngineChoice::Auto), kind, &socket(), |input| input.model = None);
        assert_eq!(fault, Err(LaunchFault::NoModel(kind)));
    }
}

#[test]
fn a_rung_lowers_what_the_profile_says() {
    static LOW: Rung = Rung {
        name: None,
        gpu_layers: Some(7),
        context: Some(1024),
        parallel: Some(2),
        cache_type: Some(CacheType::Q8_0),
    };
    let typed =
        Profile { context: Some(8192), parallel: Some(4), ..profile(EngineChoice::LlamaServer) };
    let endpoint = socket();
    let low = |kind| line(&typed, kind, &endpoint, |input| input.rung = &LOW).unwrap();
    let llama = low(EngineKind::LlamaServer);
    for words in [
        "--parallel 2 --ctx-size 2048",
        "--n-gpu-layers 7",
        "--flash-attn on --cache-type-k q8_0 --cache-type-v q8_0",
    ] {
        assert!(llama.contains(words), "no `{words}` in {llama}");
    }
    let candle = low(EngineKind::Candle);
    assert!(candle.ends_with("--parallel 2 --context 1024 --threads 3 --gpu-layers 7"), "{candle}");
    let with_flash = Profile { args: vec!["-fa".into(), "on".into()], ..typed.clone() };
    let given =
        line(&with_flash, EngineKind::LlamaServer, &endpoint, |input| input.rung = &LOW).unwrap();
    assert!(!given.contains("--flash-attn"), "{given}");
}

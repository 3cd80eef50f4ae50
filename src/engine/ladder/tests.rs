use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::spec::{
    profile::{EngineChoice, OnExit, Pull},
    requests::Requests,
    residence::Residence,
};

const HELP: &str =
    "-fa, --flash-attn on\n-ctk, --cache-type-k TYPE\n-ctv, --cache-type-v TYPE\n--ctx-size N\n";

fn profile() -> Profile {
    Profile {
        slot: "chat".parse().unwrap(),
        source: "chat.toml".into(),
        model: None,
        engine: EngineChoice::Auto,
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
        ladder: LadderChoice::Unsaid,
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

fn names_on(kind: EngineKind, has_gpu: bool, profile: &Profile) -> Vec<String> {
    let flags = Flags::parse(HELP);
    let input = LadderInput {
        profile,
        kind,
        flags: &flags,
        trained_context: Some(8192),
        layers: Some(30),
        has_gpu,
    };
    ladder(&input).iter().map(|rung| rung.name().into_owned()).collect()
}

fn llama(profile: &Profile) -> Vec<String> {
    names_on(EngineKind::LlamaServer, false, profile)
}

#[test]
fn without_a_word_only_what_is_left_open_is_lowered() {
    assert_eq!(
        llama(&profile()),
        [
            "as written",
            "q8_0 cache",
            "q8_0 cache, parallel 1, context 4096",
            "q8_0 cache, parallel 1, context 2048"
        ]
    );
    let with_context = Profile { context: Some(8192), ..profile() };
    assert_eq!(llama(&with_context), ["as written", "q8_0 cache", "q8_0 cache, parallel 1"]);
    let with_both = Profile { parallel: Some(4), ..with_context };
    assert_eq!(llama(&with_both), ["as written", "q8_0 cache"]);
    // A pool that four share cannot become one context of half the size for each.
    let with_parallel = Profile { parallel: Some(4), ..profile() };
    assert_eq!(llama(&with_parallel), ["as written", "q8_0 cache"]);
}

#[test]
fn auto_lowers_what_the_profile_sets() {
    let auto =
        Profile { context: Some(3000), parallel: Some(4), ladder: LadderChoice::Auto, ..profile() };
    assert_eq!(
        llama(&auto),
        [
            "as written",
            "q8_0 cache",
            "q8_0 cache, parallel 1",
            "q8_0 cache, parallel 1, context 1500"
        ]
    );
}

#[test]
fn a_gpu_is_left_layer_by_layer_and_never_without_one() {
    let open = profile();
    let all = names_on(EngineKind::LlamaServer, true, &open);
    assert_eq!(
        all[4..],
        [
            "q8_0 cache, parallel 1, context 2048, 15 GPU layers",
            "q8_0 cache, parallel 1, context 2048, on the CPU"
        ]
    );
    assert_eq!(all.len(), LONGEST);
    let set = Profile { gpu_layers: Some(20), context: Some(2048), ..profile() };
    assert_eq!(names_on(EngineKind::Candle, true, &set), ["as written"]);
    let auto = Profile { ladder: LadderChoice::Auto, ..set };
    assert_eq!(
        names_on(EngineKind::Candle, true, &auto),
        ["as written", "context 1024", "context 1024, 10 GPU layers", "context 1024, on the CPU"]
    );
    let on_the_cpu = Profile { gpu_layers: Some(0), ..auto };
    assert_eq!(names_on(EngineKind::Candle, true, &on_the_cpu), ["as written", "context 1024"]);
}

#[test]
fn what_the_arguments_say_already_is_left_alone() {
    let args = ["--cache-type-k=q4_0", "-c", "4096"].map(str::to_owned).to_vec();
    assert_eq!(llama(&Profile { args, ..profile() }), ["as written"]);
}

#[test]
fn an_old_engine_and_one_that_is_not_known_get_no_rung_that_they_cannot_take() {
    let typed = Profile { context: Some(8192), parallel: Some(1), ..profile() };
    let flags = Flags::default();
    let input = LadderInput {
        profile: &typed,
        kind: EngineKind::LlamaServer,
        flags: &flags,
        trained_context: None,
        layers: None,
        has_gpu: false,
    };
    assert_eq!(ladder(&input), [Rung::default()]);
    assert_eq!(names_on(EngineKind::Command, true, &profile()), ["as written"]);
}

#[test]
fn a_list_stands_below_the_profile_and_a_pin_alone() {
    let low = Rung { context: Some(512), ..Rung::default() };
    let listed = Profile { ladder: LadderChoice::Rungs(vec![low.clone()]), ..profile() };
    assert_eq!(llama(&listed), ["as written", "context 512"]);
    let pinned = Profile { ladder: LadderChoice::Pinned(low), ..profile() };
    assert_eq!(llama(&pinned), ["context 512"]);
    let off = Profile { ladder: LadderChoice::Off, ..profile() };
    assert_eq!(llama(&off), ["as written"]);
}

//! Slots made by hand for snapshots of what people read.

use std::path::PathBuf;

use crate::{
    admin::{
        DaemonObject, DeathObject, FaultObject, PressureObject, RejectedObject, SlotObject,
        StorageObject,
    },
    spec::{
        Bytes, Generation,
        death::{Confidence, Evidence, ExitStatus, LogCause, LogFinding, Phase, Verdict},
        ladder::RungView,
        profile::Capability,
    },
};

/// One slot in each state that a person meets often.
pub(super) fn slots() -> Vec<SlotObject> {
    vec![ready(), starting(), backoff(), failed(), offline()]
}

pub(super) fn ready() -> SlotObject {
    SlotObject {
        slot: "chat".parse().unwrap(),
        stands_in_for: None,
        state: "ready".to_owned(),
        engine: "llama-server".to_owned(),
        model: Some("models/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned()),
        url: None,
        absence: None,
        asleep: None,
        pid: Some(4242),
        generation: Generation(3),
        restarts: 0,
        verdict: None,
        reason: None,
        aliases: vec!["gpt-4o".to_owned(), "default".to_owned()],
        routes: Vec::new(),
        capabilities: Capability::ALL.to_vec(),
        program: Some("/usr/libexec/slotd/llama-server".to_owned()),
        since_ms: 754_000,
        pull: None,
        attempt: None,
        percent: None,
        elapsed_ms: None,
        expected_load_ms: Some(1300),
        retry_in_ms: None,
        waits_for: None,
        too_large: false,
        held_by: Vec::new(),
        skipped: None,
        need_bytes: None,
        need_gpu_bytes: None,
        promised_bytes: None,
        promised_gpu_bytes: None,
        displaced_by: None,
        unloaded_for: None,
        rule: None,
        kept_out: None,
        pinned: false,
        priority: 50,
        ordered: Vec::new(),
        in_flight: Some(1),
        waiting: 0,
        rung: None,
        tally: 0,
        rss_bytes: Some(Bytes(276 << 20)),
        parallel: Some(4),
        cores: Some(3),
        autostart: false,
        essential: false,
        source: PathBuf::from("/etc/slotd/profiles/chat.toml"),
        loads_ms: vec![1300],
        rejected_edit: None,
        deaths: Vec::new(),
    }
}

/// A slot whose last edit did not start.
pub(super) fn rolled_back() -> SlotObject {
    let rejected = RejectedObject {
        generation: Generation(4),
        verdict: Verdict::BadConfig,
        reason: "its log says `error: invalid argument: --contxt`".to_owned(),
        at_unix_ms: 1_795_251_612_345,
    };
    SlotObject { generation: Generation(5), rejected_edit: Some(rejected), ..ready() }
}

/// Somebody else's, which is not there.
pub(super) fn absent() -> SlotObject {
    SlotObject {
        slot: "remote".parse().unwrap(),
        state: "offline".to_owned(),
        engine: "external".to_owned(),
        model: Some("qwen".to_owned()),
        url: Some("http://127.0.0.1:8080".to_owned()),
        absence: Some("nobody listens at http://127.0.0.1:8080".to_owned()),
        pid: None,
        program: None,
        expected_load_ms: None,
        in_flight: None,
        rss_bytes: None,
        parallel: None,
        cores: None,
        aliases: Vec::new(),
        source: PathBuf::from("/etc/slotd/profiles/remote.toml"),
        loads_ms: Vec::new(),
        ..ready()
    }
}

/// One that waits for the memory of another.
pub(super) fn queued() -> SlotObject {
    SlotObject {
        slot: "coder".parse().unwrap(),
        state: "queued".to_owned(),
        pid: None,
        since_ms: 4_200,
        waits_for: Some(
            "it needs 20 GiB of memory, and 6.5 GiB can be had; it waits for chat".to_owned(),
        ),
        need_bytes: Some(Bytes(20 << 30)),
        in_flight: None,
        waiting: 2,
        rss_bytes: None,
        cores: None,
        aliases: Vec::new(),
        source: PathBuf::from("/etc/slotd/profiles/coder.toml"),
        ..ready()
    }
}

/// One that this machine is too small for.
pub(super) fn giant() -> SlotObject {
    SlotObject {
        slot: "giant".parse().unwrap(),
        waits_for: Some(
            "it needs 200 GiB of memory, and 62 GiB can be had on this machine, whoever goes"
                .to_owned(),
        ),
        too_large: true,
        generation: Generation(4),
        waiting: 0,
        source: PathBuf::from("/etc/slotd/profiles/giant.toml"),
        ..queued()
    }
}

/// One that those stand in the way of who make room for nobody.
pub(super) fn blocked() -> SlotObject {
    SlotObject {
        slot: "guest".parse().unwrap(),
        waits_for: Some(
            "it needs 60 GiB of memory, and 40 GiB can be had, even if all that may go were gone; chat (18 GiB), \
             embed (2.0 GiB) make room for nobody"
                .to_owned(),
        ),
        held_by: ["chat", "embed"].map(|name| name.parse().unwrap()).to_vec(),
        ..queued()
    }
}

/// One that needs another machine.
pub(super) fn skipped() -> SlotObject {
    SlotObject {
        slot: "elsewhere".parse().unwrap(),
        skipped: Some("its profile needs `gpus` = 1, and 0 are there".to_owned()),
        source: PathBuf::from("/etc/slotd/profiles/elsewhere.toml"),
        ..offline()
    }
}

/// One that is kept loaded, and that the machine ran short with.
pub(super) fn kept_out() -> SlotObject {
    SlotObject {
        slot: "coder".parse().unwrap(),
        state: "offline".to_owned(),
        waits_for: None,
        waiting: 0,
        unloaded_for: Some("memory".to_owned()),
        kept_out: Some(
            "it took 10 GiB of memory, and comes back once 12 GiB is free: with less the machine would run short again"
                .to_owned(),
        ),
        ..queued()
    }
}

pub(super) fn starting() -> SlotObject {
    SlotObject {
        slot: "coder-large".parse().unwrap(),
        state: "starting".to_owned(),
        model: Some("bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M".to_owned()),
        pid: Some(4250),
        since_ms: 3_100,
        attempt: Some(2),
        rung: Some(RungView { index: 1, of: 4, name: "q8_0 cache".to_owned() }),
        percent: Some(42),
        elapsed_ms: Some(3_100),
        expected_load_ms: Some(7_000),
        in_flight: Some(0),
        waiting: 5,
        aliases: Vec::new(),
        routes: Vec::new(),
        source: PathBuf::from("/etc/slotd/profiles/coder-large.toml"),
        ..ready()
    }
}

pub(super) fn backoff() -> SlotObject {
    let killed = DeathObject {
        generation: Generation(7),
        pid: Some(4111),
        verdict: Verdict::Crash,
        confidence: Confidence::Certain,
        reason: "SIGSEGV ended it after it had been ready".to_owned(),
        phase: Phase::Serving,
        ran_for_ms: 65_300,
        at_unix_ms: 1_795_251_612_345,
        evidence: Some(Evidence {
            oom_kills: Some(0),
            last_lines: vec![
                "slot launch_slot_: id  0 | task 12 | processing task".to_owned(),
                "ggml.c:3456: GGML_ASSERT(ne[0] > 0) failed".to_owned(),
            ],
            ..Evidence::of(ExitStatus::Signal(11))
        }),
    };
    SlotObject {
        slot: "embed".parse().unwrap(),
        state: "backoff".to_owned(),
        engine: "candle".to_owned(),
        program: Some("/usr/bin/slotd".to_owned()),
        pid: None,
        cores: None,
        generation: Generation(7),
        restarts: 2,
        verdict: Some(killed.verdict),
        reason: Some(killed.reason.clone()),
        since_ms: 900,
        retry_in_ms: Some(9_400),
        in_flight: None,
        rss_bytes: None,
        aliases: Vec::new(),
        routes: Vec::new(),
        tally: 2,
        source: PathBuf::from("/etc/slotd/profiles/embed.toml"),
        deaths: vec![killed],
        ..ready()
    }
}

pub(super) fn failed() -> SlotObject {
    let reason = "it exited with code 1 while starting; its log says \
                  `gguf_init_from_file: tensor data is not within file bounds`";
    let death = DeathObject {
        generation: Generation(1),
        pid: Some(4099),
        verdict: Verdict::BadModel,
        confidence: Confidence::Likely,
        reason: reason.to_owned(),
        phase: Phase::Starting,
        ran_for_ms: 210,
        at_unix_ms: 1_795_251_612_345,
        evidence: Some(Evidence {
            log: Some(LogFinding {
                cause: LogCause::BadModel,
                line: "gguf_init_from_file: tensor data is not within file bounds".to_owned(),
                confidence: Confidence::Likely,
            }),
            ..Evidence::of(ExitStatus::Code(1))
        }),
    };
    SlotObject {
        slot: "vision".parse().unwrap(),
        state: "failed".to_owned(),
        generation: Generation(1),
        restarts: 0,
        verdict: Some(death.verdict),
        reason: Some(death.reason.clone()),
        since_ms: 7_512_000,
        expected_load_ms: None,
        source: PathBuf::from("/etc/slotd/profiles/vision.toml"),
        deaths: vec![death],
        engine: "llama-server".to_owned(),
        ..offline()
    }
}

pub(super) fn offline() -> SlotObject {
    SlotObject {
        slot: "small".parse().unwrap(),
        state: "offline".to_owned(),
        engine: "auto".to_owned(),
        model: Some("small.gguf".to_owned()),
        program: None,
        pid: None,
        cores: None,
        generation: Generation(0),
        since_ms: 273_600_000,
        expected_load_ms: None,
        in_flight: None,
        rss_bytes: None,
        parallel: None,
        aliases: Vec::new(),
        routes: Vec::new(),
        loads_ms: Vec::new(),
        source: PathBuf::from("/etc/slotd/profiles/small.toml"),
        ..ready()
    }
}

pub(super) fn unready() -> SlotObject {
    SlotObject {
        slot: "voice".parse().unwrap(),
        state: "unready".to_owned(),
        engine: "command".to_owned(),
        model: None,
        program: Some("/opt/whisper/server".to_owned()),
        parallel: Some(1),
        cores: Some(0),
        expected_load_ms: None,
        aliases: Vec::new(),
        routes: Vec::new(),
        source: PathBuf::from("/etc/slotd/profiles/voice.toml"),
        ..ready()
    }
}

pub(super) fn daemon() -> DaemonObject {
    DaemonObject {
        version: "1.2.3".to_owned(),
        pid: 4001,
        images: 0,
        cores: 8,
        uptime_ms: 273_600_000,
        listen: "127.0.0.1:7568".to_owned(),
        ollama_listen: None,
        control: PathBuf::from("/run/slotd/control.sock"),
        state_dir: PathBuf::from("/var/lib/slotd"),
        profile_dirs: vec![PathBuf::from("/etc/slotd/profiles")],
        places: None,
        memory_limit_bytes: None,
        pressure: Some(PressureObject {
            level: "elevated".to_owned(),
            throttle: 0.5,
            sources: [("cpu", "normal"), ("memory", "elevated")]
                .map(|(source, level)| (source.to_owned(), level.to_owned()))
                .into(),
        }),
        gpus: Vec::new(),
        storage: vec![StorageObject {
            place: "engine logs".to_owned(),
            path: PathBuf::from("/var/lib/slotd/logs"),
            reason: "No space left on device".to_owned(),
            since_unix_ms: 1_795_251_612_000,
            costs: "what engines write is lost".to_owned(),
        }],
        faults: vec![FaultObject {
            file: Some(PathBuf::from("/etc/slotd/profiles/chat.toml")),
            line: Some(2),
            column: Some(1),
            key: Some("contxt".to_owned()),
            message: "unknown key".to_owned(),
            hint: Some("did you mean `context`?".to_owned()),
            text: "/etc/slotd/profiles/chat.toml:2:1: contxt: unknown key\n  hint: did you mean \
                   `context`?"
                .to_owned(),
        }],
    }
}

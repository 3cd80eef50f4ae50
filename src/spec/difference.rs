//! What one profile says otherwise than another, key by key.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Bytes,
    ladder::LadderChoice,
    profile::{Capability, EngineChoice, OnExit, Profile, Pull},
    requests::Requests,
    residence::{Residence, Restore},
};

/// One key whose value differs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Difference {
    /// The key as profiles write it; one of `env` with the variable's name, `env.NAME`.
    pub key: String,
    /// The value before; `null` where it is not to be shown, as are those of `env`.
    pub before: Option<String>,
    /// The value after; `null` where it is not to be shown.
    pub after: Option<String>,
    /// Whether an engine has to be started anew for it.
    pub restarts: bool,
}

/// Whether a change of a key needs another engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reach {
    Live,
    Restart,
}

/// Returns what `after` says otherwise than `before`, in the order of the documentation. Where a
/// profile lies, and where its model would be looked for, is no difference.
pub fn differences(before: &Profile, after: &Profile) -> Vec<Difference> {
    use Reach::{Live, Restart};
    // Taken apart whole: a new key does not compile until it is compared.
    let Profile {
        slot: _,
        source: _,
        model: _,
        engine: _,
        stop_command: _,
        args: _,
        env: _,
        aliases,
        routes,
        resume,
        capabilities,
        context,
        parallel,
        threads,
        gpu_layers,
        ladder,
        autostart,
        essential,
        max_restarts,
        start_timeout,
        stop_timeout,
        hang_timeout,
        idle_timeout,
        on_exit,
        pull,
        residence,
        requests,
    } = before;
    let mut found = Found::of_engines(before, after);
    found.compare("aliases", Live, list(aliases), list(&after.aliases));
    found.compare("routes", Live, list(routes), list(&after.routes));
    found.compare("capabilities", Restart, offered(capabilities), offered(&after.capabilities));
    found.compare_numbers([
        ("context", *context, after.context),
        ("parallel", *parallel, after.parallel),
        ("threads", *threads, after.threads),
        ("gpu_layers", *gpu_layers, after.gpu_layers),
    ]);
    found.compare_ladders(ladder, &after.ladder);
    for (key, before, after) in [
        ("resume", resume.to_string(), after.resume.to_string()),
        ("autostart", autostart.to_string(), after.autostart.to_string()),
        ("essential", essential.to_string(), after.essential.to_string()),
        ("max_restarts", max_restarts.to_string(), after.max_restarts.to_string()),
        ("pull", pull_word(*pull).to_owned(), pull_word(after.pull).to_owned()),
    ] {
        found.compare(key, Live, before, after);
    }
    found.compare_times([
        ("start_timeout", Some(*start_timeout), Some(after.start_timeout)),
        ("stop_timeout", Some(*stop_timeout), Some(after.stop_timeout)),
        ("hang_timeout", *hang_timeout, after.hang_timeout),
        ("idle_timeout", *idle_timeout, after.idle_timeout),
    ]);
    found.compare_requests(requests, &after.requests);
    found.compare_residence(residence, &after.residence);
    found.compare("on_exit", Restart, exit_word(*on_exit), exit_word(after.on_exit));
    found.0
}

struct Found(Vec<Difference>);

impl Found {
    fn compare(
        &mut self,
        key: &str,
        reach: Reach,
        before: impl Into<String>,
        after: impl Into<String>,
    ) {
        let (before, after) = (before.into(), after.into());
        if before != after {
            self.add(key, reach, Some((before, after)));
        }
    }

    fn of_engines(before: &Profile, after: &Profile) -> Self {
        let mut found = Self(Vec::new());
        let (engine, next) = (&before.engine, &after.engine);
        found.compare("model", Reach::Restart, named(before), named(after));
        found.compare("engine", Reach::Restart, engine.as_str(), next.as_str());
        found.compare("command", Reach::Restart, command(engine), command(next));
        let (stop, next_stop) = (&before.stop_command, &after.stop_command);
        found.compare("stop_command", Reach::Restart, list(stop), list(next_stop));
        found.compare("url", Reach::Restart, url(before), url(after));
        found.compare("args", Reach::Restart, list(&before.args), list(&after.args));
        found.compare_env(before, after);
        found
    }

    /// All of them are what an engine is started with.
    fn compare_numbers<const N: usize>(&mut self, numbers: [(&str, Option<u32>, Option<u32>); N]) {
        for (key, before, after) in numbers {
            let (before, after) = (or_word(before, "default"), or_word(after, "default"));
            self.compare(key, Reach::Restart, before, after);
        }
    }

    /// Rungs are too many words for one line.
    fn compare_ladders(&mut self, before: &LadderChoice, after: &LadderChoice) {
        if before != after {
            self.add("ladder", Reach::Restart, None);
        }
    }

    fn compare_requests(&mut self, before: &Requests, after: &Requests) {
        let Requests { lane, queue_timeout, on_client_gone, params, variants } = before;
        self.compare("lane", Reach::Live, lane.as_str(), after.lane.as_str());
        self.compare_times([("queue_timeout", *queue_timeout, after.queue_timeout)]);
        let gone = (on_client_gone.as_str(), after.on_client_gone.as_str());
        self.compare("on_client_gone", Reach::Live, gone.0, gone.1);
        // A prompt may be among them: no values.
        if *params != after.params {
            self.add("params", Reach::Live, None);
        }
        if *variants != after.variants {
            self.add("variants", Reach::Live, None);
        }
    }

    /// None of it changes what an engine is started with.
    fn compare_residence(&mut self, before: &Residence, after: &Residence) {
        let Residence { memory, gpu_memory, pinned, pressure_evict_only, .. } = before;
        let Residence { priority, min_residency, when_full, restore, asks, .. } = before;
        let size = |size: Option<Bytes>| or_word(size, "default");
        let word = |restore: Option<Restore>| or_word(restore.map(Restore::as_str), "default");
        for (key, before, after) in [
            ("memory", size(*memory), size(after.memory)),
            ("gpu_memory", size(*gpu_memory), size(after.gpu_memory)),
            ("pinned", pinned.to_string(), after.pinned.to_string()),
            (
                "pressure_evict_only",
                pressure_evict_only.to_string(),
                after.pressure_evict_only.to_string(),
            ),
            ("priority", or_word(*priority, "default"), or_word(after.priority, "default")),
            ("when_full", when_full.as_str().to_owned(), after.when_full.as_str().to_owned()),
            ("restore", word(*restore), word(after.restore)),
            ("needs", asks.words(), after.asks.words()),
        ] {
            self.compare(key, Reach::Live, before, after);
        }
        self.compare_times([("min_residency", *min_residency, after.min_residency)]);
    }

    /// None of them is what an engine is started with.
    fn compare_times<const N: usize>(
        &mut self,
        times: [(&str, Option<Duration>, Option<Duration>); N],
    ) {
        let shown = |time: Option<Duration>| {
            time.map_or_else(|| "off".to_owned(), |time| format!("{time:?}"))
        };
        for (key, before, after) in times {
            self.compare(key, Reach::Live, shown(before), shown(after));
        }
    }

    /// By name alone: a value may be a secret.
    fn compare_env(&mut self, before: &Profile, after: &Profile) {
        let mut names: Vec<_> = before.env.keys().chain(after.env.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            if before.env.get(name) != after.env.get(name) {
                self.add(&format!("env.{name}"), Reach::Restart, None);
            }
        }
    }

    fn add(&mut self, key: &str, reach: Reach, values: Option<(String, String)>) {
        let (before, after) = values.unzip();
        let restarts = reach == Reach::Restart;
        self.0.push(Difference { key: key.to_owned(), before, after, restarts });
    }
}

fn named(profile: &Profile) -> String {
    or_word(profile.model_name(), "none")
}

fn or_word(value: Option<impl ToString>, word: &str) -> String {
    value.map_or_else(|| word.to_owned(), |value| value.to_string())
}

fn list(items: &[String]) -> String {
    format!("{items:?}")
}

fn command(engine: &EngineChoice) -> String {
    match engine {
        EngineChoice::Command(arguments) => list(arguments),
        EngineChoice::Auto
        | EngineChoice::LlamaServer
        | EngineChoice::Candle
        | EngineChoice::External(_) => "none".to_owned(),
    }
}

fn url(profile: &Profile) -> String {
    or_word(profile.external().map(|external| external.endpoint.url()), "none")
}

fn offered(capabilities: &[Capability]) -> String {
    if capabilities.is_empty() {
        return "all".to_owned();
    }
    let names: Vec<_> = capabilities.iter().map(|capability| capability.as_str()).collect();
    names.join(", ")
}

fn pull_word(pull: Pull) -> &'static str {
    match pull {
        Pull::Never => "never",
        Pull::Auto => "auto",
    }
}

fn exit_word(on_exit: OnExit) -> &'static str {
    match on_exit {
        OnExit::Stop => "stop",
        OnExit::Keep => "keep",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{
        Endpoint,
        ladder::LadderChoice,
        params::Params,
        profile::{External, ModelSource},
        requests::{Lane, OnClientGone},
    };

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
            ladder: LadderChoice::default(),
            autostart: false,
            essential: false,
            max_restarts: 3,
            start_timeout: Duration::from_mins(1),
            stop_timeout: Duration::from_secs(10),
            hang_timeout: None,
            idle_timeout: None,
            on_exit: OnExit::Stop,
            pull: Pull::Never,
            residence: Residence::default(),
            requests: Requests::default(),
        }
    }

    #[test]
    fn parameters_differ_live_and_their_values_are_not_shown() {
        let params = Params { strip: ["secret".to_owned()].into(), ..Params::default() };
        let variants = [("x".to_owned(), params.clone())].into();
        let requests = Requests { params, variants, ..Requests::default() };
        let found = differences(&profile(), &Profile { requests, ..profile() });
        let keys: Vec<_> = found.iter().map(|one| (one.key.as_str(), one.restarts)).collect();
        assert_eq!(keys, [("params", false), ("variants", false)]);
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
    }

    #[test]
    fn each_key_restarts_an_engine_if_and_only_if_the_core_starts_another_one() {
        let word = || vec!["x".to_owned()];
        let model = ModelSource::Hub { repo: "org/repo".to_owned(), quant: None, revision: None };
        let url = Endpoint::Tcp("127.0.0.1:1".parse().unwrap());
        let external = External { endpoint: url, model: None };
        let changed = vec![
            Profile { engine: EngineChoice::External(external), ..profile() },
            Profile { model: Some(model), ..profile() },
            Profile { engine: EngineChoice::Candle, ..profile() },
            Profile { engine: EngineChoice::Command(word()), ..profile() },
            Profile { stop_command: word(), ..profile() },
            Profile { args: word(), ..profile() },
            Profile { env: [("A".to_owned(), "secret".to_owned())].into(), ..profile() },
            Profile { aliases: word(), ..profile() },
            Profile { routes: word(), ..profile() },
            Profile { capabilities: vec![Capability::Embed], ..profile() },
            Profile { context: Some(1), ..profile() },
            Profile { parallel: Some(1), threads: Some(1), ..profile() },
            Profile { gpu_layers: Some(1), ..profile() },
            Profile { ladder: LadderChoice::Off, ..profile() },
            Profile { autostart: true, ..profile() },
            Profile { essential: true, ..profile() },
            Profile { max_restarts: 4, ..profile() },
            Profile { start_timeout: Duration::ZERO, ..profile() },
            Profile { stop_timeout: Duration::ZERO, ..profile() },
            Profile { hang_timeout: Some(Duration::ZERO), ..profile() },
            Profile { idle_timeout: Some(Duration::ZERO), ..profile() },
            Profile { on_exit: OnExit::Keep, ..profile() },
            Profile { pull: Pull::Auto, ..profile() },
            Profile { resume: true, ..profile() },
            Profile {
                residence: Residence { memory: Some(Bytes(1)), ..Residence::default() },
                ..profile()
            },
            Profile {
                requests: Requests { lane: Lane::Batch, ..Requests::default() },
                ..profile()
            },
            Profile {
                requests: Requests { queue_timeout: Some(Duration::ZERO), ..Requests::default() },
                ..profile()
            },
            Profile {
                requests: Requests { on_client_gone: OnClientGone::Drain, ..Requests::default() },
                ..profile()
            },
        ];
        for after in changed {
            let found = differences(&profile(), &after);
            assert!(!found.is_empty(), "{after:?}");
            let restarts = found.iter().any(|difference| difference.restarts);
            assert_eq!(restarts, !profile().starts_same_engine(&after), "{found:?}");
            assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        }
        assert_eq!(differences(&profile(), &Profile { source: "b.toml".into(), ..profile() }), []);
    }
}

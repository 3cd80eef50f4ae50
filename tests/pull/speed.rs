//! How fast a pull is, against programs that fetch the same files.

use std::{env, fs, path::PathBuf, process::Stdio};

use serde_json::json;
use tokio::{process::Command, time::Instant};

use crate::{Bench, REPO, world::run};

const ROUNDS: usize = 3;
const MIB: f64 = 1_048_576.0;

pub(crate) async fn all(bench: &Bench) {
    bench.hub.faults(json!([])).await;
    println!(
        "\n{:<44} {:>24}  checks hashes",
        "the same files, into an empty folder", "MiB/s, 3 rounds"
    );
    measure("slotd pull", "yes", bench, || bench.command(&bench.cache())).await;
    measure("slotd pull --jobs 1", "yes", bench, || {
        let mut command = bench.command(&bench.cache());
        command.args(["--jobs", "1"]);
        command
    })
    .await;
    measure("curl, one after the other", "no", bench, || curl(bench, &[])).await;
    measure("curl, four at once", "no", bench, || {
        curl(bench, &["--parallel", "--parallel-immediate", "--parallel-max", "4"])
    })
    .await;
    let Some(hf) = env::var_os("SLOTD_TEST_HF").map(PathBuf::from) else {
        println!("hf is left out: SLOTD_TEST_HF names no `hf`");
        return;
    };
    measure("hf download", "no", bench, || {
        let cache = bench.cache();
        let mut command = Command::new(&hf);
        command.args(["download", REPO]).env_clear().env("HF_ENDPOINT", &bench.hub.url);
        command.env("HF_HUB_CACHE", &cache).env("HOME", &cache).env("HF_HUB_DISABLE_XET", "1");
        command
    })
    .await;
}

async fn measure(name: &str, checks: &str, bench: &Bench, command: impl Fn() -> Command) {
    let mut speeds = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let end = run(command).await;
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(end.code, Some(0), "{name}: {}{}", end.out, end.said);
        #[expect(
            clippy::cast_precision_loss,
            clippy::as_conversions,
            reason = "a figure for people"
        )]
        speeds.push(format!("{:.0}", bench.size as f64 / MIB / seconds));
    }
    println!("{name:<44} {:>24}  {checks}", speeds.join(", "));
}

fn curl(bench: &Bench, options: &[&str]) -> Command {
    let folder = bench.cache();
    fs::create_dir_all(&folder).unwrap();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--location"]).args(options);
    command.current_dir(&folder);
    for part in 1..=6 {
        let name = format!("m-Q4_K_M-{part:05}-of-00006.gguf");
        command.args(["--output", &name]);
        command.arg(format!("{}/{REPO}/resolve/main/{name}", bench.hub.url));
    }
    command
}

//! The command line as people and scripts meet it: what needs no daemon, and the clients against a
//! control API whose core is played by hand.

#![expect(clippy::expect_used, reason = "a broken set-up is a failed test")]

#[path = "cli/models.rs"]
mod models;
#[path = "cli/played.rs"]
mod played;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use insta::assert_snapshot;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use played::Played;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// The program in a world of its own: no variable and no file of this machine decides.
fn slotd(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command
        .env_clear()
        .env("HOME", dir)
        .env("XDG_RUNTIME_DIR", dir)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn run<I: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = I>) -> Output {
    let output = slotd(dir).args(arguments).output();
    timeout(DEADLINE, output).await.expect("slotd did not end").expect("slotd runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn scratch(profiles: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a scratch directory");
    fs::create_dir(dir.path().join("profiles")).expect("a directory of profiles");
    for (name, profile) in profiles {
        let path = dir.path().join("profiles").join(format!("{name}.toml"));
        fs::write(path, profile).expect("a profile");
    }
    dir
}

#[tokio::test]
async fn help_names_every_subcommand_and_exit_code() {
    let dir = scratch(&[]);
    let help = run(dir.path(), ["--help"]).await;
    assert_eq!(help.status.code(), Some(0));
    assert_snapshot!(text(&help.stdout), @r"
    Keeps inference servers alive: one supervised engine a slot, one OpenAI-compatible endpoint

    Usage: slotd [OPTIONS] <COMMAND>

    Commands:
      serve        Run the daemon in the foreground
      validate     Check profiles and tell every fault with its place
      plan         Tell what an edit of profiles would do: which slots restart, drain, come, go or stay
      fit          Tell how much memory a model or slot will take, and whether that is there
      models       List the models on disk and what they lack; check them
      pull         Fetch a model from the hub into the Hugging Face cache; no daemon is needed
      schema       Print the JSON Schema of a profile
      ps           List the slots
      status       Tell how a slot is, why, and what can be done; or how the daemon is
      why          Tell the story of a slot's last death
      logs         Show what a slot's engines wrote
      load         Load a slot and wait until it is ready
      unload       Unload a slot; the next request loads it again
      restart      Replace a slot's engine by a new one and wait until it is ready
      pin          Keep a slot loaded: nothing unloads it but a person
      unpin        Let a slot make room for others
      priority     Say who gives way first: those with less
      offload      Take a slot down one rung of its ladder, to less memory
      ensure       Have memory made free, by the same order in which slots make room for each other
      bench        Measure how fast a slot is, and compare with the last time
      events       Tell what happens, as it happens: changes of slots, pressure, rules
      rules        List the rules with their next times
      signal       Tell the rules that something has happened
      requests     List the requests in flight
      cancel       End a request in flight with an error
      key          Make, list and remove the keys that clients of the endpoint need
      upgrade      Let the running daemon go on as the program on disk, without refusing a client
      worker       Serve one model with the candle engine; the daemon starts it for slots
      completions  Print the completion script of a shell
      man          Write the manual pages

    Options:
          --control <PATH>   The daemon's control socket; `SLOTD_CONTROL` if absent, else `control.sock`
                             in its runtime directory
          --url <URL>        The endpoint of a daemon to talk to instead, `http://HOST:PORT`;
                             `SLOTD_URL` if absent
          --key-file <FILE>  A file with the admin key for `--url`; `SLOTD_KEY_FILE` if absent, else
                             `SLOTD_ADMIN_KEY` is the key
      -h, --help             Print help
      -V, --version          Print version

    Exit codes:
        0  done
        1  `validate`, `plan` or `models verify` found faults
       64  the command line cannot be understood
       65  a model file is damaged (`worker`)
       66  a model file is missing (`worker`)
       69  no daemon answers, no such slot, a load or a pull failed, or the address is taken
       70  something broke inside slotd
       71  there is not enough memory (`worker`)
       75  another daemon holds the state directory or the control socket, or another bench runs
       77  a file, directory or socket may not be used
       78  the settings have faults
      130  interrupted
    ");
}

#[tokio::test]
async fn a_bare_call_is_a_fault_and_the_version_is_none() {
    let dir = scratch(&[]);
    let nothing: [&str; 0] = [];
    assert_eq!(run(dir.path(), nothing).await.status.code(), Some(64));
    assert_eq!(run(dir.path(), ["--version"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_command_line_that_is_not_understood_exits_64() {
    let dir = scratch(&[]);
    let typo = run(dir.path(), ["stauts"]).await;
    assert_eq!(typo.status.code(), Some(64));
    assert_snapshot!(text(&typo.stderr), @r"
    error: unrecognized subcommand 'stauts'

      tip: some similar subcommands exist: 'restart', 'status'

    Usage: slotd [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    let name = run(dir.path(), ["load", "../up"]).await;
    assert_eq!(name.status.code(), Some(64));
    assert_snapshot!(text(&name.stderr), @r"
    error: invalid value '../up' for '<SLOT>': a slot name is made of `a-z A-Z 0-9 . _ -` and starts with a letter or digit, `.` does not fit

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn without_a_daemon_clients_say_where_they_looked() {
    let dir = scratch(&[]);
    let socket = dir.path().join("control.sock");
    for arguments in [&["ps"][..], &["status"], &["load", "chat"], &["logs", "-f", "chat"]] {
        let socket = socket.to_str().expect("UTF-8");
        let said = run(dir.path(), ["--control", socket].iter().chain(arguments)).await;
        assert_eq!(said.status.code(), Some(69));
        assert_eq!(text(&said.stdout), "");
        let said = text(&said.stderr).replace(socket, "[SOCKET]");
        assert_eq!(said, "slotd: no daemon answers at [SOCKET]; start one with `slotd serve`\n");
    }
    let variable = slotd(dir.path()).arg("ps").env("SLOTD_CONTROL", &socket).output().await;
    let said = text(&variable.expect("slotd runs").stderr);
    assert!(said.contains(socket.to_str().expect("UTF-8")), "{said}");
}

#[tokio::test]
async fn validate_tells_every_fault_and_counts_them() {
    let dir = scratch(&[("good", "model = \"a.gguf\""), ("bad", "modle = 1\ncontext = 0\n")]);
    let said = run(dir.path(), ["validate", "profiles"]).await;
    assert_eq!(said.status.code(), Some(1));
    assert_snapshot!(text(&said.stdout), @r#"
    profiles/bad.toml: model: missing, a profile names its model
      hint: add `model = "FILE.gguf"` or `model = "org/repo:QUANT"`
    profiles/bad.toml:1:1: modle: unknown key
      hint: did you mean `model`?
    profiles/bad.toml:2:11: context: `0` is out of range, expected 256..=1048576
      hint: leave the key out to use the engine's own default

    3 faults in 1 file
    "#);

    let said = run(dir.path(), ["validate", "--json", "profiles"]).await;
    assert_eq!(said.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert_eq!(said["valid"], serde_json::json!(["good"]));
    assert_eq!(said["faults"][0]["file"], "profiles/bad.toml");

    let said = run(dir.path(), ["validate", "profiles/good.toml"]).await;
    assert_eq!((said.status.code(), &*text(&said.stdout)), (Some(0), "1 profile is valid\n"));
    let said = run(dir.path(), ["validate", "--profiles", "profiles"]).await;
    assert_eq!(said.status.code(), Some(1));
    let said = run(dir.path(), ["validate", "profiles/none.toml"]).await;
    assert_eq!(said.status.code(), Some(1));
}

#[tokio::test]
async fn validate_alone_looks_where_the_daemon_looks() {
    let dir = scratch(&[("chat", "model = \"a.gguf\""), ("embed", "model = \"b.gguf\"")]);
    let settings = dir.path().join("slotd.toml");
    fs::write(&settings, "profiles = [\"profiles\"]\n").expect("settings");
    let said = run(dir.path(), ["validate", "--config", "slotd.toml"]).await;
    assert_eq!((said.status.code(), &*text(&said.stdout)), (Some(0), "2 profiles are valid\n"));
    fs::write(&settings, "profile = [\"profiles\"]\n").expect("settings");
    let said = run(dir.path(), ["validate", "--config", "slotd.toml"]).await;
    assert_eq!(said.status.code(), Some(1));
    let shown = text(&said.stdout).replace(dir.path().to_str().expect("UTF-8"), "[DIR]");
    assert_snapshot!(shown, @r"
    [DIR]/slotd.toml:1:1: profile: unknown key
      hint: did you mean `profiles`?

    1 fault in 1 file
    ");
}

#[tokio::test]
async fn schema_completions_and_manual_pages_are_made() {
    let dir = scratch(&[]);
    let schema = run(dir.path(), ["schema"]).await;
    let schema: Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    assert!(schema["properties"]["model"].is_object(), "{schema}");
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(dir.path(), ["completions", shell]).await.stdout);
        assert!(script.contains("restart"), "{script}");
    }
    assert_eq!(run(dir.path(), ["man", "pages/man1"]).await.status.code(), Some(0));
    let pages = dir.path().join("pages/man1");
    for page in ["slotd.1", "slotd-ps.1", "slotd-status.1", "slotd-why.1"] {
        assert!(pages.join(page).is_file(), "{page} is not there");
    }
    fs::write(dir.path().join("file"), "").expect("a file");
    let said = run(dir.path(), ["man", "file"]).await;
    assert_eq!(said.status.code(), Some(70));
    assert_eq!(text(&said.stderr), "slotd: failed to write to `file`: File exists (os error 17)\n");
}

#[tokio::test]
async fn a_reader_that_leaves_is_a_quiet_end() {
    let dir = scratch(&[]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let said = slotd(dir.path()).arg("schema").stdout(writer).output();
    let said = timeout(DEADLINE, said).await.expect("slotd did not end").expect("slotd runs");
    assert_eq!((said.status.code(), &*text(&said.stderr)), (Some(0), ""));
}

#[tokio::test]
async fn ps_prints_what_the_api_says() {
    let played = Played::start(&["chat", "embed"]);
    let said = played.slotd(["ps", "--json"]).await;
    let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert_eq!((&said[0]["slot"], &said[1]["state"]), (&"chat".into(), &"offline".into()));
    let table = text(&played.slotd(["ps"]).await.stdout);
    assert_snapshot!(table, @r"
    SLOT   STATE    ENGINE  MODEL   PID  MEM  REQ  WAIT  RUNG  PROFILE  RESTARTS  VERDICT  SINCE
    chat   offline  auto    m.gguf  -    -    -    0     -     -        0         -        3.0s
    embed  offline  auto    m.gguf  -    -    -    0     -     -        0         -        3.0s
    ");
}

#[tokio::test]
async fn an_unknown_slot_is_answered_with_the_nearest() {
    let played = Played::start(&["chat", "embed"]);
    for arguments in
        [&["status", "caht"], &["load", "caht"], &["unload", "caht"], &["logs", "caht"]]
    {
        let said = played.slotd(arguments).await;
        assert_eq!(said.status.code(), Some(69));
        assert_eq!(
            text(&said.stderr),
            "slotd: there is no slot `caht`, did you mean `chat`? the slots are `chat`, `embed`\n"
        );
    }
}

#[tokio::test]
async fn a_load_is_followed_until_it_is_ready() {
    let played = Played::start(&["chat"]);
    let said = played.slotd(["load", "chat"]).await;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert_eq!(text(&said.stdout), "chat: ready after 1.3s, candle, pid 1\n");
    let again = played.slotd(["load", "chat"]).await;
    assert_eq!(text(&again.stdout), "chat: ready already, candle, pid 1\n");
    let restarted = played.slotd(["restart", "--json", "chat"]).await;
    let restarted: Value = serde_json::from_slice(&restarted.stdout).expect("JSON");
    assert_eq!((&restarted["state"], &restarted["generation"]), (&"ready".into(), &2.into()));
    let unloaded = played.slotd(["unload", "chat"]).await;
    assert_eq!((unloaded.status.code(), &*text(&unloaded.stdout)), (Some(0), "chat: unloaded\n"));
}

#[tokio::test]
async fn a_load_that_fails_exits_69_with_verdict_and_reason() {
    let played = Played::start(&["broken"]);
    let said = played.slotd(["load", "broken"]).await;
    assert_eq!(said.status.code(), Some(69));
    assert_eq!(text(&said.stdout), "");
    let told = text(&said.stderr).replace(played.dir().to_str().expect("UTF-8"), "[DIR]");
    let told = told.split_once("slotd: ").expect("a last word").1;
    assert_snapshot!(told, @r"
    broken failed (bad-model): it exited with code 1 while starting
      next: fetch the model again, or name another in [DIR]/profiles/broken.toml, then `slotd load broken`
    ");
    let status = text(&played.slotd(["status", "broken"]).await.stdout);
    assert!(status.contains("last death: bad-model"), "{status}");
    assert!(status.contains("| a line of the log"), "{status}");
}

#[tokio::test]
async fn an_order_can_be_left_to_itself() {
    let played = Played::start(&["slow"]);
    let said = played.slotd(["load", "--no-wait", "slow"]).await;
    assert_eq!(
        (said.status.code(), &*text(&said.stdout)),
        (Some(0), "slow: the load is asked for; `slotd status slow` follows it\n")
    );

    let mut waiting =
        played.command(["load", "slow"]).stderr(Stdio::piped()).spawn().expect("slotd runs");
    let mut lines = BufReader::new(waiting.stderr.take().expect("it is piped")).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.expect("nothing came");
    assert_eq!(line.expect("a line").as_deref(), Some("slow: starting, attempt 1, 40 %"));
    let pid = i32::try_from(waiting.id().expect("it runs")).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it can be signalled");
    let status = timeout(DEADLINE, waiting.wait()).await.expect("it goes on").expect("it ends");
    assert_eq!(status.code(), Some(130));
    let line = lines.next_line().await.expect("a line");
    let wanted = "slotd: the load of `slow` goes on without you; `slotd status slow` follows it";
    assert_eq!(line.as_deref(), Some(wanted));
}

#[tokio::test]
async fn logs_and_the_daemons_state_are_shown() {
    let played = Played::start(&["chat"]);
    let log = played.slotd(["logs", "-n", "3", "chat"]).await;
    assert_eq!(text(&log.stdout), "a line of the log\n");
    let status = text(&played.slotd(["status"]).await.stdout);
    let status = status.replace(played.dir().to_str().expect("UTF-8"), "[DIR]");
    assert_snapshot!(status, @r"
    slotd 1.2.3, pid 7, up 3.0s
      endpoint  http://127.0.0.1:7568
      control   [DIR]/control.sock
      state     [DIR]/state
      profiles  [DIR]/profiles
      slots     1, 0 of them ready
      cores     0 of 4 in use by engines

    health: all is well
    ");
    let json = played.slotd(["status", "--json"]).await;
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["daemon"]["pid"], &json["slots"][0]["slot"]), (&7.into(), &"chat".into()));
    let json = played.slotd(["status", "--json", "chat"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&json.stdout).expect("JSON")["slot"], "chat");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_no_daemon() {
    let dir = scratch(&[]);
    let socket: PathBuf = dir.path().join("not-a-socket");
    fs::write(&socket, "").expect("a file");
    let said = run(dir.path(), [OsStr::new("--control"), socket.as_os_str(), OsStr::new("ps")]);
    let said = said.await;
    assert_eq!(said.status.code(), Some(69));
    assert!(text(&said.stderr).starts_with("slotd: no daemon answers at"));
}

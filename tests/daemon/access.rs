//! Who may speak to the daemon over the network: keys made, read, taken away while it runs.

use std::{fs, net::TcpListener, path::Path, process::Output, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::common::{DEADLINE, Daemon, fake, scratch};

/// Runs the program in the environment of a scratch directory's daemon.
async fn slotd(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.args(arguments).env("XDG_CONFIG_HOME", dir).env("HOME", dir).kill_on_drop(true);
    timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

/// Makes a key as a person does; returns what was printed.
pub(crate) async fn new_key(dir: &Path, arguments: &[&str]) -> String {
    let made = slotd(dir, &[&["key", "new"], arguments].concat()).await;
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

async fn status(daemon: &Daemon, path: &str, key: Option<&str>) -> u16 {
    let request = daemon.client.get(format!("{}{path}", daemon.url));
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    timeout(DEADLINE, request.send()).await.unwrap().unwrap().status().as_u16()
}

/// Waits until the daemon answers a key with a status; returns how long that took.
async fn until_status(daemon: &Daemon, key: Option<&str>, wanted: u16) -> Duration {
    let begin = Instant::now();
    loop {
        let found = status(daemon, "/v1/models", key).await;
        if found == wanted {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < DEADLINE, "{found}, not {wanted}\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_bind_beyond_loopback_without_keys_does_not_start() {
    let dir = scratch(&[]);
    let state = dir.path().join("state").display().to_string();
    let serve = |listen: &'static str| {
        let profiles = dir.path().join("profiles").display().to_string();
        let arguments: Vec<String> =
            ["serve", "--listen", listen, "--state-dir", &state, "--profiles", &profiles]
                .map(str::to_owned)
                .to_vec();
        arguments
    };
    let said = |output: Output| {
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let last = said.lines().last().unwrap().to_owned();
        last.replace(&dir.path().display().to_string(), "")
    };
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let arguments = serve(listen);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(
            said(slotd(dir.path(), &words).await),
            format!(
                "slotd: {listen} can be reached by other machines, which need keys: `slotd key new \
                 NAME --keys /slotd/keys` makes the first one (`keys` in slotd.toml names the \
                 file), or `listen` on 127.0.0.1"
            )
        );
    }
    // A file that was named has to be there.
    fs::create_dir(dir.path().join("slotd")).unwrap();
    fs::write(dir.path().join("slotd/slotd.toml"), "keys = \"no-keys\"").unwrap();
    let arguments = serve("127.0.0.1:0");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = slotd(dir.path(), &words).await;
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("slotd/no-keys: there is no such file of keys"), "{said}");
}

#[tokio::test]
async fn a_socket_unit_beyond_loopback_without_keys_is_refused() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let dir = scratch(&[]);
    let mut daemon = Daemon::refused_activated(dir, &listener).await;
    assert_eq!(daemon.ended().await.code(), Some(78));
    assert!(daemon.log().contains("can be reached by other machines"), "{}", daemon.log());
}

#[tokio::test]
async fn keys_are_asked_for_from_the_moment_that_there_are_any() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    assert_eq!(status(&daemon, "/v1/models", None).await, 200);
    let first = new_key(daemon.dir.path(), &["laptop"]).await;
    until_status(&daemon, None, 401).await;
    assert_eq!(status(&daemon, "/v1/models", Some(&first)).await, 200);
    let second = new_key(daemon.dir.path(), &["phone"]).await;
    until_status(&daemon, Some(&second), 200).await;

    // Revoked while it runs.
    assert!(slotd(daemon.dir.path(), &["key", "remove", "laptop"]).await.status.success());
    let took = until_status(&daemon, Some(&first), 401).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(status(&daemon, "/v1/models", Some(&second)).await, 200);

    // A fault, or a file that is gone, opens nothing.
    let file = daemon.dir.path().join("slotd/keys");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, "what is this").unwrap();
    until_logged(&daemon, "the role is neither").await;
    assert_eq!(status(&daemon, "/v1/models", None).await, 401);
    assert_eq!(status(&daemon, "/v1/models", Some(&second)).await, 200);
    fs::remove_file(&file).unwrap();
    until_logged(&daemon, "there is no such file of keys").await;
    assert_eq!(status(&daemon, "/v1/models", None).await, 401);
    fs::write(&file, text).unwrap();
    drop(file);
    daemon.signal(Signal::SIGHUP);
    assert_eq!(status(&daemon, "/v1/models", Some(&second)).await, 200);
    assert_eq!(status(&daemon, "/healthz", None).await, 200);
}

pub(crate) async fn until_logged(daemon: &Daemon, text: &str) {
    let begin = Instant::now();
    while !daemon.log().contains(text) {
        assert!(begin.elapsed() < DEADLINE, "never logged {text}:\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn keys_are_listed_by_name_alone_and_a_name_is_taken_once() {
    let dir = scratch(&[]);
    let key = new_key(dir.path(), &["laptop"]).await;
    assert_eq!(key.len(), "sk-slotd-".len() + 64, "{key}");
    new_key(dir.path(), &["--admin", "ops"]).await;
    let list = slotd(dir.path(), &["key", "list"]).await;
    assert_eq!(String::from_utf8(list.stdout).unwrap(), "infer laptop\nadmin ops\n");
    let again = slotd(dir.path(), &["key", "new", "laptop"]).await;
    assert_eq!(again.status.code(), Some(69));
    assert_eq!(
        String::from_utf8(again.stderr).unwrap(),
        "slotd: there is a key `laptop` already; `slotd key remove laptop` takes it away\n"
    );
    let odd = slotd(dir.path(), &["key", "new", "a b"]).await;
    assert_eq!(odd.status.code(), Some(64));
    let none = slotd(dir.path(), &["key", "remove", "phone"]).await;
    assert_eq!(none.status.code(), Some(69));
}

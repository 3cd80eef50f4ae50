//! Revisions of one model side by side, and a slot that goes from one to the other.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    DEADLINE, World,
    daemon::Daemon,
    world::{End, run},
};

/// A GGUF file without tensors, with a name in it.
fn gguf(name: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u64::try_from(text.len()).unwrap();
        [&length.to_le_bytes(), text.as_bytes()].concat()
    };
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1].map(u64::to_le_bytes).concat());
    file.extend([text("general.name"), 8_u32.to_le_bytes().to_vec(), text(name)].concat());
    file
}

/// An engine that starts with any model but one that says `BAD`, and shows which in its command line.
fn profile(model: &str) -> String {
    let slotd = Path::new(env!("CARGO_BIN_EXE_slotd"));
    let engine = slotd.parent().unwrap().join("examples/fake_engine");
    let script = "grep -q BAD \"$1\" && exit 3; exec \"$2\" \"$3\" say=\"$1\"";
    let words = json!(["/bin/sh", "-c", script, "sh", "{model}", engine, "socket={socket}"]);
    format!(
        "# what we serve\nmodel = '{model}' # pinned\nengine = \"command\"\ncommand = {words}\n"
    )
}

async fn used(world: &World, daemon: &Daemon, revision: &str) -> End {
    let socket = daemon.socket().display().to_string();
    let command = world.command(&["--control", &socket, "models", "use", "chat", revision]);
    timeout(DEADLINE, run(command)).await.expect("it comes to an end")
}

/// The model of the running engine.
fn served(slot: &Value) -> String {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", slot["pid"])).unwrap();
    line.split('\0').find_map(|word| word.strip_prefix("say=")).unwrap().to_owned()
}

#[tokio::test]
async fn a_slot_goes_from_one_revision_to_another_and_back_where_that_one_fails() {
    let world = World::new(&[("o/u/m-Q8_0.gguf", &gguf("one"))]);
    world.hub.put_at("o/u/m-Q8_0.gguf", "v2", &gguf("two"));
    world.hub.put_at("o/u/m-Q8_0.gguf", "v3", &gguf("BAD"));
    for model in ["o/u:Q8_0", "o/u:Q8_0@v2", "o/u:Q8_0@v3"] {
        let end = world.pull(&[model]).await;
        assert_eq!(end.code, Some(0), "{}", end.said);
    }
    let commit = |name: &str| {
        fs::read_to_string(world.cache().join("models--o--u/refs").join(name)).unwrap()
    };
    let daemon = Daemon::start(&world, &profile("o/u:Q8_0")).await;
    assert_eq!(daemon.chat().await.0, 200);
    assert!(served(&daemon.get("/v1/slots/chat").await).contains(&commit("main")));

    // Requests go on meanwhile.
    let (stop, mut stopped) = oneshot::channel::<()>();
    let asking = async {
        let mut answers = Vec::new();
        while stopped.try_recv().is_err() {
            answers.push(daemon.chat().await.0);
        }
        answers
    };
    let changing = async {
        let end = used(&world, &daemon, "v2").await;
        stop.send(()).unwrap();
        end
    };
    let (answers, end) = tokio::join!(asking, changing);
    assert_eq!(end.code, Some(0), "{}{}", end.out, end.said);
    assert!(end.out.starts_with("chat: serves `o/u:Q8_0@v2`"), "{}", end.out);
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    let slot = daemon.get("/v1/slots/chat").await;
    assert_eq!(slot["model"], "o/u:Q8_0@v2");
    assert!(served(&slot).contains(&commit("v2")), "{slot:#}");
    assert_eq!(daemon.profile(), profile("o/u:Q8_0@v2").replace('\'', "\""));

    let before = daemon.get("/v1/slots/chat").await;
    let end = used(&world, &daemon, "v3").await;
    assert_eq!(end.code, Some(69), "{}{}", end.out, end.said);
    assert_eq!(daemon.get("/v1/slots/chat").await["pid"], before["pid"], "it serves on");
    assert!(end.said.contains("chat: stays at `o/u:Q8_0@v2`"), "{}", end.said);
    assert_eq!(daemon.profile(), profile("o/u:Q8_0@v2").replace('\'', "\""));
    assert_eq!(daemon.chat().await.0, 200);

    let end = used(&world, &daemon, "v9").await;
    assert_eq!(end.code, Some(69));
    insta::assert_snapshot!(end.said.trim(), @"slotd: `o/u:Q8_0@v9` is not on this machine, fetch it with `slotd pull o/u:Q8_0@v9`; there are `main`, `v2`, `v3`");
    // The profile is a file beside the daemon.
    let far = world.command(&["--url", "http://127.0.0.1:1", "models", "use", "chat", "v2"]);
    let end = timeout(DEADLINE, run(far)).await.expect("it comes to an end");
    insta::assert_snapshot!(end.said.trim(), @"slotd: `slotd models use` works on files of its own machine: say it beside the daemon, without `--url` (`SLOTD_URL`)");
    let main = commit("main");
    let end = used(&world, &daemon, main.get(..8).unwrap()).await;
    assert_eq!(end.code, Some(0), "{}{}", end.out, end.said);
    // An earlier engine of the stand-in's name died of `v3`.
    assert!(!end.said.contains("exited with code"), "an old death is told as news: {}", end.said);

    // What was chosen is in the profile, and so outlives the daemon.
    let daemon = daemon.again(&world).await;
    assert_eq!(daemon.chat().await.0, 200);
    let slot = daemon.get("/v1/slots/chat").await;
    assert_eq!(slot["model"], format!("o/u:Q8_0@{main}"));
    assert!(served(&slot).contains(&main), "{slot:#}");
}

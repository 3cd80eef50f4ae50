//! Everything comes once: nothing that is there is asked for, and of several one fetches.

use serde_json::json;

use crate::{
    World,
    world::{blobs, content, folder, snapshot},
};

const FILES: [&str; 7] = [
    "o/r/README.md",
    "o/r/Q8_0/m-Q8_0-00001-of-00002.gguf",
    "o/r/Q8_0/m-Q8_0-00002-of-00002.gguf",
    "o/r/m-Q4_K_M.gguf",
    "o/r/mmproj-F16.gguf",
    "o/r/config.json",
    "o/r/a file.json",
];

fn world() -> World {
    let contents: Vec<_> = (1..).zip(FILES).map(|(seed, _)| content(seed, 300_000)).collect();
    let files: Vec<_> =
        FILES.iter().zip(&contents).map(|(path, bytes)| (*path, bytes.as_slice())).collect();
    World::new(&files)
}

#[tokio::test]
async fn a_model_is_fetched_with_its_parts_and_its_projector() {
    let world = world();
    let end = world.pull(&["o/r:Q8_0"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let files = snapshot(&world.cache(), "o/r");
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf"]
    );
    assert!(files["Q8_0/m-Q8_0-00002-of-00002.gguf"] == content(3, 300_000));
    assert_eq!(blobs(&world.cache(), "o/r"), (0, 3));
    assert!(end.out.starts_with("o/r:Q8_0 was fetched: 3 files, 878 KiB, in "), "{}", end.out);
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    let world = world();
    assert_eq!(world.pull(&["o/r:Q8_0"]).await.code, Some(0));
    world.hub.forget().await;
    let end = world.pull(&["o/r:Q8_0"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(end.out.starts_with("o/r:Q8_0 is there: 3 files in "), "{}", end.out);
    // The commit is asked for; what it consists of is known.
    assert_eq!(world.hub.seen().await.len(), 1);
}

#[tokio::test]
async fn nothing_is_asked_of_the_network_offline() {
    let world = world();
    let offline = async |world: &World| {
        let mut command = world.command(&["pull", "o/r"]);
        command.env("HF_HUB_OFFLINE", "1");
        crate::run(command).await
    };
    let end = offline(&world).await;
    assert_eq!(end.code, Some(69));
    insta::assert_snapshot!(end.said, @"slotd: model `o/r` is not whole on this disk, and the hub is not asked while `HF_HUB_OFFLINE` is set");
    assert!(!world.cache().exists());
    assert_eq!(world.pull(&["o/r:Q8_0"]).await.code, Some(0));
    world.hub.forget().await;
    let end = offline(&world).await;
    insta::assert_snapshot!(end.said, @"slotd: model `o/r` is not whole on this disk, and the hub is not asked while `HF_HUB_OFFLINE` is set: 1 of 2 files are missing, 292 KiB");
    assert_eq!(world.pull(&["o/r"]).await.code, Some(0));
    world.hub.forget().await;
    let end = offline(&world).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(world.hub.seen().await.is_empty());
}

#[tokio::test]
async fn of_several_pulls_of_a_model_one_fetches() {
    let world = world();
    let slow = json!([{ "path": "resolve", "does": { "slow": { "bytes_per_s": 400_000 } } }]);
    world.hub.faults(slow).await;
    let pulls = [world.pull(&["o/r"]), world.pull(&["o/r"]), world.pull(&["o/r"])];
    let [one, two, three] = pulls;
    let (one, two, three) = tokio::join!(one, two, three);
    let ends = [one, two, three];
    for end in &ends {
        assert_eq!(end.code, Some(0), "{}", end.said);
    }
    assert_eq!(world.hub.fetches().await.len(), 2);
    let waited = ends.iter().filter(|end| end.said.contains("waiting for `slotd` (pid "));
    assert_eq!(waited.count(), 2);
    assert_eq!(ends.iter().filter(|end| end.out.contains("was fetched")).count(), 1);
}

#[tokio::test]
async fn a_new_revision_keeps_what_has_not_changed() {
    let world = world();
    assert_eq!(world.pull(&["o/r", "o/r:Q8_0"]).await.code, Some(0));
    world.hub.put("o/r/m-Q4_K_M.gguf", &content(99, 1000));
    world.hub.forget().await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert_eq!(world.hub.fetches().await.len(), 1);
    let files = snapshot(&world.cache(), "o/r");
    assert!(files["m-Q4_K_M.gguf"] == content(99, 1000));
    assert!(files.contains_key("Q8_0/m-Q8_0-00002-of-00002.gguf"));
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let world = world();
    let said =
        async |model: &str| world.pull(&[model]).await.said.lines().last().unwrap().to_owned();
    insta::assert_snapshot!(said("o/x").await, @"slotd: the hub has no repository `o/x`; check its name");
    insta::assert_snapshot!(said("o/r@v9").await, @"slotd: repository `o/r` has no revision `v9`; check its name");
    insta::assert_snapshot!(said("o/r:Q2_K").await, @"slotd: `o/r:Q2_K` names no model in its repository, which has `Q8_0/m-Q8_0-00001-of-00002.gguf`, `m-Q4_K_M.gguf`; correct its name");
    let end = world.pull(&["../x"]).await;
    assert_eq!(end.code, Some(64));
    for repo in ["o/x", "o/r"] {
        assert!(!folder(&world.cache(), repo).exists(), "nothing is left of `{repo}`");
    }
}

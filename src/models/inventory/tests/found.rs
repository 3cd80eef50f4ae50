//! Which models are found, and under which names.

use super::*;

#[test]
fn a_revision_that_cannot_be_listed_is_unreadable_and_not_incomplete() {
    let world = World::new();
    world.write("hub/models--org--m/refs/main", COMMIT.as_bytes());
    fs::create_dir(world.path("hub/models--org--m/snapshots")).unwrap();
    symlink(COMMIT, world.path(&format!("hub/models--org--m/snapshots/{COMMIT}"))).unwrap();
    world.write("hub/models--org--n/refs/main", COMMIT.as_bytes());
    symlink("snapshots", world.path("hub/models--org--n/snapshots")).unwrap();
    world.write(&format!("hub/models--org--n/blobs/{}", "a".repeat(64)), &[0; 50]);
    assert_eq!(world.scan().unused_bytes, Bytes(0), "what uses it nobody knows");
    insta::assert_snapshot!(world.shown(), @r"
    org/m other unreadable `0123456789abcdef0123456789abcdef01234567` has a folder that cannot be listed
    org/n other unreadable `0123456789abcdef0123456789abcdef01234567` has a folder that cannot be listed
    `HOME/hub/models--org--m/snapshots/0123456789abcdef0123456789abcdef01234567` cannot be listed: Too many levels of symbolic links (os error 40)
    `HOME/hub/models--org--n/snapshots` cannot be listed: Too many levels of symbolic links (os error 40)
    ");
}

#[test]
fn repositories_and_revisions_behind_links_are_seen_and_counted_once() {
    let world = World::new();
    let hub = |inside: &str| world.path(&format!("hub/{inside}"));
    world.cached("org/linked", "m-Q8_0.gguf", &"a".repeat(64), &llama());
    fs::create_dir(world.path("disk2")).unwrap();
    let behind = world.path("disk2/models--org--linked");
    fs::rename(hub("models--org--linked"), &behind).unwrap();
    for name in ["linked", "renamed"] {
        symlink(&behind, hub(&format!("models--org--{name}"))).unwrap();
    }
    world.write("disk2/revision/m-Q4_0.gguf", &llama());
    world.write("hub/models--org--moved/refs/main", COMMIT.as_bytes());
    fs::create_dir(hub("models--org--moved/snapshots")).unwrap();
    symlink(world.path("disk2/revision"), hub(&format!("models--org--moved/snapshots/{COMMIT}")))
        .unwrap();
    symlink("models--org--self", hub("models--org--self")).unwrap();
    insta::assert_snapshot!(world.shown(), @r"
    org/linked:Q8_0 chat whole
    org/moved:Q4_0 chat whole
    org/renamed:Q8_0 chat whole
    `HOME/hub/models--org--self` cannot be listed: Too many levels of symbolic links (os error 40)
    ");
    let size = u64::try_from(llama().len()).unwrap();
    let found = world.scan();
    assert_eq!((found.size_bytes, found.unused_bytes), (Bytes(2 * size), Bytes(0)));
}

#[test]
fn names_that_share_a_file_are_all_shown() {
    let world = World::new();
    let digest = "d".repeat(64);
    let layer = |what: &str, digest: &str, size: usize| {
        json!({ "size": size,
        "mediaType": format!("application/vnd.ollama.image.{what}"), "digest": format!("sha256:{digest}") })
    };
    let weights = layer("model", &digest, llama().len());
    let manifest = |name: &str, layers: &[&Value]| {
        let path = format!("ollama/manifests/registry.ollama.ai/library/{name}");
        world.write(&path, json!({ "layers": layers }).to_string().as_bytes());
    };
    manifest("tiny/8b", &[&weights]);
    manifest("tiny/latest", &[&weights]);
    manifest("tinylora/latest", &[&weights, &layer("adapter", &"e".repeat(64), 700)]);
    for name in ["gone/a", "gone/b"] {
        manifest(name, &[&layer("model", &"f".repeat(64), 900)]);
    }
    world.write(&format!("ollama/blobs/sha256-{digest}"), &llama());
    let shown = world.shown();
    let names = shown.lines().map(|line| line.split_once('`').map_or(line, |(name, _)| name));
    assert_eq!(
        names.map(str::trim_end).collect::<Vec<_>>(),
        [
            "gone:a other incomplete",
            "gone:b other incomplete",
            "tiny:8b chat whole",
            "tiny:latest chat whole",
            "tinylora:latest chat incomplete",
        ],
        "{shown}"
    );
    let found = world.scan();
    assert_eq!(found.size_bytes, Bytes(llama().len().try_into().unwrap()));
    let twice = [world.stores().0, world.stores().0].concat();
    let again = scan(&Stores(twice), &mut Headers::default(), &[]);
    assert_eq!(again.models, found.models, "another store with the same is none");
}

#[test]
fn a_first_pull_that_was_interrupted_is_known_without_the_network() {
    let world = World::new();
    let leaf = |size: u64, blob: &str| json!({ "size": size, "blob_id": blob, "lfs_sha256": blob, "lfs_size": size });
    let part = |number: u32| format!("m-Q8_0-0000{number}-of-00002.gguf");
    let files = json!({ part(1): leaf(5000, "a1"), part(2): leaf(600, "b2") });
    let source = |revision: Option<&str>| ModelSource::Hub {
        repo: "org/split-GGUF".to_owned(),
        quant: None,
        revision: revision.map(str::to_owned),
    };
    let told = |revision| {
        let lacking = lacking(&source(revision), &world.path("hub")).unwrap();
        (lacking.missing_bytes, lacking.message)
    };
    // Nothing has come yet.
    world.tree("org/split-GGUF", &files);
    insta::assert_snapshot!(told(None).1, @"model `org/split-GGUF` has to be downloaded (5.4 KiB): `m-Q8_0-00001-of-00002.gguf` is not there, and 1 more; fetch it with `slotd pull org/split-GGUF`");
    for (blob, size) in [("a1", 1000), ("b2", 100)] {
        let path = format!("hub/models--org--split-GGUF/blobs/{blob}.incomplete");
        world.write(&path, &vec![0; size]);
    }
    let (bytes, message) = told(None);
    assert_eq!(bytes, Some(Bytes(4000 + 500)));
    insta::assert_snapshot!(message, @"model `org/split-GGUF` has to be downloaded (4.3 KiB): `m-Q8_0-00001-of-00002.gguf` is not downloaded to its end: 1000 B of 4.8 KiB, and 1 more; fetch it with `slotd pull org/split-GGUF`");
    insta::assert_snapshot!(world.shown(), @"org/split-GGUF:Q8_0 chat incomplete `m-Q8_0-00001-of-00002.gguf` is not downloaded to its end: 1000 B of 4.8 KiB, and 1 more (4.3 KiB to fetch)");

    // A branch that names the commit: another revision is not known to be that one.
    world.write("hub/models--org--split-GGUF/refs/main", COMMIT.as_bytes());
    assert_eq!(told(Some("v2")).0, None);
    assert_eq!(told(None).0, Some(Bytes(4500)));
}

#[test]
fn a_whole_commit_is_not_taken_for_a_branch_that_was_never_fetched() {
    let world = World::new();
    let size = llama().len();
    world.cached("org/tiny", "m-Q8_0.gguf", "a1", &llama());
    world.tree(
        "org/tiny",
        &json!({ "m-Q8_0.gguf": { "size": size, "blob_id": "a1", "lfs_sha256": "a1", "lfs_size": size } }),
    );
    fs::remove_file(world.path("hub/models--org--tiny/refs/main")).unwrap();
    let source = ModelSource::Hub { repo: "org/tiny".to_owned(), quant: None, revision: None };
    let lacking = lacking(&source, &world.path("hub")).unwrap();
    assert_eq!((lacking.missing, lacking.missing_bytes), (Vec::new(), None));
}

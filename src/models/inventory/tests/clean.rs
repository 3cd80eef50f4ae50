//! What `slotd models clean` takes, and what it leaves where it cannot know.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::*;

const WEEK: Duration = Duration::from_hours(7 * 24);

/// The planned removals of a kind, by what is shown of them.
fn of_kind<'a>(shown: &'a str, kind: &str) -> Vec<&'a str> {
    shown.lines().filter(|line| line.split(' ').next() == Some(kind)).collect()
}

#[test]
fn a_repository_that_was_not_seen_whole_keeps_its_blobs_and_revisions() {
    let closed = "e".repeat(40);
    let detached = "f".repeat(40);
    // What leads to itself can be looked at by nobody, `root` neither.
    for (inside, target) in [
        (format!("snapshots/{closed}"), closed.as_str()),
        (format!("snapshots/{closed}"), "/nowhere/at/all"),
        (format!("snapshots/{detached}/deep"), "deep"),
        ("refs/v1".to_owned(), "v1"),
    ] {
        let world = World::new();
        let (_, holder) = littered(&world);
        drop(holder);
        let whole = planned(&world, WEEK, Revisions::Go, &[]).0;
        assert_eq!((of_kind(&whole, "blob").len(), of_kind(&whole, "revision").len()), (2, 1));
        symlink(target, world.path(&format!("{REPO}/{inside}"))).unwrap();
        let (shown, plan) = planned(&world, WEEK, Revisions::Go, &[]);
        assert!(of_kind(&shown, "blob").is_empty(), "{inside}: {shown}");
        assert!(of_kind(&shown, "revision").is_empty(), "{inside}: {shown}");
        assert_eq!(of_kind(&shown, "partial").len(), 3, "{inside}: {shown}");
        let kept = "`HOME/hub/models--org--tiny` keeps its blobs and revisions: not all of it could be looked at";
        assert!(shown.lines().any(|line| line == kept), "{inside}: {shown}");
        for removal in &plan.removals {
            remove(removal).unwrap();
        }
        let left = fs::read_dir(world.path(&format!("{REPO}/blobs"))).unwrap().count();
        assert_eq!(left, 3, "{inside}: {shown}");
    }
}

#[test]
fn a_blob_that_a_revision_behind_a_link_uses_stays() {
    let world = World::new();
    drop(littered(&world));
    let at = |inside: &str| world.path(&format!("{REPO}/{inside}"));
    fs::create_dir(at("elsewhere")).unwrap();
    let behind = format!("elsewhere/{COMMIT}");
    fs::rename(at(&format!("snapshots/{COMMIT}")), at(&behind)).unwrap();
    fs::remove_dir_all(at(&format!("snapshots/{}", "f".repeat(40)))).unwrap();
    symlink(format!("../{behind}"), at(&format!("snapshots/{COMMIT}"))).unwrap();
    let shown = planned(&world, WEEK, Revisions::Stay, &[]).0;
    let blobs = of_kind(&shown, "blob");
    assert!(blobs.len() == 2 && !blobs.iter().any(|blob| blob.ends_with("/USED")), "{shown}");
}

#[test]
fn nothing_goes_of_a_repository_behind_a_link() {
    for part in ["", "/blobs", "/refs", "/snapshots"] {
        let world = World::new();
        drop(littered(&world));
        let (inside, outside) = (world.path(&format!("{REPO}{part}")), world.path("other-disk"));
        fs::rename(&inside, &outside).unwrap();
        symlink(&outside, &inside).unwrap();
        let (shown, plan) = planned(&world, WEEK, Revisions::Go, &[]);
        let in_repo = plan.removals.iter().filter(|it| it.path.starts_with(world.path(REPO)));
        assert_eq!(in_repo.count(), 0, "{shown}");
        let kept = "`HOME/hub/models--org--tiny` is left alone: a link leads out of it";
        assert!(shown.lines().any(|line| line == kept), "{shown}");
    }
}

#[test]
fn what_a_refused_pull_leaves_goes() {
    let world = World::new();
    let lock = "hub/.locks/models--org--nope/slotd.lock";
    let text = b"4194305 slotd\n";
    world.write(lock, text);
    for folder in ["nope/blobs", "nope/refs/refs/pr", "note/blobs", "begun/blobs"] {
        fs::create_dir_all(world.path(&format!("hub/models--org--{folder}"))).unwrap();
    }
    world.write(&format!("hub/models--org--nope/trees/{COMMIT}.json"), b"{}");
    world.write("hub/models--org--note/NOTES", b"mine");
    world.write("hub/.locks/models--org--note/other.lock", b"some program's own words");
    let replan = || planned(&world, WEEK, Revisions::Stay, &[]);
    let (shown, plan) = replan();
    insta::assert_snapshot!(shown, @r"
    repository 0 HOME/hub/models--org--begun
    repository 2 HOME/hub/models--org--nope
    lock 14 HOME/hub/.locks/models--org--nope/slotd.lock
    ");
    let young = planned(&world, Duration::from_secs(1 << 40), Revisions::Stay, &[]).1;
    assert!(young.removals.is_empty(), "{young:?}");

    // Since it was looked at: somebody has begun a download, somebody pulls.
    let begun = "hub/models--org--begun/blobs/x.incomplete";
    world.write(begun, b"beginning");
    let holder = fs::File::open(world.path(lock)).unwrap();
    fs2::FileExt::lock_exclusive(&holder).unwrap();
    for removal in &plan.removals {
        assert!(remove(removal).is_err(), "{removal:?}");
    }
    assert_eq!(fs::read(world.path(begun)).unwrap(), b"beginning");
    assert_eq!(fs::read(world.path(lock)).unwrap(), text);
    insta::assert_snapshot!(replan().0, @r"
    partial 9 HOME/hub/models--org--begun/blobs/x.incomplete
    repository 2 HOME/hub/models--org--nope
    `HOME/hub/.locks/models--org--nope/slotd.lock` stays: somebody holds it
    ");

    drop(holder);
    for removal in &replan().1.removals {
        remove(removal).unwrap();
    }
    assert!(!world.path("hub/models--org--nope").exists() && !world.path(lock).exists());
    assert!(world.path("hub/models--org--note/NOTES").exists());
}

#[test]
fn a_name_that_is_no_utf_8_is_planned_shown_and_removed() {
    let world = World::new();
    fs::create_dir(world.path("models")).unwrap();
    let path = world.path("models").join(OsStr::from_bytes(b"caf\xe9.gguf.part"));
    fs::write(&path, [0; 40]).unwrap();
    let plan = planned(&world, WEEK, Revisions::Stay, &[]).1;
    let shown = serde_json::to_value(&plan).unwrap();
    let named = shown["removals"][0]["path"].as_str().unwrap();
    assert!(named.ends_with("models/caf\u{fffd}.gguf.part"), "{named}");
    remove(&plan.removals[0]).unwrap();
    assert!(!path.exists());
}

//! A bad edit keeps the old profile, and is reported once.

use std::{collections::BTreeMap, fs, sync::Arc};

use super::{super::Keeper, Folder};
use crate::spec::{SlotName, profile::Profile};

const GOOD: &str = "model = 'a.gguf'\n";
const BETTER: &str = "model = 'b.gguf'\n";

fn model(profiles: &BTreeMap<SlotName, Arc<Profile>>, slot: &str) -> Option<String> {
    Some(profiles.get(slot)?.model.as_ref()?.typed())
}

#[test]
fn a_bad_edit_keeps_the_profile_that_worked() {
    let folder = Folder::with(&[("chat.toml", GOOD), ("code.toml", GOOD)]);
    let mut keeper = Keeper::default();
    assert_eq!(keeper.apply(folder.load()), []);

    folder.write("chat.toml", "model = 'b.ggu");
    assert_eq!(keeper.apply(folder.load()).len(), 1);
    assert_eq!(model(keeper.profiles(), "chat").as_deref(), Some("a.gguf"));

    folder.write("chat.toml", BETTER);
    assert_eq!(keeper.apply(folder.load()), []);
    assert_eq!(model(keeper.profiles(), "chat").as_deref(), Some("b.gguf"));
    assert_eq!(keeper.faults(), []);
}

#[test]
fn a_bad_edit_is_reported_once_for_each_content() {
    let folder = Folder::with(&[("chat.toml", "contxt = 1\n")]);
    let mut keeper = Keeper::default();
    let news = keeper.apply(folder.load());
    assert_eq!(news.len(), 2, "the key, and the missing model");
    assert_eq!(keeper.apply(folder.load()), [], "the same content again");
    assert_eq!(keeper.faults(), news, "but it still stands");

    folder.write("chat.toml", "contxt = 2\n");
    assert_eq!(keeper.apply(folder.load()).len(), 2, "another edit, the same mistake");

    folder.write("code.toml", GOOD);
    assert_eq!(keeper.apply(folder.load()), [], "an edit elsewhere");
}

#[test]
fn a_file_that_is_gone_takes_its_profile_with_it() {
    let folder = Folder::with(&[("chat.toml", GOOD), ("code.toml", GOOD)]);
    let mut keeper = Keeper::default();
    keeper.apply(folder.load());
    folder.remove("chat.toml");
    keeper.apply(folder.load());
    assert_eq!(model(keeper.profiles(), "chat"), None);
    assert!(model(keeper.profiles(), "code").is_some());
}

#[test]
fn what_did_not_change_is_the_same_value() {
    let folder = Folder::with(&[("chat.toml", GOOD), ("code.toml", GOOD)]);
    let mut keeper = Keeper::default();
    keeper.apply(folder.load());
    let before = keeper.profiles().clone();
    folder.write("chat.toml", &format!("# a remark\n{GOOD}"));
    folder.write("code.toml", BETTER);
    keeper.apply(folder.load());
    assert!(Arc::ptr_eq(&before["chat"], &keeper.profiles()["chat"]));
    assert!(!Arc::ptr_eq(&before["code"], &keeper.profiles()["code"]));
}

#[test]
fn a_directory_that_cannot_be_read_takes_nothing_away() {
    let folder = Folder::with(&[("profiles/chat.toml", GOOD)]);
    let mut keeper = Keeper::default();
    let load = || super::load(&[folder.path("profiles")], &super::Context::default());
    keeper.apply(load());
    fs::rename(folder.path("profiles"), folder.path("moved")).unwrap();
    assert_eq!(keeper.apply(load()).len(), 1);
    assert!(model(keeper.profiles(), "chat").is_some());
}

#[test]
fn a_second_file_for_a_slot_changes_nothing() {
    let folder = Folder::with(&[("one/chat.toml", GOOD), ("two/code.toml", GOOD)]);
    let mut keeper = Keeper::default();
    let load =
        || super::load(&[folder.path("one"), folder.path("two")], &super::Context::default());
    keeper.apply(load());
    folder.write("two/chat.toml", BETTER);
    assert_eq!(keeper.apply(load()).len(), 2);
    assert_eq!(model(keeper.profiles(), "chat").as_deref(), Some("a.gguf"));
}

#[test]
fn a_name_leads_to_one_slot_also_while_a_bad_edit_stands() {
    let with = |alias: &str| format!("{GOOD}aliases = ['{alias}']\n");
    let folder = Folder::with(&[("old.toml", &with("default")), ("other.toml", &with("chat"))]);
    let mut keeper = Keeper::default();
    keeper.apply(folder.load());
    // `old` is broken and another file takes its alias; a slot appears with the name of an alias.
    folder.write("old.toml", "model = ");
    folder.write("new.toml", &with("default"));
    folder.write("chat.toml", GOOD);
    keeper.apply(folder.load());
    let aliases = |slot: &str| keeper.profiles()[slot].aliases.clone();
    assert_eq!(aliases("new"), ["default"]);
    assert_eq!(aliases("old"), Vec::<String>::new());
    assert_eq!(aliases("other"), Vec::<String>::new());
    assert!(keeper.profiles().contains_key("chat"));
}

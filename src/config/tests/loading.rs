//! Whole directories.

use std::{fs, os::unix::fs::symlink};

use insta::assert_snapshot;

use super::{super::validate, Context, Folder, load, read, shown};
use crate::spec::{
    SlotName,
    profile::{Capability, EngineChoice, ModelSource},
};

const GOOD: &str = "model = 'a.gguf'\n";

#[test]
fn one_line_is_a_whole_profile() {
    let profile = read(GOOD).profile.expect("one line is enough");
    assert_eq!(profile.engine, EngineChoice::Auto);
    assert_eq!(profile.max_restarts, 5);
    assert_eq!(profile.start_timeout.as_secs(), 600);
    assert_eq!(profile.stop_timeout.as_secs(), 10);
    assert_eq!(profile.hang_timeout.map(|time| time.as_secs()), Some(60));
    assert_eq!(profile.idle_timeout, None);
    assert!(!profile.autostart && !profile.essential);
    assert!(profile.offers(Capability::Embed));
}

#[test]
fn every_key_reaches_the_profile() {
    let text = r#"
engine = "command"
model = "org/repo:Q4_K_M"
command = ["vllm", "serve", "{model}", "--port", "{port}"]
args = ["--seed", "1"]
env = { CUDA_VISIBLE_DEVICES = "0", EMPTY = "" }
aliases = ["gpt-4o-mini", "org/repo:latest"]
capabilities = ["embed", "chat", "embed"]
parallel = 4
autostart = true
essential = true
max_restarts = 0
start_timeout = "90s"
stop_timeout = "0s"
hang_timeout = "off"
idle_timeout = "5m"
"#;
    let profile = read(text).profile.expect("the text is good");
    let hub =
        ModelSource::Hub { repo: "org/repo".into(), quant: Some("Q4_K_M".into()), revision: None };
    assert_eq!(profile.model, Some(hub));
    assert!(matches!(&profile.engine, EngineChoice::Command(argv) if argv.len() == 5));
    assert_eq!(profile.args, ["--seed", "1"]);
    assert_eq!(profile.env.get("CUDA_VISIBLE_DEVICES").map(String::as_str), Some("0"));
    assert_eq!(profile.env.get("EMPTY").map(String::as_str), Some(""));
    assert_eq!(profile.aliases, ["gpt-4o-mini", "org/repo:latest"]);
    assert_eq!(profile.capabilities, [Capability::Embed, Capability::Chat]);
    assert_eq!((profile.parallel, profile.max_restarts), (Some(4), 0));
    assert!(profile.autostart && profile.essential);
    assert_eq!(profile.start_timeout.as_secs(), 90);
    assert_eq!(profile.stop_timeout.as_secs(), 0);
    let timeouts = [profile.hang_timeout, profile.idle_timeout];
    assert_eq!(timeouts.map(|time| time.map(|time| time.as_secs())), [None, Some(300)]);
}

#[test]
fn only_profiles_directly_inside_count() {
    let folder = Folder::with(&[
        ("chat.toml", GOOD),
        (".hidden.toml", "x"),
        ("chat.toml~", "x"),
        ("deeper/other.toml", "x"),
        ("README.md", "x"),
    ]);
    let loaded = folder.load();
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.profiles.keys().map(SlotName::as_str).collect::<Vec<_>>(), ["chat"]);
    assert_eq!(loaded.profiles["chat"].source, folder.path("chat.toml"));
}

#[test]
fn a_file_with_a_fault_contributes_nothing_and_the_others_do() {
    let folder = Folder::with(&[("bad.toml", "context = 4096\n"), ("good.toml", GOOD)]);
    let loaded = folder.load();
    assert_eq!(loaded.profiles.len(), 1);
    assert_eq!(loaded.faults.len(), 1);
}

#[test]
fn a_missing_directory_is_a_fault_and_an_empty_one_is_not() {
    let folder = Folder::with(&[]);
    assert!(folder.load().faults.is_empty());
    let loaded = load(&[folder.path("none")], &Context::default());
    assert_snapshot!(
        shown(&loaded.faults).replace(&folder.path("").display().to_string(), "/etc/"),
        @r#"
    /etc/none: there is no such directory of profiles
      hint: make it with `mkdir -p /etc/none`, or name another
    "#
    );
}

#[test]
fn names_that_collide_between_files_are_refused() {
    let folder = Folder::with(&[
        ("a.toml", "model = 'a.gguf'\naliases = ['default', 'c']"),
        ("b.toml", "model = 'a.gguf'\naliases = ['default']"),
        ("c.toml", GOOD),
        ("d.toml", "model = ''\naliases = ['x']"),
        ("e.toml", "model = 'a.gguf'\naliases = ['x']"),
    ]);
    let loaded = folder.load();
    assert_eq!(loaded.profiles.keys().map(SlotName::as_str).collect::<Vec<_>>(), ["c"]);
    assert_snapshot!(folder.shown(&loaded.faults), @r#"
    a.toml:2:12: aliases[0]: `default` is an alias in b.toml too
      hint: a name leads to one slot: take it out of one file, or make it one of `routes` in each
    a.toml:2:23: aliases[1]: `c` is the name of the slot of c.toml
      hint: a name leads to one slot: take it out of one file, or make it one of `routes` in each
    b.toml:2:12: aliases[0]: `default` is an alias in a.toml too
      hint: a name leads to one slot: take it out of one file, or make it one of `routes` in each
    d.toml:1:9: model: cannot be empty
      hint: write what is meant between the quotes, or take it out
    d.toml:2:12: aliases[0]: `x` is an alias in e.toml too
      hint: a name leads to one slot: take it out of one file, or make it one of `routes` in each
    e.toml:2:12: aliases[0]: `x` is an alias in d.toml too
      hint: a name leads to one slot: take it out of one file, or make it one of `routes` in each
    "#);
}

#[test]
fn one_slot_has_one_profile() {
    let folder = Folder::with(&[("one/chat.toml", GOOD), ("two/chat.toml", GOOD)]);
    let loaded = load(&[folder.path("one"), folder.path("two")], &Context::default());
    assert!(loaded.profiles.is_empty());
    assert_snapshot!(folder.shown(&loaded.faults), @r#"
    one/chat.toml: the slot `chat` has a second profile, two/chat.toml
      hint: keep one of the two, or rename one: neither is used
    two/chat.toml: the slot `chat` has a second profile, one/chat.toml
      hint: keep one of the two, or rename one: neither is used
    "#);
}

#[test]
fn a_directory_named_twice_is_read_once() {
    let folder = Folder::with(&[("one/chat.toml", GOOD)]);
    symlink(folder.path("one"), folder.path("two")).unwrap();
    let loaded = load(&[folder.path("one"), folder.path("two")], &Context::default());
    assert_eq!((loaded.profiles.len(), loaded.faults.len()), (1, 0));
}

#[test]
fn the_name_of_the_file_is_the_name_of_the_slot() {
    let folder = Folder::with(&[
        ("my model.toml", GOOD),
        ("slotd.toml", GOOD),
        (&format!("{}.toml", "x".repeat(49)), GOOD),
    ]);
    let loaded = folder.load();
    assert!(loaded.profiles.is_empty());
    assert_snapshot!(folder.shown(&loaded.faults), @r#"
    my model.toml: the file's name is the slot's name: a slot name is made of `a-z A-Z 0-9 . _ -` and starts with a letter or digit, ` ` does not fit
      hint: rename the file, to `my-model.toml` say
    slotd.toml: is the name of the daemon's own file, not of a profile
      hint: rename it; the daemon's own `slotd.toml` stands outside
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.toml: the file's name is the slot's name: a slot name has at most 48 bytes, this one has 49
      hint: rename the file, to `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.toml` say
    "#);
}

#[test]
fn what_is_no_readable_text_is_refused() {
    let folder = Folder::with(&[]);
    fs::write(folder.path("latin.toml"), b"# caf\xe9\nmodel = 'a.gguf'").unwrap();
    symlink("/nowhere/at/all", folder.path("link.toml")).unwrap();
    fs::create_dir(folder.path("folder.toml")).unwrap();
    assert_snapshot!(folder.shown(&folder.load().faults), @r#"
    folder.toml: is not a regular file
      hint: rename it, or move it out of the profiles directory
    latin.toml:1:6: is not UTF-8 text
      hint: save it as UTF-8
    link.toml: cannot read the file: no such file or directory
      hint: check the name; a link may lead nowhere
    "#);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_fine() {
    assert!(read("\u{feff}model = 'a.gguf'\r\ncontext = 512\r\n").profile.is_some());
}

#[test]
fn a_file_beside_the_profile_wins_over_the_hub() {
    let folder = Folder::with(&[("a.toml", "model = 'org/model'\n"), ("org/model", "")]);
    let loaded = folder.load();
    assert!(matches!(&loaded.profiles["a"].model, Some(ModelSource::File { .. })));
}

#[test]
fn a_person_can_name_files_and_directories() {
    let folder = Folder::with(&[
        ("profiles/a.toml", GOOD),
        ("b.toml", "contxt = 1"),
        ("slotd.toml", "tls_key = 'key.pem'\nmodel = 'x'\nmax_body = '1GB'"),
        ("notes.txt", ""),
    ]);
    let named =
        ["profiles", "profiles/a.toml", "b.toml", "slotd.toml", "notes.txt", "none.toml", "none"]
            .map(|name| folder.path(name));
    let found = validate(&named, &Context::default());
    assert_eq!(found.profiles.len(), 1);
    assert_snapshot!(folder.shown(&found.faults), @r#"
    b.toml: model: missing, a profile names its model
      hint: add `model = "FILE.gguf"` or `model = "org/repo:QUANT"`
    b.toml:1:1: contxt: unknown key
      hint: did you mean `context`?
    none: there is no such directory of profiles
      hint: make it with `mkdir -p none`, or name another
    none.toml: cannot read the file: no such file or directory
      hint: check the name; a link may lead nowhere
    notes.txt: is not named `NAME.toml`
      hint: rename it: `NAME.toml` describes the slot `NAME`
    slotd.toml: tls_cert: missing, `tls_key` is of no use without it
      hint: name both, or none for plain HTTP
    slotd.toml:2:1: model: unknown key
      hint: `model` is a key of a profile, a `NAME.toml` in a profiles directory
    slotd.toml:3:12: max_body: `1GB` has no unit that is known, use one of `B`, `KiB`, `MiB`, `GiB`, `TiB`
      hint: write a whole number and a unit: `"32MiB"`, `"1GiB"`
    "#);
}

#[test]
fn parameters_come_as_json_and_a_variant_is_an_alias() {
    let text = "model = 'a.gguf'\naliases = ['other']\n[params]\nstrip = ['logprobs']\ndefault = { temperature = 0.2, top_k = 0x10 }\n[variants.\"org/fast:1\"]\nset = { stop = ['a', 'b'], chat_template_kwargs = { enable_thinking = false } }\n";
    let profile = read(text).profile.unwrap_or_else(|| panic!("{}", super::faults(text)));
    assert_eq!(profile.aliases, ["other", "org/fast:1"]);
    let params = profile.requests.params_of(Some("org/fast:1")).unwrap();
    let told = serde_json::to_string(&params).unwrap();
    assert_eq!(
        told,
        r#"{"default":{"temperature":0.2,"top_k":16},"set":{"chat_template_kwargs":{"enable_thinking":false},"stop":["a","b"]},"strip":["logprobs"]}"#
    );
    assert_eq!(profile.requests.params_of(Some("other")), Some(profile.requests.params.clone()));
    let bare = read("model = 'a.gguf'").profile.unwrap();
    assert_eq!(bare.requests.params_of(Some("other")), None);
}

//! Flags, the daemon's file, variables and the home directory, in this order.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use insta::assert_snapshot;

use super::{
    super::daemon::{Flags, LogFormat, Settings},
    Folder, shown,
};
use crate::spec::Bytes;

fn resolve(flags: &Flags, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let variables: BTreeMap<_, _> = variables.iter().copied().collect();
    let environment = |name: &str| variables.get(name).map(OsString::from);
    Settings::resolve(flags, &environment).map_err(|faults| shown(&faults))
}

fn settings(flags: &Flags, variables: &[(&str, &str)]) -> Settings {
    resolve(flags, variables).unwrap_or_else(|faults| panic!("{faults}"))
}

const HOME: (&str, &str) = ("HOME", "/nowhere/ada");

#[test]
fn a_home_directory_is_enough() {
    let settings = settings(&Flags::default(), &[HOME]);
    assert_eq!(settings.file, None);
    assert_eq!(settings.listen.to_string(), "127.0.0.1:7568");
    assert_eq!(settings.profile_dirs, [PathBuf::from("/nowhere/ada/.config/slotd/profiles")]);
    assert_eq!(settings.state_dir, PathBuf::from("/nowhere/ada/.local/state/slotd"));
    assert_eq!(settings.runtime_dir, PathBuf::from("/nowhere/ada/.local/state/slotd/run"));
    assert_eq!(settings.control, settings.runtime_dir.join("control.sock"));
    assert_eq!(settings.cache_dir, PathBuf::from("/nowhere/ada/.cache/slotd"));
    assert_eq!(settings.model_dirs, [PathBuf::from("/nowhere/ada/.cache/slotd/models")]);
    assert_eq!((settings.queue_limit, settings.queue_timeout.as_secs()), (256, 290));
    assert_eq!((settings.max_body, settings.log_format), (Bytes(32 << 20), LogFormat::Text));
    assert_eq!(settings.context().home, Some("/nowhere/ada".into()));
}

#[test]
fn the_desktop_comes_before_the_home_directory_and_the_service_manager_before_both() {
    let desktop = [
        HOME,
        ("XDG_CONFIG_HOME", "/x/config"),
        ("XDG_STATE_HOME", "/x/state"),
        ("XDG_CACHE_HOME", "relative/is/ignored"),
        ("XDG_RUNTIME_DIR", "/run/user/7"),
    ];
    let of_desktop = settings(&Flags::default(), &desktop);
    assert_eq!(of_desktop.profile_dirs, [PathBuf::from("/x/config/slotd/profiles")]);
    assert_eq!(of_desktop.state_dir, PathBuf::from("/x/state/slotd"));
    assert_eq!(of_desktop.cache_dir, PathBuf::from("/nowhere/ada/.cache/slotd"));
    assert_eq!(of_desktop.control, PathBuf::from("/run/user/7/slotd/control.sock"));

    let mut service = desktop.to_vec();
    service.extend([
        ("CONFIGURATION_DIRECTORY", "/etc/slotd:/etc/other"),
        ("STATE_DIRECTORY", "/var/lib/slotd"),
        ("CACHE_DIRECTORY", "/var/cache/slotd"),
        ("RUNTIME_DIRECTORY", "/run/slotd"),
    ]);
    let of_service = settings(&Flags::default(), &service);
    assert_eq!(of_service.profile_dirs, [PathBuf::from("/etc/slotd/profiles")]);
    assert_eq!(of_service.state_dir, PathBuf::from("/var/lib/slotd"));
    assert_eq!(of_service.cache_dir, PathBuf::from("/var/cache/slotd"));
    assert_eq!(of_service.control, PathBuf::from("/run/slotd/control.sock"));
}

#[test]
fn flags_come_before_the_file_and_the_file_before_variables() {
    let folder = Folder::with(&[(
        "slotd.toml",
        "listen = 'localhost:1'\nprofiles = ['mine', '~/more']\nstate_dir = '/file/state'\n\
         model_dirs = ['models']\nllama_server = '/opt/llama-server'\nqueue_limit = 3\n\
         queue_timeout = '5s'\nmax_body = '1MiB'\nlog_format = 'json'\n",
    )]);
    let flags = Flags { config: Some(folder.path("slotd.toml")), ..Flags::default() };
    let variables =
        [HOME, ("STATE_DIRECTORY", "/var/lib/slotd"), ("XDG_RUNTIME_DIR", "/run/user/7")];
    let of_file = settings(&flags, &variables);
    assert_eq!(of_file.listen.to_string(), "127.0.0.1:1");
    assert_eq!(of_file.profile_dirs, [folder.path("mine"), "/nowhere/ada/more".into()]);
    assert_eq!(of_file.state_dir, PathBuf::from("/file/state"));
    assert_eq!(of_file.runtime_dir, PathBuf::from("/file/state/run"));
    let models = [folder.path("models"), "/nowhere/ada/.cache/slotd/models".into()];
    assert_eq!(of_file.model_dirs, models);
    assert_eq!(of_file.llama_server, Some("/opt/llama-server".into()));
    assert_eq!((of_file.queue_limit, of_file.queue_timeout.as_secs()), (3, 5));
    assert_eq!((of_file.max_body, of_file.log_format), (Bytes(1 << 20), LogFormat::Json));

    let flags = Flags {
        profiles: vec!["/flag/profiles".into()],
        state_dir: Some("/flag/state".into()),
        listen: Some("[::1]:0".into()),
        control: Some("/flag/control".into()),
        ..flags
    };
    let of_flags = settings(&flags, &variables);
    assert_eq!(of_flags.listen.to_string(), "[::1]:0");
    assert_eq!(of_flags.profile_dirs, [PathBuf::from("/flag/profiles")]);
    assert_eq!(of_flags.state_dir, PathBuf::from("/flag/state"));
    assert_eq!(of_flags.control, PathBuf::from("/flag/control"));
}

#[test]
fn the_file_is_found_where_the_configuration_is() {
    let folder = Folder::with(&[("slotd/slotd.toml", "queue_limit = 7\n")]);
    let config = folder.path("").display().to_string();
    let found = settings(&Flags::default(), &[HOME, ("XDG_CONFIG_HOME", &config)]);
    assert_eq!(found.queue_limit, 7);
    assert_eq!(found.file, Some(folder.path("slotd/slotd.toml")));
}

#[test]
fn the_control_socket_can_be_named_by_a_variable() {
    let of = |flags: &Flags| settings(flags, &[HOME, ("SLOTD_CONTROL", "/run/c.sock")]).control;
    assert_eq!(of(&Flags::default()), PathBuf::from("/run/c.sock"));
    let flag = Flags { control: Some("/flag".into()), ..Flags::default() };
    assert_eq!(of(&flag), PathBuf::from("/flag"));
}

#[test]
fn relative_flags_start_in_the_working_directory() {
    let flags = Flags { state_dir: Some("state".into()), ..Flags::default() };
    assert!(settings(&flags, &[HOME]).state_dir.is_absolute());
}

#[test]
fn every_fault_of_flags_file_and_environment_comes_at_once() {
    let folder = Folder::with(&[(
        "slotd.toml",
        "listen = '0.0.0.0'\nollama_listen = 'x'\nqueue_limt = 1\nmax_body = '32MB'\nlog_format = 'jsn'\n\
         profiles = 'here'\nstate_dir = '~/x'\naliases = []",
    )]);
    let flags = Flags {
        config: Some(folder.path("slotd.toml")),
        listen: Some("7568".into()),
        control: Some(format!("/{}", "x".repeat(107)).into()),
        ..Flags::default()
    };
    let faults = resolve(&flags, &[]).unwrap_err();
    assert_snapshot!(faults.replace(&folder.path("").display().to_string(), ""), @r#"
    slotd.toml:1:10: listen: `0.0.0.0` is not an address and a port
      hint: write `127.0.0.1:7568`; port 0 picks a free one
    slotd.toml:2:17: ollama_listen: `x` is not an address and a port
      hint: write `127.0.0.1:11434`; port 0 picks a free one
    slotd.toml:3:1: queue_limt: unknown key
      hint: did you mean `queue_limit`?
    slotd.toml:4:12: max_body: `32MB` has no unit that is known, use one of `B`, `KiB`, `MiB`, `GiB`, `TiB`
      hint: write a whole number and a unit: `"32MiB"`, `"1GiB"`
    slotd.toml:5:14: log_format: `jsn` is not one of `text`, `json`
      hint: did you mean `json`?
    slotd.toml:6:12: profiles: expected an array of strings, found a string
      hint: put it in brackets: `profiles = ['here']`
    slotd.toml:7:13: state_dir: `~/x` starts in a home directory, and there is none
      hint: write the whole path, or set `HOME`
    slotd.toml:8:1: aliases: unknown key
      hint: `aliases` is a key of a profile, a `NAME.toml` in a profiles directory
    --listen: `7568` is not an address and a port
      hint: write `127.0.0.1:7568`; port 0 picks a free one
    --state-dir: no place is known for state
      hint: set `--state-dir`, or `HOME`
    XDG_CACHE_HOME: no place is known for models and engines
      hint: set `XDG_CACHE_HOME`, or `HOME`
    --profiles: no place is known for profiles
      hint: set `--profiles`, or `HOME`
    "#);
    let homed = resolve(&Flags { config: None, ..flags }, &[HOME]).unwrap_err();
    assert_snapshot!(homed.replace(&"x".repeat(107), "…"), @r#"
    --listen: `7568` is not an address and a port
      hint: write `127.0.0.1:7568`; port 0 picks a free one
    --control: `/…` has 108 bytes, the path of a socket has at most 107
      hint: choose a shorter `--control`, or a shorter runtime or state directory
    "#);
}

#[test]
fn a_file_that_was_named_has_to_be_there() {
    let flags = Flags { config: Some("/nowhere/slotd.toml".into()), ..Flags::default() };
    assert_snapshot!(resolve(&flags, &[HOME]).unwrap_err(), @r#"
    /nowhere/slotd.toml: cannot read the file: no such file or directory
      hint: check the name; a link may lead nowhere
    "#);
}

#[test]
fn what_is_wrong_with_the_fall_through_is_told_with_its_place() {
    let folder = Folder::with(&[(
        "slotd.toml",
        "[fall_through]\nurl = 'api.example'\napi_key = 'sk-x'\ntimeout = '0s'\nmodels = ['a*b', 'c']",
    )]);
    let flags = Flags { config: Some(folder.path("slotd.toml")), ..Flags::default() };
    let faults = resolve(&flags, &[HOME]).unwrap_err();
    assert_snapshot!(faults.replace(&folder.path("").display().to_string(), ""), @r#"
    slotd.toml:2:7: fall_through.url: `api.example` is neither `https://…` nor `http://…`
      hint: write the base URL as clients are given it: `https://api.openai.com/v1`
    slotd.toml:3:1: fall_through.api_key: unknown key
      hint: write the key into a file of its own (mode 600) and name it: `key_file = "…"`
    slotd.toml:4:11: fall_through.timeout: `0s` is out of range, expected 1s..=1d
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    slotd.toml:5:11: fall_through.models[0]: `a*b` is no name of a model
      hint: `*` stands at the end of a name alone: `gpt-*`
    "#);
    let folder = Folder::with(&[("slotd.toml", "[fall_through]\nkey_file = 'k'")]);
    let flags = Flags { config: Some(folder.path("slotd.toml")), ..Flags::default() };
    let faults = resolve(&flags, &[HOME]).unwrap_err();
    assert_snapshot!(faults.replace(&folder.path("").display().to_string(), ""), @"
    slotd.toml:1:1: fall_through: has no `url`, which says where requests go
      hint: write the base URL as clients are given it: `https://api.openai.com/v1`
    ");
}

#[test]
fn a_fall_through_has_its_files_beside_the_daemons_own() {
    let text = "[fall_through]\nurl = 'https://api.example'\nkey_file = 'k'\nca_file = '~/ca.pem'";
    let folder = Folder::with(&[("slotd.toml", text)]);
    let flags = Flags { config: Some(folder.path("slotd.toml")), ..Flags::default() };
    let below = settings(&flags, &[HOME]).fall_through.unwrap();
    assert_eq!(below.key_file, Some(folder.path("k")));
    assert_eq!(below.ca_file, Some(PathBuf::from("/nowhere/ada/ca.pem")));
    assert_eq!((below.url.path.as_str(), below.timeout.as_secs()), ("/v1", 600));
}

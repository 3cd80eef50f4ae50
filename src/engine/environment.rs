//! The environment of an engine: an allow-list of the daemon's, then what the profile sets.

use std::{collections::BTreeMap, ffi::OsString};

/// Names that pass. Everything else stays with the daemon: its secrets, its sockets, its service
/// manager's variables, and what would change llama-server's options (`LLAMA_ARG_…`).
const NAMES: [&str; 8] =
    ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
/// Families of names that pass: drivers, device selection, thread counts.
const FAMILIES: [&str; 11] = [
    "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "GGML_", "MTL_", "METAL_", "VK_", "OMP_", "GOMP_",
];

/// Returns what an engine may see of the daemon's environment, and what slotd adds to it.
pub fn inherited(daemon: &[(OsString, OsString)]) -> BTreeMap<OsString, OsString> {
    let passing = daemon.iter().filter(|(name, _)| name.to_str().is_some_and(passes));
    let mut environment: BTreeMap<_, _> = passing.cloned().collect();
    // Without it ggml's abort forks a debugger onto the engine: slow, and odd lines in the log.
    environment.insert("GGML_NO_BACKTRACE".into(), "1".into());
    environment
}

/// Returns the environment for an engine. `daemon` is the daemon's own, `profile` wins over it.
pub fn for_engine(
    daemon: &[(OsString, OsString)],
    profile: &BTreeMap<String, String>,
) -> BTreeMap<OsString, OsString> {
    let mut environment = inherited(daemon);
    environment.extend(profile.iter().map(|(name, value)| (name.into(), value.into())));
    environment
}

fn passes(name: &str) -> bool {
    NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_the_service_managers_variables_stay_with_the_daemon() {
        let names = [
            "PATH",
            "HF_TOKEN",
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "WATCHDOG_USEC",
            "CREDENTIALS_DIRECTORY",
            "LLAMA_ARG_HOST",
            "CUDA_VISIBLE_DEVICES",
            "AWS_SECRET_ACCESS_KEY",
        ];
        let daemon = names.map(|name| (name.into(), "value".into()));
        let profile = BTreeMap::from([("LANG".to_owned(), "C".to_owned())]);
        let names: Vec<_> = for_engine(&daemon, &profile).into_keys().collect();
        assert_eq!(names, ["CUDA_VISIBLE_DEVICES", "GGML_NO_BACKTRACE", "LANG", "PATH"]);
    }

    #[test]
    fn the_profile_wins_over_the_daemon_and_over_slotd() {
        let daemon = [("OMP_NUM_THREADS".into(), "8".into())];
        let profile = ["OMP_NUM_THREADS", "GGML_NO_BACKTRACE"];
        let profile = profile.map(|name| (name.to_owned(), "0".to_owned())).into();
        assert!(for_engine(&daemon, &profile).values().all(|value| value == "0"));
    }
}

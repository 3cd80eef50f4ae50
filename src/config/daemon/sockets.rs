//! Paths of Unix sockets, which an address has little room for.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{Flags, directories::Environment, whole};
use crate::{
    config::fault::Fault,
    spec::{Generation, SlotName},
};

/// The longest path of a Unix socket, in bytes, without the NUL at its end.
/// Source: `sun_path` in `unix(7)` has 108 bytes, in macOS's `sys/un.h` 104.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The folder of the engines' sockets in the runtime directory.
pub(super) const ENGINES: &str = "engines";

/// Returns where the control API listens.
pub(super) fn control(
    flags: &Flags,
    runtime_dir: &Path,
    environment: Environment<'_>,
    faults: &mut Vec<Fault>,
) -> PathBuf {
    let (name, path) = match (&flags.control, environment("SLOTD_CONTROL")) {
        (Some(path), _) => ("--control", whole(path)),
        (None, Some(path)) if !path.is_empty() => ("SLOTD_CONTROL", whole(Path::new(&path))),
        (None, _) => ("control socket", runtime_dir.join("control.sock")),
    };
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        let message = format!(
            "`{}` has {length} bytes, the path of a socket has at most {MAX_SOCKET_PATH}",
            path.display()
        );
        let hint = "choose a shorter `--control`, or a shorter runtime or state directory";
        faults.push(Fault::of_flag(name, message).with_hint(hint));
    }
    path
}

/// Refuses a directory in which not even the shortest name of an engine's socket has room.
pub(super) fn no_room_for_engines(runtime_dir: &Path) -> Option<Fault> {
    let shortest = runtime_dir.join(ENGINES).join("0123456789abcdef.sock").as_os_str().len();
    if shortest <= MAX_SOCKET_PATH {
        return None;
    }
    let length = runtime_dir.as_os_str().len();
    let most = length - (shortest - MAX_SOCKET_PATH);
    let message = format!(
        "`{}` has {length} bytes, with the sockets of engines in it at most {most} are possible",
        runtime_dir.display()
    );
    let hint = "choose a shorter runtime or state directory";
    Some(Fault::of_flag("runtime directory", message).with_hint(hint))
}

/// Returns where a generation of a slot listens: a readable name where it fits into an address.
pub(super) fn of_engine(runtime_dir: &Path, slot: &SlotName, generation: Generation) -> PathBuf {
    let folder = runtime_dir.join(ENGINES);
    let readable = folder.join(format!("{slot}.g{generation}.sock"));
    if readable.as_os_str().len() <= MAX_SOCKET_PATH {
        return readable;
    }
    let mut hasher = DefaultHasher::new();
    (slot, generation).hash(&mut hasher);
    folder.join(format!("{:016x}.sock", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_runtime_directory_does_not_keep_an_engine_from_listening() {
        let slot: SlotName = "a-slot-with-a-rather-long-name".parse().unwrap();
        let shallow = of_engine(Path::new("/run/slotd"), &slot, Generation(7));
        assert_eq!(shallow, Path::new("/run/slotd/engines/a-slot-with-a-rather-long-name.g7.sock"));
        let deep = PathBuf::from(format!("/{}", "d".repeat(MAX_SOCKET_PATH - 31)));
        assert!(no_room_for_engines(&deep).is_none());
        let first = of_engine(&deep, &slot, Generation(7));
        let second = of_engine(&deep, &slot, Generation(8));
        assert_eq!(first.as_os_str().len(), MAX_SOCKET_PATH);
        assert_ne!(first, second);
        assert!(no_room_for_engines(&deep.join("d")).is_some());
    }
}

//! Which files processes have open or mapped.

use std::{collections::BTreeMap, fs, path::Path};

/// A process by its id and name.
type User = String;

/// Open and mapped files, by device and inode. Processes of other users cannot be looked at without
/// the right to; what they have open stays theirs when its name goes.
#[derive(Debug, Default)]
pub(super) struct Busy(BTreeMap<(u64, u64), User>);

impl Busy {
    /// Looks at every process that may be looked at; empty where there is no `/proc`.
    pub(super) fn look() -> Self {
        let mut busy = Self::default();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let is_process =
                process.file_name().to_str().is_some_and(|it| it.parse::<u32>().is_ok());
            if is_process {
                busy.take(&process.path());
            }
        }
        busy
    }

    /// Names a process that uses a file.
    pub(super) fn user(&self, file: (u64, u64)) -> Option<&str> {
        self.0.get(&file).map(String::as_str)
    }

    fn take(&mut self, process: &Path) {
        let pid = process.file_name().map(|pid| pid.to_string_lossy().into_owned());
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let user = format!("`{}` (pid {})", name.trim(), pid.unwrap_or_default());
        // An engine may map its model and close the file.
        for folder in ["fd", "map_files"] {
            for file in fs::read_dir(process.join(folder)).into_iter().flatten().flatten() {
                if let Some(identity) = super::identity(&file.path()) {
                    self.0.entry(identity).or_insert_with(|| user.clone());
                }
            }
        }
        let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
        for path in maps.lines().filter_map(|line| line.split_once(" /")).map(|(_, path)| path) {
            let path = Path::new("/").join(path.trim_end_matches(" (deleted)"));
            if let Some(identity) = super::identity(&path) {
                self.0.entry(identity).or_insert_with(|| user.clone());
            }
        }
    }
}

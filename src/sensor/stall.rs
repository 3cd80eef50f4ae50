//! How long tasks of this machine wait for memory, disks and cores, where the kernel says so.
//!
//! Source: `Documentation/accounting/psi.rst` of Linux.

use std::{fs, path::Path};

const PRESSURE: &str = "/proc/pressure";

/// Shares of the last ten seconds in which some task waited, in percent; `None` where nobody counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// For memory: pages that had been taken away, and reclaim.
    pub memory_percent: Option<f32>,
    /// For disks.
    pub io_percent: Option<f32>,
    /// For a core.
    pub cpu_percent: Option<f32>,
}

/// Reads how long tasks wait. Takes well below a millisecond.
pub fn stalls() -> Stalls {
    stalls_in(Path::new(PRESSURE))
}

fn stalls_in(folder: &Path) -> Stalls {
    let percent = |name: &str| average(&fs::read_to_string(folder.join(name)).ok()?);
    Stalls {
        memory_percent: percent("memory"),
        io_percent: percent("io"),
        cpu_percent: percent("cpu"),
    }
}

/// Reads `some avg10=1.23 avg60=… avg300=… total=…`.
fn average(text: &str) -> Option<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_last_ten_seconds_is_read_and_what_is_missing_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let text = "some avg10=12.50 avg60=3.00 avg300=1.00 total=99\nfull avg10=1.00 total=9\n";
        fs::write(folder.path().join("memory"), text).unwrap();
        fs::write(folder.path().join("io"), "nonsense\n").unwrap();
        let expected = Stalls { memory_percent: Some(12.5), ..Stalls::default() };
        assert_eq!(stalls_in(folder.path()), expected);
    }
}

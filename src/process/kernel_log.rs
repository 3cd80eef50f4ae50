//! The kernel's log, read where it may be read.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;

/// The longest record. Source: `PRINTKRB_RECORD_MAX` of the kernel is smaller.
const RECORD_BYTES: usize = 8 << 10;
/// How many records are read at once; a flood is somebody else's.
const MAX_RECORDS: usize = 4096;
/// Source: `PROC_PID_INIT_INO` in the kernel's `include/linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Reads what the kernel logs from the moment of its making on.
#[derive(Debug)]
pub struct KernelTail {
    file: Option<File>,
}

impl KernelTail {
    /// Opens the log at its end.
    pub fn open() -> Self {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let at_end = |mut file: File| file.seek(SeekFrom::End(0)).map(|_| file);
        Self { file: options.open("/dev/kmsg").and_then(at_end).ok() }
    }

    /// Tells whether the log may be read, and names processes by our numbers.
    pub fn is_readable(&self) -> bool {
        self.file.is_some()
    }

    /// Returns what the kernel itself has logged since the last call, each record's first line.
    pub fn read_new(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = vec![0; RECORD_BYTES];
        for _ in 0..MAX_RECORDS {
            let Some(file) = &mut self.file else { break };
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => lines.extend(record.get(..length).and_then(kernels_own)),
                // Records were overwritten before they were read: the next one is there.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.file = None,
            }
        }
        lines
    }
}

/// Tells whether the kernel's log names our processes by the numbers that we know.
pub fn has_kernels_pids() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE))
}

/// Takes one record apart: `6,1234,5678901,-;text`, then lines that begin with a space. What a
/// program wrote into the log has a facility above 0.
/// Source: the kernel's `Documentation/ABI/testing/dev-kmsg`.
fn kernels_own(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_says_itself_counts() {
        let own = kernels_own(b"3,1,2,-;Out of memory: Killed process 7 (x)\n SUBSYSTEM=mm\n");
        assert_eq!(own.as_deref(), Some("Out of memory: Killed process 7 (x)"));
        assert_eq!(kernels_own(b"12,1,2,-;Out of memory: Killed process 7 (x)\n"), None);
        for garbage in [&b""[..], b";", b"x;y", b"\xff;\xff"] {
            assert_eq!(kernels_own(garbage), None);
        }
    }

    #[test]
    fn a_tail_begins_at_the_end_and_never_blocks() {
        let mut tail = KernelTail::open();
        drop(tail.read_new());
        assert!(tail.read_new().len() < MAX_RECORDS);
    }
}

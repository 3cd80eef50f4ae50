//! The daemon's own code in memory: what only the start needed is let go.

use std::{fs, path::Path};

use super::sys;

/// Lets go of this program's code; what runs comes back from the page cache, a few pages at a time.
/// Called once the start is over: most of what that took (the command line, the profiles' syntax) is not
/// run again, and would count as this process's memory for its whole life.
pub fn forget_start() {
    let (Ok(maps), Ok(program)) =
        (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    for (start, end) in maps.lines().filter_map(|line| code(line, &program)) {
        sys::forget_code(start, end.saturating_sub(start));
    }
}

/// Reads where a mapping lies, if it is this program's code: never written to, so that each page can be
/// had again.
fn code(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, kind) = (words.next()?, words.next()?);
    if kind != "r-xp" || Path::new(words.nth(3)?) != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_let_go() {
        let program = Path::new("/usr/bin/slotd");
        let of = |line: &str| code(line, program);
        assert_eq!(of("1000-3000 r-xp 00001000 fe:00 12 /usr/bin/slotd"), Some((0x1000, 0x3000)));
        for line in [
            "1000-3000 r--p 00001000 fe:00 12 /usr/bin/slotd",
            "1000-3000 rwxp 00001000 fe:00 12 /usr/bin/slotd",
            "1000-3000 r-xp 00001000 fe:00 12 /usr/lib/libc.so.6",
            "1000-3000 r-xp 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
        forget_start();
    }
}

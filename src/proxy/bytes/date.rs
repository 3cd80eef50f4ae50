//! The date that an answer says, made once a second.

use std::cell::Cell;

use super::super::listeners::WallClock;
use crate::spec::date::civil;

thread_local! {
    static LAST: Cell<(u64, [u8; LENGTH])> = const { Cell::new((u64::MAX, [b' '; LENGTH])) };
}

const LENGTH: usize = 29;
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Returns the present date as HTTP says it.
pub(super) fn now(clock: WallClock) -> [u8; LENGTH] {
    let seconds = clock() / 1000;
    let (last, text) = LAST.get();
    if last == seconds {
        return text;
    }
    let text = <[u8; LENGTH]>::try_from(told(seconds).as_bytes()).unwrap_or(text);
    LAST.set((seconds, text));
    text
}

/// Source: RFC 9110 section 5.6.7.
fn told(seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| names.get(at).copied()).unwrap_or_default()
    };
    let (weekday, month) = (name(&DAYS, days % 7), name(&MONTHS, month.saturating_sub(1)));
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_told_as_in_the_standard() {
        assert_eq!(told(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(told(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(now(|| 784_111_777_999), *b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}

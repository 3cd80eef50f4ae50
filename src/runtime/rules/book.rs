//! The rules in force, what was seen for each of them, and those that stand in line to fire.

use std::{collections::VecDeque, time::Duration};

use jiff::Zoned;
use tokio::time::Instant;

use super::IdleFor;
use crate::{
    admin::RuleObject,
    spec::rule::{Happening, Rule, When},
};

/// The shortest time between two firings of one rule.
const PAUSE: Duration = Duration::from_secs(1);
/// How often idle slots are looked at, where a rule is about one.
const IDLE_PERIOD: Duration = Duration::from_secs(1);
/// The longest time without a look at the clock on the wall: it may be set, and machines sleep.
const CLOCK_PERIOD: Duration = Duration::from_secs(10);
/// A clock that is put back by less has been corrected: what was done at a time is not done again.
const CORRECTION: Duration = Duration::from_hours(1);

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: Vec<Entry>,
    /// Those that are to fire, by their place in `entries`, each once: the one that was asked for last is the
    /// last to fire.
    line: VecDeque<usize>,
    /// The last look at the clock.
    looked: Option<Zoned>,
    /// Something that people are shown has changed.
    is_news: bool,
}

/// One rule, and what was seen for it.
#[derive(Debug)]
struct Entry {
    rule: Rule,
    /// Its next time, if it has one.
    next: Option<Zoned>,
    /// It is about an idle slot, has fired, and the slot has been idle since.
    has_rested: bool,
    last: Option<Instant>,
    fired_unix_ms: Option<u64>,
}

impl Entry {
    fn new(rule: Rule, now: &Zoned) -> Self {
        let next = rule.next_after(now);
        Self { rule, next, has_rested: false, last: None, fired_unix_ms: None }
    }
}

impl Book {
    /// Takes other rules. One that does what it did goes on where it was: its rest, its next time, its pause.
    pub(super) fn take(&mut self, rules: &[Rule], now: &Zoned) {
        let mut before: Vec<_> = std::mem::take(&mut self.entries).into_iter().map(Some).collect();
        let mut came_from = Vec::new();
        for rule in rules {
            let is_same = |entry: &Option<Entry>| {
                entry.as_ref().is_some_and(|entry| entry.rule.is_same_deed(rule))
            };
            let place = before.iter().position(is_same);
            let same = place.and_then(|place| before.get_mut(place)?.take());
            self.entries.push(match same {
                Some(entry) => Entry { rule: rule.clone(), ..entry },
                None => Entry::new(rule.clone(), now),
            });
            came_from.push(place);
        }
        let line = std::mem::take(&mut self.line).into_iter();
        let goes_to = |old: usize| came_from.iter().position(|place| *place == Some(old));
        self.line = line.filter_map(goes_to).collect();
        self.is_news = true;
    }

    /// Puts those in line that fire on what happened.
    pub(super) fn happened(&mut self, happening: Happening<'_>) {
        self.line_up(|entry| entry.rule.fires_on(happening));
    }

    /// Puts those in line whose time has come since the last look, once each however long that is ago, and
    /// those whose slot has been idle for long enough, once for each rest.
    pub(super) fn look(&mut self, now: &Zoned, idle_for: &IdleFor) {
        self.keep_to_the_clock(now);
        self.line_up(|entry| {
            let is_due = entry.next.as_ref().is_some_and(|next| next <= now);
            if is_due {
                entry.next = entry.rule.next_after(now);
            }
            let When::Idle(slot, time) = &entry.rule.when else { return is_due };
            let rests = idle_for(slot).is_some_and(|idle| idle >= *time);
            let has_come = rests && !entry.has_rested;
            entry.has_rested = rests;
            has_come
        });
    }

    /// Finds times anew where the clock shows another zone, or was put back far.
    fn keep_to_the_clock(&mut self, now: &Zoned) {
        let is_other = |before: &Zoned| {
            let back = before.timestamp().duration_since(now.timestamp());
            before.time_zone() != now.time_zone()
                || back.unsigned_abs() > CORRECTION && back.is_positive()
        };
        if self.looked.as_ref().is_some_and(is_other) {
            for entry in &mut self.entries {
                entry.next = entry.rule.next_after(now);
            }
            self.is_news = true;
        }
        self.looked = Some(now.clone());
    }

    fn line_up(&mut self, mut fires: impl FnMut(&mut Entry) -> bool) {
        for (place, entry) in self.entries.iter_mut().enumerate() {
            if fires(entry) {
                // What it was asked for before is done by this one.
                self.line.retain(|other| *other != place);
                self.line.push_back(place);
            }
        }
    }

    /// Takes the first one out of the line whose turn has come; `now_unix_ms` is shown to people.
    pub(super) fn next_to_fire(&mut self, now: Instant, now_unix_ms: u64) -> Option<Rule> {
        let entry = self.entries.get_mut(*self.line.front()?)?;
        if entry.last.is_some_and(|last| now.duration_since(last) < PAUSE) {
            return None;
        }
        (entry.last, entry.fired_unix_ms) = (Some(now), Some(now_unix_ms));
        let rule = entry.rule.clone();
        self.line.pop_front();
        self.is_news = true;
        Some(rule)
    }

    /// Returns how long nothing is to be done unless something happens.
    pub(super) fn rest(&self, now: Instant, wall: &Zoned) -> Duration {
        let first = self.line.front().and_then(|place| self.entries.get(*place));
        let of_line = first.map(|entry| {
            entry.last.map_or(Duration::ZERO, |last| PAUSE.saturating_sub(now.duration_since(last)))
        });
        let of_idle = |entry: &Entry| match entry.rule.when {
            When::Idle(..) => Some(IDLE_PERIOD),
            When::At(_) | When::Signal(_) | When::Pressure(..) | When::Becomes(..) => None,
        };
        let of_times = |entry: &Entry| {
            let until = wall.timestamp().duration_until(entry.next.as_ref()?.timestamp());
            Some(Duration::try_from(until).unwrap_or_default().min(CLOCK_PERIOD))
        };
        let of_rules =
            self.entries.iter().filter_map(|entry| of_idle(entry).or_else(|| of_times(entry)));
        of_rules.chain(of_line).min().unwrap_or(Duration::MAX)
    }

    /// Shows the rules, if something has changed since they were shown last.
    pub(super) fn news(&mut self) -> Option<Vec<RuleObject>> {
        std::mem::take(&mut self.is_news).then(|| self.entries.iter().map(Entry::show).collect())
    }
}

impl Entry {
    fn show(&self) -> RuleObject {
        let next = self.next.as_ref();
        RuleObject {
            rule: self.rule.name.clone(),
            when: self.rule.when.to_string(),
            orders: self.rule.orders.iter().map(ToString::to_string).collect(),
            next: next.map(|at| at.strftime("%Y-%m-%d %H:%M:%S %Z").to_string()),
            next_unix_ms: next.and_then(|at| u64::try_from(at.timestamp().as_millisecond()).ok()),
            fired_unix_ms: self.fired_unix_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::spec::rule::RuleOrder;

    fn rule(name: &str, when: When) -> Rule {
        let orders = vec![RuleOrder::Unload("chat".parse().unwrap())];
        Rule { name: name.to_owned(), when, orders }
    }

    fn of_signal(name: &str) -> Rule {
        rule(name, When::Signal(name.to_owned()))
    }

    fn of_idle() -> Rule {
        rule("idle", When::Idle("chat".parse().unwrap(), Duration::from_mins(1)))
    }

    fn at(time: &str) -> Zoned {
        format!("2026-03-02T{time}[Europe/Berlin]").parse().unwrap()
    }

    fn book(rules: &[Rule]) -> Book {
        let mut book = Book::default();
        book.take(rules, &at("10:00:30"));
        book
    }

    fn never() -> IdleFor {
        Arc::new(|_| None)
    }

    fn idle(seconds: u64) -> IdleFor {
        Arc::new(move |_| Some(Duration::from_secs(seconds)))
    }

    /// The names of those that fire at this moment.
    fn fired(book: &mut Book, now: Instant) -> String {
        let rules = std::iter::from_fn(|| book.next_to_fire(now, 1));
        rules.map(|rule| rule.name).collect::<Vec<_>>().join(" ")
    }

    /// The names of those that fire after a look at this time, whatever fired a moment ago.
    fn due(book: &mut Book, now: &str, idle_for: &IdleFor) -> String {
        book.look(&at(now), idle_for);
        for entry in &mut book.entries {
            entry.last = None;
        }
        fired(book, Instant::now())
    }

    #[test]
    fn signals_within_a_second_are_not_lost_and_the_last_one_counts() {
        let mut book = book(&[of_signal("de"), of_signal("en"), of_signal("fr")]);
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        for name in ["de", "en", "de", "fr", "en", "de"] {
            book.happened(Happening::Signalled(name));
        }
        assert_eq!(fired(&mut book, start), "fr en de", "each once, the last one last");
        for name in ["de", "en", "de"] {
            book.happened(Happening::Signalled(name));
            assert_eq!(fired(&mut book, after(500)), "", "{name}");
        }
        assert_eq!(book.rest(after(600), &at("10:00:30")), Duration::from_millis(400));
        assert_eq!(fired(&mut book, after(1000)), "en de", "the last one stands");
        assert_eq!(fired(&mut book, after(5000)), "");
    }

    #[test]
    fn a_time_that_was_slept_through_counts_once() {
        let mut book = book(&[rule("often", When::At("*/5 * * * *".parse().unwrap()))]);
        assert_eq!(due(&mut book, "10:04:59", &never()), "");
        assert_eq!(due(&mut book, "10:05:00", &never()), "often");
        assert_eq!(due(&mut book, "10:05:01", &never()), "");
        assert_eq!(due(&mut book, "11:17:00", &never()), "often");
        assert_eq!(due(&mut book, "11:16:58", &never()), "", "the clock was corrected");
        assert_eq!(due(&mut book, "11:20:00", &never()), "often");
        assert_eq!(due(&mut book, "08:01:00", &never()), "", "the clock was wrong");
        assert_eq!(due(&mut book, "08:05:00", &never()), "often");
    }

    #[test]
    fn between_two_times_nothing_is_looked_at() {
        let book = book(&[rule("hourly", When::At("0 * * * *".parse().unwrap())), of_signal("x")]);
        let rest = |time: &str| book.rest(Instant::now(), &at(time));
        assert_eq!(rest("10:00:30"), CLOCK_PERIOD);
        assert_eq!(rest("10:59:58"), Duration::from_secs(2));
        assert_eq!(rest("11:00:07"), Duration::ZERO);
        assert_eq!(
            self::book(&[of_signal("x")]).rest(Instant::now(), &at("10:00:30")),
            Duration::MAX
        );
    }

    #[test]
    fn a_rest_counts_once_and_the_next_one_again() {
        let mut book = book(&[of_idle()]);
        assert_eq!(due(&mut book, "10:01:00", &idle(59)), "");
        assert_eq!(due(&mut book, "10:01:00", &idle(60)), "idle");
        assert_eq!(due(&mut book, "10:01:00", &idle(61)), "");
        assert_eq!(due(&mut book, "10:01:00", &idle(0)), "");
        assert_eq!(due(&mut book, "10:01:00", &idle(60)), "idle");
        assert_eq!(due(&mut book, "10:01:00", &never()), "");
    }

    #[test]
    fn a_rule_that_an_edit_left_alone_goes_on_where_it_was() {
        let hourly = rule("hourly", When::At("0 * * * *".parse().unwrap()));
        let mut book = book(&[of_idle(), hourly.clone(), of_signal("x")]);
        assert_eq!(due(&mut book, "10:01:00", &idle(60)), "idle");
        book.happened(Happening::Signalled("x"));
        // The edit is read a moment late: a time has come since the last look.
        let rules = [
            of_signal("new"),
            of_signal("x"),
            Rule { name: "other".to_owned(), ..hourly },
            of_idle(),
        ];
        book.take(&rules, &at("11:00:01"));
        assert_eq!(due(&mut book, "11:00:01", &idle(61)), "x other", "neither twice nor missed");
        book.take(&rules[1..], &at("11:00:02"));
        assert_eq!(due(&mut book, "11:00:02", &idle(62)), "");
        let shown = book.news().unwrap();
        assert_eq!(shown.last().unwrap().fired_unix_ms, Some(1), "it is still known");
        assert_eq!(book.news(), None);
    }
}

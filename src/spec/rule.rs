//! Rules: what is done to slots when something happens, by itself. Pure: what happened and when is told.

use std::{fmt, str::FromStr, time::Duration};

use croner::Cron;
use jiff::{Zoned, civil::date, tz::TimeZone};
use thiserror::Error;

use super::{SlotName, pressure::Pressure};

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Its own name, or its number.
    pub name: String,
    /// When it fires.
    pub when: When,
    /// What is done then, in this order.
    pub orders: Vec<RuleOrder>,
}

/// When a rule fires.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum When {
    /// At these times, local ones.
    At(Schedule),
    /// Somebody or something says this name: a switch of language, of an app.
    Signal(String),
    /// Something comes to this level of pressure: what, as `memory` or `gpu-0`, or anything.
    Pressure(Pressure, Option<String>),
    /// A slot comes into this state.
    Becomes(SlotName, String),
    /// A slot has had no request for this long.
    Idle(SlotName, Duration),
}

/// Times of the clock on the wall, some of which come: a cron expression that was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    typed: String,
    cron: Box<Cron>,
}

/// Why a text is no schedule.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ScheduleFault {
    /// It cannot be read: why not.
    #[error("is no schedule: {0}")]
    Unreadable(String),
    /// It names a time that never comes, such as 30 February.
    #[error("is a time that never comes")]
    Never,
}

/// What a rule does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RuleOrder {
    /// Loads a slot.
    Load(SlotName),
    /// Unloads a slot.
    Unload(SlotName),
    /// Unloads the first and loads the second in its place.
    Swap(SlotName, SlotName),
    /// Pins a slot.
    Pin(SlotName),
    /// Unpins a slot.
    Unpin(SlotName),
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Happening<'a> {
    /// A name was said.
    Signalled(&'a str),
    /// A source of pressure came to a level.
    PressureChanged(&'a str, &'a str),
    /// A slot came into a state.
    SlotChanged(&'a SlotName, &'a str),
}

impl Rule {
    /// Tells whether it fires on what happened.
    pub fn fires_on(&self, happening: Happening<'_>) -> bool {
        match (&self.when, happening) {
            (When::Signal(name), Happening::Signalled(said)) => name == said,
            (When::Pressure(level, of), Happening::PressureChanged(source, to)) => {
                level.as_str() == to && of.as_deref().is_none_or(|of| of == source)
            }
            (When::Becomes(slot, state), Happening::SlotChanged(name, to)) => {
                slot == name && state == to
            }
            (
                When::At(_)
                | When::Signal(_)
                | When::Pressure(..)
                | When::Becomes(..)
                | When::Idle(..),
                Happening::Signalled(_)
                | Happening::PressureChanged(..)
                | Happening::SlotChanged(..),
            ) => false,
        }
    }

    /// Returns the first of its times after `now`; `None` for a rule of another kind, and for one whose time
    /// never comes.
    pub fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        let When::At(times) = &self.when else { return None };
        times.next_after(now)
    }

    /// Tells whether it does the same on the same, whatever it is called.
    pub fn is_same_deed(&self, other: &Self) -> bool {
        self.when == other.when && self.orders == other.orders
    }

    /// Returns the name that it listens for, if that is what it fires on.
    pub fn signal(&self) -> Option<&str> {
        match &self.when {
            When::Signal(name) => Some(name),
            When::At(_) | When::Pressure(..) | When::Becomes(..) | When::Idle(..) => None,
        }
    }

    /// Returns every slot that it names.
    pub fn slots(&self) -> impl Iterator<Item = &SlotName> {
        let of_orders = self.orders.iter().flat_map(RuleOrder::slots);
        let of_when = match &self.when {
            When::Becomes(slot, _) | When::Idle(slot, _) => Some(slot),
            When::At(_) | When::Signal(_) | When::Pressure(..) => None,
        };
        of_orders.chain(of_when)
    }
}

impl RuleOrder {
    /// Returns every slot that it does something to.
    pub fn slots(&self) -> Vec<&SlotName> {
        match self {
            Self::Load(slot) | Self::Unload(slot) | Self::Pin(slot) | Self::Unpin(slot) => {
                vec![slot]
            }
            Self::Swap(from, to) => vec![from, to],
        }
    }
}

impl Schedule {
    /// Returns the first of its times after `now`; `None` where all have passed, as of a year that is over.
    pub fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        self.cron.find_next_occurrence(now, false).ok()
    }
}

impl FromStr for Schedule {
    type Err = ScheduleFault;

    /// Reads a cron expression. One whose times lie in the past alone is read: it was right once, and the
    /// rules beside it stay in force.
    fn from_str(typed: &str) -> Result<Self, ScheduleFault> {
        let read = typed.parse::<Cron>();
        let cron = read.map_err(|fault| ScheduleFault::Unreadable(fault.to_string()))?;
        let schedule = Self { typed: typed.to_owned(), cron: Box::new(cron) };
        let long_ago = date(2000, 1, 1).to_zoned(TimeZone::UTC);
        match long_ago.ok().and_then(|long_ago| schedule.next_after(&long_ago)) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleFault::Never),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(times) => write!(f, "at {times}"),
            Self::Signal(name) => write!(f, "on the signal {name}"),
            Self::Pressure(level, Some(of)) => {
                write!(f, "when {of} pressure is {}", level.as_str())
            }
            Self::Pressure(level, None) => write!(f, "when any pressure is {}", level.as_str()),
            Self::Becomes(slot, state) => write!(f, "when {slot} is {state}"),
            Self::Idle(slot, time) => write!(f, "when {slot} is idle for {} s", time.as_secs()),
        }
    }
}

impl fmt::Display for RuleOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(slot) => write!(f, "load {slot}"),
            Self::Unload(slot) => write!(f, "unload {slot}"),
            Self::Swap(from, to) => write!(f, "swap {from} {to}"),
            Self::Pin(slot) => write!(f, "pin {slot}"),
            Self::Unpin(slot) => write!(f, "unpin {slot}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(when: When) -> Rule {
        let orders = vec![RuleOrder::Load("chat".parse().unwrap())];
        Rule { name: "rule 1".to_owned(), when, orders }
    }

    #[test]
    fn a_rule_fires_on_what_it_names_and_on_nothing_else() {
        let chat: SlotName = "chat".parse().unwrap();
        let signal = rule(When::Signal("language:de".to_owned()));
        assert!(signal.fires_on(Happening::Signalled("language:de")));
        assert!(!signal.fires_on(Happening::Signalled("language:en")));
        let any = rule(When::Pressure(Pressure::Critical, None));
        assert!(any.fires_on(Happening::PressureChanged("gpu-0", "critical")));
        assert!(!any.fires_on(Happening::PressureChanged("gpu-0", "elevated")));
        let of = rule(When::Pressure(Pressure::Critical, Some("memory".to_owned())));
        assert!(!of.fires_on(Happening::PressureChanged("gpu-0", "critical")));
        let becomes = rule(When::Becomes(chat.clone(), "failed".to_owned()));
        assert!(becomes.fires_on(Happening::SlotChanged(&chat, "failed")));
        assert!(!becomes.fires_on(Happening::Signalled("failed")));
    }

    #[test]
    fn times_are_those_of_the_clock_on_the_wall() {
        let evening = rule(When::At("0 22 * * mon-fri".parse().unwrap()));
        let friday: Zoned = "2026-03-27T22:00[Europe/Berlin]".parse().unwrap();
        let next = evening.next_after(&friday).unwrap();
        // The clocks went forward in between.
        assert_eq!(next.to_string(), "2026-03-30T22:00:00+02:00[Europe/Berlin]");
    }

    #[test]
    fn a_time_that_never_comes_is_no_schedule() {
        let read = |text: &str| text.parse::<Schedule>();
        for never in ["0 0 30 2 *", "0 12 31 4,6,9,11 *"] {
            assert_eq!(read(never), Err(ScheduleFault::Never), "{never}");
        }
        read("0 0 29 2 *").expect("it comes every four years");
        assert!(matches!(read("25 o'clock"), Err(ScheduleFault::Unreadable(_))));
    }
}

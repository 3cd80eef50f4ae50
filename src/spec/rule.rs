//! Rules: what is done to slots when something happens, by itself. Pure: what happened and when is told.

use std::{fmt, time::Duration};

use croner::Cron;
use jiff::Zoned;

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
    /// At these times, local ones: a cron expression that was checked.
    At(String),
    /// Somebody or something says this name: a switch of language, of an app.
    Signal(String),
    /// Something comes to this level of pressure: what, as `memory` or `gpu-0`, or anything.
    Pressure(Pressure, Option<String>),
    /// A slot comes into this state.
    Becomes(SlotName, String),
    /// A slot has had no request for this long.
    Idle(SlotName, Duration),
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
        times.parse::<Cron>().ok()?.find_next_occurrence(now, false).ok()
    }

    /// Returns every slot that it names.
    pub fn slots(&self) -> impl Iterator<Item = &SlotName> {
        let of_orders = self.orders.iter().flat_map(|order| match order {
            RuleOrder::Load(slot)
            | RuleOrder::Unload(slot)
            | RuleOrder::Pin(slot)
            | RuleOrder::Unpin(slot) => vec![slot],
            RuleOrder::Swap(from, to) => vec![from, to],
        });
        let of_when = match &self.when {
            When::Becomes(slot, _) | When::Idle(slot, _) => Some(slot),
            When::At(_) | When::Signal(_) | When::Pressure(..) => None,
        };
        of_orders.chain(of_when)
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
        let evening = rule(When::At("0 22 * * mon-fri".to_owned()));
        let friday: Zoned = "2026-03-27T22:00[Europe/Berlin]".parse().unwrap();
        let next = evening.next_after(&friday).unwrap();
        // The clocks went forward in between.
        assert_eq!(next.to_string(), "2026-03-30T22:00:00+02:00[Europe/Berlin]");
        let never = rule(When::At("0 0 30 2 *".to_owned()));
        assert_eq!(never.next_after(&friday), None);
    }
}

//! Rules at work: hears what happens, looks at the clock and at idle slots, and orders what a person would.
//!
//! Which rule fires on what is `spec::rule`; here is when that is looked at. A rule fires at most once a second,
//! so that two that undo each other cannot keep a slot from working.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Zoned;
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::clock;
use crate::{
    admin::{EventObject, News, RuleObject},
    mailbox::Mailbox,
    spec::{
        SlotName,
        residence::StayOrder,
        rule::{Happening, Rule, RuleOrder, When},
    },
    supervisor::{Event, SlotEvent},
};

/// How often the clock and idle slots are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// The shortest time between two firings of one rule.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells how long a slot that is ready has had no request; `None` for one that is not, or works.
pub(super) type IdleFor = Arc<dyn Fn(&SlotName) -> Option<Duration> + Send + Sync>;

/// What people are shown of rules: when each fired last, by its place in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Fired(Arc<Mutex<BTreeMap<usize, u64>>>);

/// What rules work with.
pub(super) struct Hands {
    pub(super) mailbox: Mailbox,
    pub(super) news: News,
    pub(super) idle_for: IdleFor,
    pub(super) fired: Fired,
}

/// The rules in force, and what was seen for them.
struct Book {
    rules: Arc<[Rule]>,
    /// Times up to here were looked at.
    looked: Zoned,
    /// Rules about idle slots that have fired and whose slot has been idle since.
    rested: Vec<usize>,
    last: BTreeMap<usize, Instant>,
}

/// Follows the rules until it is dropped.
pub(super) async fn follow(mut rules: watch::Receiver<Arc<[Rule]>>, hands: Hands) -> Infallible {
    let mut news = hands.news.subscribe();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut book = Book::new(rules.borrow_and_update().clone());
    loop {
        let due = tokio::select! {
            changed = rules.changed() => {
                if changed.is_ok() {
                    book = Book::new(rules.borrow_and_update().clone());
                    hands.fired.forget();
                }
                Vec::new()
            }
            heard = news.recv() => match heard {
                Ok(event) => book.on(&event),
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "rules have missed events");
                    Vec::new()
                }
                // `hands` keeps it open.
                Err(RecvError::Closed) => Vec::new(),
            },
            _ = ticks.tick() => book.at(Zoned::now(), &hands.idle_for),
        };
        for index in due {
            if let Some(rule) = book.fire(index) {
                hands.obey(index, &rule).await;
            }
        }
    }
}

impl Book {
    fn new(rules: Arc<[Rule]>) -> Self {
        Self { rules, looked: Zoned::now(), rested: Vec::new(), last: BTreeMap::new() }
    }

    /// Finds the rules that fire on what was told.
    fn on(&self, event: &EventObject) -> Vec<usize> {
        let to = event.to.as_deref().unwrap_or_default();
        let happening = match (event.event.as_str(), &event.slot, &event.source, &event.name) {
            ("signalled", _, _, Some(name)) => Happening::Signalled(name),
            ("pressure-changed", _, Some(source), _) => Happening::PressureChanged(source, to),
            ("slot-changed", Some(slot), _, _) => Happening::SlotChanged(slot, to),
            _ => return Vec::new(),
        };
        self.those(|rule| rule.fires_on(happening))
    }

    /// Finds those whose time has come since the last look, once each however long that is ago, and those
    /// whose slot has been idle for long enough, once for each rest.
    fn at(&mut self, now: Zoned, idle_for: &IdleFor) -> Vec<usize> {
        let mut due = self.those(|rule| rule.next_after(&self.looked).is_some_and(|at| at <= now));
        self.looked = now;
        let idle = self.those(|rule| match &rule.when {
            When::Idle(slot, time) => idle_for(slot).is_some_and(|idle| idle >= *time),
            When::At(_) | When::Signal(_) | When::Pressure(..) | When::Becomes(..) => false,
        });
        due.extend(idle.iter().copied().filter(|index| !self.rested.contains(index)));
        self.rested = idle;
        due
    }

    fn those(&self, fires: impl Fn(&Rule) -> bool) -> Vec<usize> {
        let found = self.rules.iter().enumerate().filter(|(_, rule)| fires(rule));
        found.map(|(index, _)| index).collect()
    }

    /// Returns a rule that may fire now.
    fn fire(&mut self, index: usize) -> Option<Rule> {
        let now = Instant::now();
        if self.last.get(&index).is_some_and(|last| now.duration_since(*last) < PAUSE) {
            return None;
        }
        self.last.insert(index, now);
        self.rules.get(index).cloned()
    }
}

impl Hands {
    /// Tells that a rule fires, and orders what it says.
    async fn obey(&self, index: usize, rule: &Rule) {
        let orders: Vec<_> = rule.orders.iter().map(ToString::to_string).collect();
        let orders = orders.join(", ");
        info!(rule = rule.name, when = %rule.when, orders, "rule fired");
        let text = format!("{} fired ({}): {orders}", rule.name, rule.when);
        let news = EventObject::new("rule-fired", clock::unix_ms(), text);
        EventObject { name: Some(rule.name.clone()), ..news }.tell(&self.news);
        self.fired.note(index);
        for order in &rule.orders {
            match order {
                RuleOrder::Load(slot) => self.tell(slot, SlotEvent::LoadRequested).await,
                RuleOrder::Unload(slot) => self.tell(slot, SlotEvent::UnloadRequested).await,
                RuleOrder::Swap(from, to) => {
                    self.tell(from, SlotEvent::UnloadRequested).await;
                    self.tell(to, SlotEvent::LoadRequested).await;
                }
                RuleOrder::Pin(slot) => self.order(slot, StayOrder::Pin).await,
                RuleOrder::Unpin(slot) => self.order(slot, StayOrder::Unpin).await,
            }
        }
    }

    async fn tell(&self, slot: &SlotName, event: SlotEvent) {
        self.mailbox.tell_slot(slot, event).await;
    }

    async fn order(&self, slot: &SlotName, order: StayOrder) {
        self.mailbox.tell(Event::StayOrdered { slot: slot.clone(), order }).await;
    }
}

impl Fired {
    fn note(&self, index: usize) {
        let mut fired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fired.insert(index, clock::unix_ms());
    }

    /// Other rules are in force.
    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Shows the rules as they are now.
    pub(super) fn show(&self, rules: &[Rule]) -> Vec<RuleObject> {
        let fired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Zoned::now();
        let shown = rules.iter().enumerate().map(|(index, rule)| {
            let next = rule.next_after(&now);
            RuleObject {
                rule: rule.name.clone(),
                when: rule.when.to_string(),
                orders: rule.orders.iter().map(ToString::to_string).collect(),
                next: next.as_ref().map(|at| at.strftime("%Y-%m-%d %H:%M:%S %Z").to_string()),
                next_unix_ms: next
                    .and_then(|at| u64::try_from(at.timestamp().as_millisecond()).ok()),
                fired_unix_ms: fired.get(&index).copied(),
            }
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(when: When) -> Book {
        let orders = vec![RuleOrder::Unload("chat".parse().unwrap())];
        Book::new(vec![Rule { name: "one".to_owned(), when, orders }].into())
    }

    #[test]
    fn a_time_that_was_slept_through_counts_once() {
        let mut book = book(When::At("*/5 * * * *".to_owned()));
        let never: IdleFor = Arc::new(|_| None);
        book.looked = "2026-03-02T10:00:30[Europe/Berlin]".parse().unwrap();
        let at = |time: &str| format!("2026-03-02T{time}[Europe/Berlin]").parse().unwrap();
        assert!(book.at(at("10:04:59"), &never).is_empty());
        assert_eq!(book.at(at("10:05:00"), &never), [0]);
        assert!(book.at(at("10:05:01"), &never).is_empty());
        assert_eq!(book.at(at("11:17:00"), &never), [0]);
    }

    #[test]
    fn a_rest_counts_once_and_the_next_one_again() {
        let mut book = book(When::Idle("chat".parse().unwrap(), Duration::from_mins(1)));
        let idle = |seconds: Option<u64>| -> IdleFor {
            Arc::new(move |_| seconds.map(Duration::from_secs))
        };
        let mut due = |seconds| !book.at(Zoned::now(), &idle(seconds)).is_empty();
        assert!(!due(Some(59)));
        assert!(due(Some(60)) && !due(Some(61)));
        assert!(!due(Some(0)) && due(Some(60)));
        assert!(!due(None));
    }

    #[test]
    fn what_is_told_is_what_rules_are_about() {
        let book = book(When::Signal("language:de".to_owned()));
        let event = |name: &str| EventObject {
            name: Some(name.to_owned()),
            ..EventObject::new("signalled", 0, String::new())
        };
        assert_eq!(book.on(&event("language:de")), [0]);
        assert!(book.on(&event("language:en")).is_empty());
        let fired = EventObject { event: "rule-fired".to_owned(), ..event("language:de") };
        assert!(book.on(&fired).is_empty(), "what rules do is no reason for rules");
    }
}

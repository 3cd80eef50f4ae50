//! Rules at work: hears what happens, looks at the clock and at idle slots, and orders what a person would.
//!
//! Which rule fires on what is `spec::rule`; here is when that is looked at. A rule fires at most once a second,
//! so that two that undo each other cannot keep a slot from working; what it is asked for in between is done
//! after that, in the order of the last asking.

mod board;
mod book;

use std::{convert::Infallible, sync::Arc, time::Duration};

use jiff::Zoned;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, sleep},
};
use tracing::{info, warn};

pub(super) use self::board::RuleBoard;
use self::book::Book;
use super::clock;
use crate::{
    admin::{EventObject, News, Unheard},
    mailbox::Mailbox,
    spec::{
        SlotName,
        residence::StayOrder,
        rule::{Happening, Rule, RuleOrder},
    },
    supervisor::{Event, SlotEvent},
};

/// How many names may wait to be heard.
const WAITING: usize = 256;
/// How long nothing at all may be looked at.
const LONGEST_REST: Duration = Duration::from_hours(1);

/// Tells how long a slot that is ready has had no request; `None` for one that is not, or works.
pub(super) type IdleFor = Arc<dyn Fn(&SlotName) -> Option<Duration> + Send + Sync>;

/// The rules in force, as they were read.
pub(super) type Rules = watch::Receiver<Arc<[Rule]>>;

/// What rules work with.
pub(super) struct Hands {
    pub(super) mailbox: Mailbox,
    pub(super) news: News,
    pub(super) idle_for: IdleFor,
    pub(super) board: RuleBoard,
}

/// Where names are said to the rules.
#[derive(Clone, Debug)]
pub(super) struct Ear {
    rules: Rules,
    names: mpsc::Sender<String>,
    news: News,
}

/// What comes out of an [`Ear`].
pub(super) type Heard = mpsc::Receiver<String>;

impl Ear {
    /// Makes an ear of these rules.
    pub(super) fn new(rules: Rules, news: News) -> (Self, Heard) {
        let (names, heard) = mpsc::channel(WAITING);
        (Self { rules, names, news }, heard)
    }

    /// Says a name to the rules, and to whoever listens to news.
    ///
    /// # Errors
    /// [`Unheard::Nobody`] where no rule listens for it, [`Unheard::TooMany`] where too many wait.
    pub(super) fn say(&self, name: &str) -> Result<(), Unheard> {
        let known: Vec<String> = {
            let rules = self.rules.borrow();
            rules.iter().filter_map(|rule| rule.signal()).map(str::to_owned).collect()
        };
        if known.iter().all(|known| known != name) {
            return Err(Unheard::Nobody { known });
        }
        let place = self.names.try_reserve().map_err(|_| Unheard::TooMany)?;
        let text = format!("{name} was signalled");
        let event = EventObject::new("signalled", clock::unix_ms(), text);
        EventObject { name: Some(name.to_owned()), ..event }.tell(&self.news);
        place.send(name.to_owned());
        Ok(())
    }
}

/// What wakes the rules.
enum Wake {
    Said(String),
    News(Arc<EventObject>),
    /// It is time to look.
    Time,
}

/// Follows the rules until it is dropped.
pub(super) async fn follow(mut rules: Rules, mut heard: Heard, hands: Hands) -> Infallible {
    let mut news = hands.news.subscribe();
    let mut book = Book::default();
    let mut taken = rules.borrow_and_update().clone();
    book.take(&taken, &Zoned::now());
    loop {
        while let Some(rule) = book.next_to_fire(Instant::now(), clock::unix_ms()) {
            hands.obey(&rule).await;
        }
        if let Some(shown) = book.news() {
            hands.board.show(shown);
        }
        let rest = book.rest(Instant::now(), &Zoned::now()).min(LONGEST_REST);
        let wake = tokio::select! {
            Ok(()) = rules.changed() => Wake::Time,
            Some(name) = heard.recv() => Wake::Said(name),
            told = news.recv() => match told {
                Ok(event) => Wake::News(event),
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "rules have missed events");
                    Wake::Time
                }
                // `hands` keeps it open.
                Err(RecvError::Closed) => Wake::Time,
            },
            () = sleep(rest) => Wake::Time,
        };
        // A name that is said after an edit is said to the edited rules.
        let latest = rules.borrow_and_update().clone();
        if !Arc::ptr_eq(&latest, &taken) {
            book.take(&latest, &Zoned::now());
            taken = latest;
        }
        match &wake {
            Wake::Said(name) => book.happened(Happening::Signalled(name)),
            Wake::News(event) => happening(event).into_iter().for_each(|it| book.happened(it)),
            Wake::Time => {}
        }
        book.look(&Zoned::now(), &hands.idle_for);
    }
}

/// Reads news that rules can be about. What rules do themselves is none.
fn happening(event: &EventObject) -> Option<Happening<'_>> {
    let to = event.to.as_deref().unwrap_or_default();
    match (event.event.as_str(), &event.slot, &event.source) {
        ("pressure-changed", _, Some(source)) => Some(Happening::PressureChanged(source, to)),
        ("slot-changed", Some(slot), _) => Some(Happening::SlotChanged(slot, to)),
        _ => None,
    }
}

impl Hands {
    /// Tells that a rule fires, and orders what it says.
    async fn obey(&self, rule: &Rule) {
        let orders: Vec<_> = rule.orders.iter().map(ToString::to_string).collect();
        let orders = orders.join(", ");
        info!(rule = rule.name, when = %rule.when, orders, "rule fired");
        let at_unix_ms = clock::unix_ms();
        let text = format!("{} fired ({}): {orders}", rule.name, rule.when);
        let news = EventObject::new("rule-fired", at_unix_ms, text);
        EventObject { name: Some(rule.name.clone()), ..news }.tell(&self.news);
        for order in &rule.orders {
            self.board.note(rule, order, at_unix_ms);
            match order {
                RuleOrder::Load(slot) => self.tell(slot, SlotEvent::LoadOrderedByRule).await,
                RuleOrder::Unload(slot) => self.tell(slot, SlotEvent::UnloadRequested).await,
                RuleOrder::Swap(from, to) => {
                    self.tell(from, SlotEvent::UnloadRequested).await;
                    self.tell(to, SlotEvent::LoadOrderedByRule).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin, spec::rule::When};

    #[test]
    fn what_rules_do_is_no_reason_for_rules() {
        let chat: SlotName = "chat".parse().unwrap();
        let event = EventObject {
            slot: Some(chat.clone()),
            to: Some("failed".to_owned()),
            ..EventObject::new("slot-changed", 0, String::new())
        };
        assert_eq!(happening(&event), Some(Happening::SlotChanged(&chat, "failed")));
        for other in ["rule-fired", "signalled"] {
            assert_eq!(happening(&EventObject { event: other.to_owned(), ..event.clone() }), None);
        }
    }

    #[test]
    fn a_name_that_cannot_be_heard_is_refused() {
        let rule = Rule {
            name: "one".to_owned(),
            when: When::Signal("language:de".to_owned()),
            orders: Vec::new(),
        };
        let (sender, rules) = watch::channel(Arc::from([rule]));
        let (ear, mut heard) = Ear::new(rules, admin::news());
        let known = vec!["language:de".to_owned()];
        assert_eq!(ear.say("language:en"), Err(Unheard::Nobody { known }));
        for _ in 0..WAITING {
            ear.say("language:de").unwrap();
        }
        assert_eq!(ear.say("language:de"), Err(Unheard::TooMany));
        heard.try_recv().unwrap();
        ear.say("language:de").unwrap();
        sender.send_replace(Arc::from([]));
        assert_eq!(ear.say("language:de"), Err(Unheard::Nobody { known: Vec::new() }));
    }
}

//! The file of rules, `rules.toml` beside the folder of profiles.

use std::{collections::BTreeSet, ops::RangeInclusive, path::Path, time::Duration};

use croner::Cron;
use toml::de::DeTable;

use super::{
    fault::Fault,
    syntax,
    walk::{At, MayBeEmpty, Walk},
    words::{cut, nearest},
};
use crate::spec::{
    SlotName,
    pressure::Pressure,
    rule::{Rule, RuleOrder, When},
};

/// The file's name.
pub const FILE_NAME: &str = "rules.toml";

const KEYS: [&str; 9] =
    ["name", "do", "at", "signal", "pressure", "source", "slot", "becomes", "idle_for"];
const LEVELS: [(&str, Pressure); 3] = [
    ("normal", Pressure::Normal),
    ("elevated", Pressure::Elevated),
    ("critical", Pressure::Critical),
];
const STATES: [&str; 10] = [
    "offline", "queued", "starting", "ready", "unready", "draining", "stopping", "reaping",
    "backoff", "failed",
];
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24 * 30);
const WORDS: [&str; 5] = ["load", "unload", "swap", "pin", "unpin"];
const EXAMPLE: &str = "write `\"load SLOT\"`, `\"unload SLOT\"`, `\"swap SLOT SLOT\"`, `\"pin SLOT\"` or `\"unpin SLOT\"`";

/// Reads the text of a file of rules about `slots`.
///
/// # Errors
/// Every fault of the file.
pub(super) fn read(
    file: &Path,
    text: &str,
    slots: &BTreeSet<SlotName>,
) -> Result<Vec<Rule>, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mended = syntax::mend(text);
    let (table, _) = DeTable::parse_recoverable(&mended.text);
    let mut walk = Walk::new(file, text, &mended, table.get_ref());
    walk.refuse_unknown(&["rule"], |_| Some("write `[[rule]]` above each rule".to_owned()));
    let mut number = 0;
    let rules = walk.take_tables("rule", |walk| {
        number += 1;
        take(walk, number, slots)
    });
    let faults = walk.into_faults();
    if faults.is_empty() {
        Ok(rules.unwrap_or_default().into_iter().flatten().collect())
    } else {
        Err(faults)
    }
}

fn take(walk: &mut Walk<'_>, number: usize, slots: &BTreeSet<SlotName>) -> Option<Rule> {
    walk.refuse_unknown(&KEYS, |_| None);
    let name = walk.take_text("name").map(|name| name.value);
    let when = take_when(walk, slots);
    let orders = walk.take_texts("do", MayBeEmpty::No);
    if orders.is_none() {
        walk.refuse_here("a rule without `do` does nothing", EXAMPLE);
    }
    let orders = orders.unwrap_or_default();
    let orders: Vec<_> = orders.iter().filter_map(|text| order(walk, text, slots)).collect();
    let name = name.unwrap_or_else(|| format!("rule {number}"));
    Some(Rule { name, when: when?, orders })
}

fn take_when(walk: &mut Walk<'_>, slots: &BTreeSet<SlotName>) -> Option<When> {
    let at = walk.take_text("at").and_then(|times| schedule(walk, &times));
    let signal = walk.take_text("signal").map(|name| When::Signal(name.value));
    let source = walk.take_text("source").map(|source| source.value);
    let pressure = walk.take_choice("pressure", &LEVELS).map(|level| When::Pressure(level, source));
    let slot = walk.take_text("slot").and_then(|typed| slot_of(walk, &typed, slots));
    let states = STATES.map(|state| (state, state));
    let becomes = walk.take_choice("becomes", &states);
    let idle = walk.take_duration("idle_for", &IDLE);
    let of_slot = match (slot, becomes, idle) {
        (Some(slot), Some(state), None) => Some(When::Becomes(slot, state.to_owned())),
        (Some(slot), None, Some(time)) => Some(When::Idle(slot, time)),
        _ => None,
    };
    let mut all = [at, signal, pressure, of_slot].into_iter().flatten();
    if let (Some(when), None) = (all.next(), all.next()) {
        return Some(when);
    }
    let hint =
        "write one of `at`, `signal`, `pressure`, `slot` with `becomes`, `slot` with `idle_for`";
    walk.refuse_here("a rule fires on one thing", hint);
    None
}

fn schedule(walk: &mut Walk<'_>, times: &At<String>) -> Option<When> {
    match times.value.parse::<Cron>() {
        Ok(_) => Some(When::At(times.value.clone())),
        Err(fault) => {
            let message = format!("`{}` is no schedule: {fault}", cut(&times.value));
            let hint = "write minute, hour, day, month, weekday: `\"30 22 * * mon-fri\"`";
            walk.refuse_value(times, message, hint);
            None
        }
    }
}

fn order(walk: &mut Walk<'_>, text: &At<String>, slots: &BTreeSet<SlotName>) -> Option<RuleOrder> {
    let words: Vec<&str> = text.value.split_whitespace().collect();
    let mut slot = |word: &str| {
        let typed = At { value: word.to_owned(), key: text.key.clone(), offset: text.offset };
        slot_of(walk, &typed, slots)
    };
    match words.as_slice() {
        ["load", one] => Some(RuleOrder::Load(slot(one)?)),
        ["unload", one] => Some(RuleOrder::Unload(slot(one)?)),
        ["pin", one] => Some(RuleOrder::Pin(slot(one)?)),
        ["unpin", one] => Some(RuleOrder::Unpin(slot(one)?)),
        ["swap", from, to] => Some(RuleOrder::Swap(slot(from)?, slot(to)?)),
        words => {
            let verb = words.first().copied().unwrap_or_default();
            let near = nearest(verb, &WORDS).filter(|near| *near != verb);
            let message = format!("`{}` is nothing that a rule does", cut(&text.value));
            let hint =
                near.map_or_else(|| EXAMPLE.to_owned(), |near| format!("did you mean `{near}`?"));
            walk.refuse_value(text, message, hint);
            None
        }
    }
}

fn slot_of(
    walk: &mut Walk<'_>,
    typed: &At<String>,
    slots: &BTreeSet<SlotName>,
) -> Option<SlotName> {
    if let Some(slot) = slots.get(typed.value.as_str()) {
        return Some(slot.clone());
    }
    let names: Vec<&str> = slots.iter().map(SlotName::as_str).collect();
    let hint = match nearest(&typed.value, &names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "a profile makes a slot".to_owned(),
    };
    walk.refuse_value(typed, format!("there is no slot `{}`", cut(&typed.value)), hint);
    None
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn checked(text: &str) -> Result<Vec<Rule>, String> {
        let slots = ["chat", "coder"].map(|slot| slot.parse().unwrap()).into();
        let read = read(Path::new("/etc/slotd/rules.toml"), text, &slots);
        read.map_err(|faults| {
            faults.iter().flat_map(|fault| [fault.to_string(), "\n".to_owned()]).collect()
        })
    }

    #[test]
    fn rules_are_read() {
        let rules = checked(
            r#"
            [[rule]]
            name = "evening"
            at = "0 22 * * mon-fri"
            do = ["swap coder chat", "unpin coder"]
            [[rule]]
            signal = "app:editor"
            do = ["load coder", "pin coder"]
            [[rule]]
            pressure = "critical"
            source = "memory"
            do = ["unload coder"]
            [[rule]]
            slot = "chat"
            idle_for = "10m"
            do = ["unload chat"]
            [[rule]]
            slot = "coder"
            becomes = "failed"
            do = ["load chat"]
            "#,
        );
        let rules = rules.unwrap();
        let told = rules.iter().map(|rule| {
            let orders: Vec<_> = rule.orders.iter().map(ToString::to_string).collect();
            format!("{}: {}: {}", rule.name, rule.when, orders.join(", "))
        });
        assert_snapshot!(told.collect::<Vec<_>>().join("\n"), @r"
        evening: at 0 22 * * mon-fri: swap coder chat, unpin coder
        rule 2: on the signal app:editor: load coder, pin coder
        rule 3: when memory pressure is critical: unload coder
        rule 4: when chat is idle for 600 s: unload chat
        rule 5: when coder is failed: load chat
        ");
        assert!(checked("").unwrap().is_empty());
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let faults = checked(
            "[[rule]]\nat = \"25 o'clock\"\ndo = [\"lod chat\"]\n[[rule]]\nsignal = \"x\"\nat = \"0 1 * * *\"\ndo = [\"load caht\"]\n[[rule]]\npressure = \"high\"\n[[rul]]\n",
        );
        let faults = faults.unwrap_err();
        for told in [
            "/etc/slotd/rules.toml:2:6: rule[0].at: `25 o'clock` is no schedule",
            ":3:7: rule[0].do[0]: `lod chat` is nothing that a rule does\n  hint: did you mean `load`?",
            "a rule fires on one thing",
            ":7:7: rule[1].do[0]: there is no slot `caht`\n  hint: did you mean `chat`?",
            ":9:12: rule[2].pressure: `high` is not one of",
            "a rule without `do` does nothing",
            ":10:3: rul: unknown key",
        ] {
            assert!(faults.contains(told), "{told}\nis not in\n{faults}");
        }
    }
}

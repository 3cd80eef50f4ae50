//! The file of rules, `rules.toml` beside the folder of profiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::Path,
    time::Duration,
};

use toml::de::DeTable;

use super::{
    fault::Fault,
    syntax,
    walk::{At, MayBeEmpty, Walk},
    words::{cut, nearest},
};
use crate::spec::{
    SlotName,
    pressure::{Pressure, Source},
    rule::{Rule, RuleOrder, ScheduleFault, When},
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
/// What a rule fires on, one of these.
const OCCASIONS: [&str; 5] = ["at", "signal", "pressure", "becomes", "idle_for"];
const SOURCES: [&str; 4] = ["memory", "gpu-0", "cpu", "disk"];
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
    let mut names = BTreeMap::new();
    let rules = walk.take_tables("rule", |walk| {
        number += 1;
        take(walk, (number, &mut names), slots)
    });
    let faults = walk.into_faults();
    if faults.is_empty() {
        Ok(rules.unwrap_or_default().into_iter().flatten().collect())
    } else {
        Err(faults)
    }
}

fn take(
    walk: &mut Walk<'_>,
    (number, names): (usize, &mut BTreeMap<String, usize>),
    slots: &BTreeSet<SlotName>,
) -> Option<Rule> {
    walk.refuse_unknown(&KEYS, |_| None);
    let name = take_name(walk, number, names);
    let when = take_when(walk, slots);
    let orders = walk.take_texts("do", MayBeEmpty::No);
    let is_typed = walk.offset_of_key("do").is_some();
    if orders.as_ref().map_or(!is_typed, Vec::is_empty) {
        walk.refuse_here("a rule without `do` does nothing", EXAMPLE);
    }
    let orders = orders.unwrap_or_default();
    let orders: Vec<_> = orders.iter().filter_map(|text| order(walk, text, slots)).collect();
    Some(Rule { name, when: when?, orders })
}

/// Takes its name, else its number. Two of one name could not be told apart in the log.
fn take_name(walk: &mut Walk<'_>, number: usize, names: &mut BTreeMap<String, usize>) -> String {
    let typed = walk.take_text("name");
    let name = typed.as_ref().map_or_else(|| format!("rule {number}"), |name| name.value.clone());
    match (names.get(&name), &typed) {
        (Some(other), typed) => {
            let message = format!("rule {other} is called `{}` too", cut(&name));
            let hint = "give each rule a name of its own, or leave `name` out";
            match typed {
                Some(typed) => walk.refuse_value(typed, message, hint),
                None => walk.refuse_here(&message, hint),
            }
        }
        (None, _) => drop(names.insert(name.clone(), number)),
    }
    name
}

fn take_when(walk: &mut Walk<'_>, slots: &BTreeSet<SlotName>) -> Option<When> {
    let at = walk.take_text("at").and_then(|times| schedule(walk, &times));
    let signal = walk.take_text("signal").map(|name| When::Signal(name.value));
    let source = walk.take_text("source").and_then(|typed| source(walk, typed));
    let level = walk.take_choice_or("pressure", &LEVELS, "write the level that the rule fires on");
    let pressure = level.map(|level| When::Pressure(level, source));
    let slot = walk.take_text("slot").and_then(|typed| slot_of(walk, &typed, slots));
    let states = STATES.map(|state| (state, state));
    let becomes = walk.take_choice_or("becomes", &states, "write the state that the rule fires on");
    let idle = walk.take_duration("idle_for", &IDLE);
    let typed: Vec<&str> =
        OCCASIONS.into_iter().filter(|key| walk.offset_of_key(key).is_some()).collect();
    let [occasion] = typed.as_slice() else {
        let hint = "write one of `at`, `signal`, `pressure`, `slot` with `becomes`, `slot` with \
                    `idle_for`";
        walk.refuse_here("a rule fires on one thing", hint);
        return None;
    };
    refuse_strays(walk, occasion);
    match *occasion {
        "at" => at,
        "signal" => signal,
        "pressure" => pressure,
        "becomes" => Some(When::Becomes(slot?, becomes?.to_owned())),
        _ => Some(When::Idle(slot?, idle?)),
    }
}

/// Refuses what says nothing to what the rule fires on, and the lack of what does.
fn refuse_strays(walk: &mut Walk<'_>, occasion: &str) {
    let is_of_slot = matches!(occasion, "becomes" | "idle_for");
    if let Some(offset) = walk.offset_of_key("source").filter(|_| occasion != "pressure") {
        let message =
            format!("says whose `pressure` is meant, and this rule fires on `{occasion}`");
        walk.refuse(offset, "source", message, "take it out, or make it a rule of its own");
    }
    match walk.offset_of_key("slot") {
        Some(offset) if !is_of_slot => {
            let message =
                format!("goes with `becomes` or `idle_for`, and this rule fires on `{occasion}`");
            let hint = "take it out: `do` names the slots that something is done to";
            walk.refuse(offset, "slot", message, hint);
        }
        None if is_of_slot => {
            let offset = walk.offset_of_key(occasion).unwrap_or_default();
            walk.refuse(offset, occasion, "it is not said of which slot", "add `slot = \"NAME\"`");
        }
        Some(_) | None => {}
    }
}

/// Takes what pressure is meant.
fn source(walk: &mut Walk<'_>, typed: At<String>) -> Option<String> {
    let gpu = typed.value.strip_prefix("gpu-").and_then(|index| index.parse::<u32>().ok());
    let is_gpu = gpu.is_some_and(|index| Source::Gpu(index).to_string() == typed.value);
    if is_gpu
        || [Source::Memory, Source::Cpu, Source::Disk]
            .iter()
            .any(|one| one.to_string() == typed.value)
    {
        return Some(typed.value);
    }
    let index = typed.value.to_lowercase();
    let index = index.strip_prefix("gpu").map(|rest| rest.trim_start_matches(['-', '_', ':', ' ']));
    let hint = match index.and_then(|index| index.parse::<u32>().ok()) {
        Some(index) => format!("did you mean `gpu-{index}`?"),
        None => match nearest(&typed.value, &SOURCES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write `memory`, `gpu-0` and so on, `cpu` or `disk`".to_owned(),
        },
    };
    let message = format!("`{}` is nothing that there is pressure of", cut(&typed.value));
    walk.refuse_value(&typed, message, hint);
    None
}

fn schedule(walk: &mut Walk<'_>, times: &At<String>) -> Option<When> {
    let fault = match times.value.parse() {
        Ok(schedule) => return Some(When::At(schedule)),
        Err(fault) => fault,
    };
    let hint = match fault {
        ScheduleFault::Unreadable(_) => {
            "write minute, hour, day, month, weekday: `\"30 22 * * mon-fri\"`"
        }
        ScheduleFault::Never => "no month that it names has that day",
    };
    walk.refuse_value(times, format!("`{}` {fault}", cut(&times.value)), hint);
    None
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
        ["swap", from, to] if from == to => {
            let message = format!("`{}` swaps a slot for itself", cut(&text.value));
            walk.refuse_value(text, message, "name the slot that goes, then the one that comes");
            None
        }
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

    /// They were told to leave it out to use the default, and there is none.
    #[test]
    fn what_a_rule_fires_on_has_no_default_to_be_left_out_for() {
        let rule = |text: &str| checked(&format!("[[rule]]\n{text}\n")).unwrap_err();
        assert_snapshot!(rule("pressure = \"high\"\ndo = [\"unload chat\"]"), @r"
        /etc/slotd/rules.toml:2:12: rule[0].pressure: `high` is not one of `normal`, `elevated`, `critical`
          hint: write the level that the rule fires on
        ");
        let becomes = rule("slot = \"chat\"\nbecomes = \"gone\"\ndo = [\"load coder\"]");
        assert!(becomes.ends_with("  hint: write the state that the rule fires on\n"), "{becomes}");
    }

    #[test]
    fn what_says_nothing_to_what_a_rule_fires_on_is_refused() {
        let rule = |text: &str| checked(&format!("[[rule]]\n{text}\n")).unwrap_err();
        for (text, told) in [
            (
                "pressure = \"critical\"\nsource = \"gpu0\"\ndo = [\"unload chat\"]",
                ":3:10: rule[0].source: `gpu0` is nothing that there is pressure of\n  hint: did you mean `gpu-0`?",
            ),
            (
                "signal = \"x\"\nsource = \"memory\"\ndo = [\"unload chat\"]",
                ":3:1: rule[0].source: says whose `pressure` is meant, and this rule fires on `signal`",
            ),
            (
                "signal = \"x\"\nslot = \"chat\"\ndo = [\"unload chat\"]",
                ":3:1: rule[0].slot: goes with `becomes` or `idle_for`, and this rule fires on `signal`",
            ),
            (
                "idle_for = \"5m\"\ndo = [\"unload chat\"]",
                ":2:1: rule[0].idle_for: it is not said of which slot",
            ),
            (
                "slot = \"chat\"\nbecomes = \"failed\"\nidle_for = \"5m\"\ndo = [\"load chat\"]",
                ":1:1: rule[0]: a rule fires on one thing",
            ),
            (
                "signal = \"x\"\ndo = [\"swap chat chat\"]",
                ":3:7: rule[0].do[0]: `swap chat chat` swaps a slot for itself",
            ),
            ("signal = \"x\"\ndo = []", ":1:1: rule[0]: a rule without `do` does nothing"),
            (
                "at = \"0 0 30 2 *\"\ndo = [\"load chat\"]",
                ":2:6: rule[0].at: `0 0 30 2 *` is a time that never comes",
            ),
        ] {
            let faults = rule(text);
            assert!(faults.contains(told), "{told}\nis not in\n{faults}");
        }
        for source in ["memory", "gpu-0", "gpu-12", "cpu", "disk"] {
            let text = format!(
                "[[rule]]\npressure = \"critical\"\nsource = \"{source}\"\ndo = [\"unload chat\"]\n"
            );
            assert!(checked(&text).is_ok(), "{source}");
        }
    }

    #[test]
    fn two_rules_of_one_name_are_refused() {
        let rule = |name: &str, signal: &str| {
            format!("[[rule]]\nname = \"{name}\"\nsignal = \"{signal}\"\ndo = [\"load chat\"]\n")
        };
        let faults = checked(&(rule("a", "x") + &rule("b", "y") + &rule("a", "z"))).unwrap_err();
        assert!(faults.contains(":10:8: rule[2].name: rule 1 is called `a` too"), "{faults}");
        let unnamed = "[[rule]]\nsignal = \"z\"\ndo = [\"load chat\"]\n";
        let faults = checked(&(rule("rule 2", "x") + unnamed)).unwrap_err();
        assert!(faults.contains(":5:1: rule[1]: rule 1 is called `rule 2` too"), "{faults}");
    }
}

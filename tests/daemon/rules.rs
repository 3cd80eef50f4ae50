//! Rules at work: a name that is said, a slot that is idle, and a file with a fault.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    common::{Daemon, fake, scratch},
    stay::{said, slotd},
};

/// Writes the rules as an editor would: whole, by rename.
fn write_rules(dir: &Path, text: &str) {
    let new = dir.join("rules.tmp");
    fs::write(&new, text).unwrap();
    fs::rename(new, dir.join("rules.toml")).unwrap();
}

#[tokio::test]
async fn a_name_that_is_said_swaps_slots_and_an_edit_with_a_fault_leaves_the_rules_as_they_are() {
    let dir = scratch(&[("german", &fake("", "")), ("english", &fake("", ""))]);
    let rule = "[[rule]]\nname = \"german\"\nsignal = \"language:de\"\ndo = [\"swap english german\", \"pin german\"]\n[[rule]]\nat = \"0 4 * * *\"\ndo = [\"unload german\"]\n";
    write_rules(dir.path(), rule);
    let daemon = Daemon::start(dir).await;
    daemon.order("english", "load").await;
    daemon.until_state("english", "ready").await;
    let mut events = daemon.events().await;
    let told = said(&daemon, "rules").await;
    let first = "german: on the signal language:de: swap english german, pin german\n";
    assert!(told.starts_with(first) && told.contains("next   "), "{told}");

    said(&daemon, "signal language:de").await;
    let fired = events.until(|event| event["event"] == "rule-fired").await;
    assert_eq!(
        (&fired["name"], &fired["text"]),
        (
            &json!("german"),
            &json!("german fired (on the signal language:de): swap english german, pin german")
        )
    );
    daemon.until_state("german", "ready").await;
    daemon.until_state("english", "offline").await;
    daemon.until("german", "pinned", |view| view["pinned"] == true).await;
    assert!(said(&daemon, "rules").await.contains("  fired  "));

    write_rules(daemon.dir.path(), &rule.replace("pin german", "pin gerrman"));
    daemon.until_faults("there is no slot `gerrman`").await;
    let told = said(&daemon, "rules").await;
    assert!(told.starts_with(first), "the last good ones are in force: {told}");
    let fault = "rules not applied: the rules above stay in force until this is mended\n";
    assert!(told.contains(fault) && told.contains("there is no slot `gerrman`"), "{told}");
    let log = daemon.log();
    assert!(log.contains("rules not applied") && !log.contains("profile not applied"), "{log}");
    write_rules(
        daemon.dir.path(),
        "[[rule]]\nslot = \"german\"\nidle_for = \"1s\"\ndo = [\"unload german\"]\n",
    );
    let fired = events.until(|event| event["event"] == "rule-fired").await;
    assert_eq!(fired["text"], "rule 1 fired (when german is idle for 1 s): unload german");
    daemon.until_state("german", "offline").await;
}

#[tokio::test]
async fn each_of_many_names_is_acted_on_or_refused_and_the_last_one_counts() {
    let dir = scratch(&[("german", &fake("", "")), ("english", &fake("", ""))]);
    let rule = |to: &str, from: &str| {
        format!(
            "[[rule]]\nname = \"{to}\"\nsignal = \"language:{to}\"\ndo = [\"unpin {from}\", \"pin {to}\"]\n"
        )
    };
    let end = "[[rule]]\nname = \"end\"\nsignal = \"end\"\ndo = [\"unload english\"]\n";
    write_rules(dir.path(), &(rule("german", "english") + &rule("english", "german") + end));
    let daemon = Daemon::start(dir).await;
    let mut events = daemon.events().await;
    for name in ["german", "english", "german", "english", "german"] {
        assert_eq!(daemon.say(&format!("language:{name}")).await, 202);
    }
    assert_eq!(said(&daemon, "signal end").await, "end is told to the rules\n");
    // It stands in line behind the others.
    events.until(|event| event["event"] == "rule-fired" && event["name"] == "end").await;
    daemon.until("german", "pinned", |view| view["pinned"] == true).await;
    assert_eq!(daemon.slot("english").await["pinned"], false);

    for (line, told) in [
        (
            "signal language:germn",
            "no rule listens for `language:germn`, did you mean `language:german`?",
        ),
        ("signal ", "a name is missing"),
    ] {
        let refused = slotd(&daemon, line).await;
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && stderr.contains(told), "{line}: {stderr}");
    }
    let view = daemon.slot("german").await;
    assert_eq!(
        (&view["rule"]["rule"], &view["rule"]["do"]),
        (&json!("german"), &json!("pin german"))
    );
}

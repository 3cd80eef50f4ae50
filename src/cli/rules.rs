//! `slotd rules` lists the rules, `slotd signal` tells them a name.

use clap::Args;

use super::{client::Client, exit::Exit, failure::Failure, out, text::utc};
use crate::admin::{DaemonObject, RuleObject};

/// Options of `slotd rules`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Print the rules as JSON
    #[arg(long)]
    json: bool,
}

/// Options of `slotd signal`.
#[derive(Args, Debug)]
pub(super) struct SignalOptions {
    /// What has happened, by the name that rules know it by: `language:de`, `app:editor`
    name: String,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let rules = client.rules().await?;
    if options.json {
        out::json(&rules)?;
    } else {
        out::print(told(&rules, &client.daemon().await?))?;
    }
    Ok(Exit::Success)
}

pub(super) async fn signal(options: &SignalOptions, client: &Client) -> Result<Exit, Failure> {
    client.signal(&options.name).await?;
    out::print(format!("{} is told to the rules\n", options.name))?;
    Ok(Exit::Success)
}

fn told(rules: &[RuleObject], daemon: &DaemonObject) -> String {
    let faults = daemon.faults.iter().filter(|fault| daemon.is_of_rules(fault));
    let faults: Vec<_> = faults.map(|fault| format!("{}\n", fault.text)).collect();
    if rules.is_empty() && faults.is_empty() {
        return "there are no rules; `rules.toml` beside the folder of profiles has them\n"
            .to_owned();
    }
    let lines = rules.iter().map(|rule| {
        let RuleObject { rule: name, when, orders, next, fired_unix_ms, .. } = rule;
        let mut text = format!("{name}: {when}: {}\n", orders.join(", "));
        if let Some(next) = next {
            text.extend(["  next   ", next, "\n"]);
        }
        if let Some(fired) = fired_unix_ms {
            text.extend(["  fired  ", &utc(*fired), "\n"]);
        }
        text
    });
    let mut text: String = lines.collect();
    if !faults.is_empty() {
        let stands = match rules {
            [] => "no rules are in force until this is mended",
            [_, ..] => "the rules above stay in force until this is mended",
        };
        text.extend(["rules not applied: ", stands, "\n"].map(str::to_owned));
        text.extend(faults);
    }
    text
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::cli::example;

    #[test]
    fn rules_are_told_with_their_next_time() {
        let rule = RuleObject {
            rule: "evening".to_owned(),
            when: "at 0 22 * * *".to_owned(),
            orders: vec!["swap coder chat".to_owned(), "unpin coder".to_owned()],
            next: Some("2026-03-02 22:00:00 CET".to_owned()),
            next_unix_ms: Some(1_772_485_200_000),
            fired_unix_ms: Some(1_772_398_800_000),
        };
        let mut daemon = example::daemon();
        assert_snapshot!(told(std::slice::from_ref(&rule), &daemon), @r"
        evening: at 0 22 * * *: swap coder chat, unpin coder
          next   2026-03-02 22:00:00 CET
          fired  2026-03-01 21:00:00 UTC
        ");
        let mut fault = daemon.faults[0].clone();
        fault.file = Some("/etc/slotd/rules.toml".into());
        fault.text = "/etc/slotd/rules.toml:3:7: rule[0].do[0]: there is no slot `caht`".to_owned();
        daemon.faults.push(fault);
        assert_snapshot!(told(&[rule], &daemon), @r"
        evening: at 0 22 * * *: swap coder chat, unpin coder
          next   2026-03-02 22:00:00 CET
          fired  2026-03-01 21:00:00 UTC
        rules not applied: the rules above stay in force until this is mended
        /etc/slotd/rules.toml:3:7: rule[0].do[0]: there is no slot `caht`
        ");
        assert_snapshot!(told(&[], &daemon), @r"
        rules not applied: no rules are in force until this is mended
        /etc/slotd/rules.toml:3:7: rule[0].do[0]: there is no slot `caht`
        ");
    }
}

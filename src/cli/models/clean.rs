//! `slotd models clean`: what may go.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{inventory, profile_faults};
use crate::{
    cli::{client::Client, exit::Exit, failure::Failure, out},
    models::inventory::{Plan, Revisions, Stores, Wish, clean_plan, remove},
    runtime::since_1970,
    spec::{Bytes, parse_duration},
};

/// Options of `slotd models clean`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Tell what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave what was changed within this time
    #[arg(long, value_name = "AGE", default_value = "1d", value_parser = parse_duration)]
    older_than: Duration,
    /// Remove revisions too that no branch or tag names; one that was fetched by its commit is such a one
    #[arg(long)]
    revisions: bool,
    /// Print JSON, all sizes in bytes
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    if options.revisions {
        let faults = profile_faults(client).await?;
        refuse_with(&faults)?;
    }
    let known = inventory(client).await?;
    let revisions = if options.revisions { Revisions::Go } else { Revisions::Stay };
    let wish = Wish { older_than: options.older_than, revisions, now: since_1970() };
    let served = known.models.iter().filter(|model| !model.slots.is_empty());
    let served: Vec<PathBuf> = served.map(|model| model.path.clone()).collect();
    let plan = clean_plan(&Stores::named_in(&known), &wish, &served);
    if options.json {
        out::json(&plan)?;
    } else {
        out::print(told(&plan))?;
    }
    if options.dry_run {
        return Ok(Exit::Success);
    }
    let mut freed = 0_u64;
    let mut failed = 0;
    for removal in &plan.removals {
        match remove(removal) {
            Ok(()) => freed = freed.saturating_add(removal.bytes.0),
            Err(error) => {
                failed += 1;
                out::note(&format!("`{}` stays: {error}\n", removal.path.display()));
            }
        }
    }
    if !options.json {
        out::print(format!("{} freed\n", Bytes(freed)))?;
    }
    Ok(if failed == 0 { Exit::Success } else { Exit::Faults })
}

/// A profile with a fault may name a revision that nobody else does.
fn refuse_with(faults: &[String]) -> Result<(), Failure> {
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!(
        "no revision is removed while profiles have faults, for nobody knows which ones they name; mend \
         them (`slotd validate`), or leave `--revisions` out:\n{}",
        faults.join("\n")
    );
    Err(Failure::Refused { message })
}

fn told(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for removal in &plan.removals {
        let what = removal.what.as_str();
        lines.push(format!(
            "{what:<10}  {:>9}  {}",
            removal.bytes.to_string(),
            removal.path.display()
        ));
    }
    lines.extend(plan.kept.iter().cloned());
    lines.push(format!("{} to remove, {}\n", plan.removals.len(), plan.frees()));
    lines.join("\n")
}

//! `slotd models verify`: what each model lacks.

use clap::Args;

use super::{inventory, note_faults};
use crate::{
    cli::{client::Client, exit::Exit, failure::Failure, out},
    models::{
        inventory::{Entry, Hashes, Headers, Inventory, Stores, User, Wholeness, scan},
        name_commands,
    },
};

/// Options of `slotd models verify`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// A model as `slotd models` shows it, its repository, or a slot; all models if absent
    #[arg(value_name = "MODEL|SLOT")]
    model: Option<String>,
    /// Read whole files and compare them with the hashes that they are called by
    #[arg(long)]
    hash: bool,
    /// Print JSON, all sizes in bytes
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    // Which stores there are, and which slots use what, the daemon knows best.
    let known = inventory(client).await?;
    // Nothing is believed that was read before.
    let mut found = scan(&Stores::named_in(&known), &mut Headers::default(), &users_in(&known));
    note_faults(&found);
    let asked = options.model.as_deref();
    found.models.retain(|model| asked.is_none_or(|asked| is_meant(model, asked)));
    if let (Some(asked), true) = (asked, found.models.is_empty()) {
        let message = format!("no model `{asked}` is on disk; `slotd models` lists what is there");
        return Err(Failure::Refused { message });
    }
    let mut hashes = Hashes::default();
    if options.hash {
        for model in &mut found.models {
            hashes.check(model);
        }
    }
    name_commands(&mut found.models);
    if options.json {
        out::json(&found.models)?;
    } else {
        out::print(told(&found.models, options.hash.then_some(&hashes)))?;
    }
    let is_whole = found.models.iter().all(|model| model.state == Wholeness::Whole);
    Ok(if is_whole { Exit::Success } else { Exit::Faults })
}

/// Which slots serve what, as an inventory tells it.
fn users_in(known: &Inventory) -> Vec<User> {
    let of_model = |model: &Entry| {
        let (path, is_loaded) = (model.path.clone(), model.is_loaded);
        let slots = model.slots.clone().into_iter();
        slots.map(move |slot| User { slot, path: path.clone(), is_loaded })
    };
    known.models.iter().flat_map(of_model).collect()
}

/// By its name, its repository, its path, its commit, or a slot that serves it.
fn is_meant(model: &Entry, asked: &str) -> bool {
    let repo = |name: &str| name.split_once(':').map_or(name, |(repo, _)| repo).to_owned();
    model.model == asked
        || repo(&model.model) == asked
        || model.path.as_os_str() == asked
        || model.revision.as_deref() == Some(asked)
        || model.slots.iter().any(|slot| slot.as_str() == asked)
}

fn told(models: &[Entry], hashes: Option<&Hashes>) -> String {
    let mut lines = Vec::new();
    for model in models {
        let short = |commit: &String| commit.chars().take(8).collect::<String>();
        let revision = model.revision.as_ref().map(|commit| format!(" @{}", short(commit)));
        lines.push(format!(
            "{:<10}  {}{}  ({} files, {})",
            model.state.as_str(),
            model.model,
            revision.unwrap_or_default(),
            model.files,
            model.size_bytes
        ));
        lines.extend(model.gaps.iter().map(|gap| {
            let bytes = gap.bytes.map(|bytes| format!(" ({bytes} to fetch)")).unwrap_or_default();
            format!("            {gap}{bytes}")
        }));
    }
    let whole = models.iter().filter(|model| model.state == Wholeness::Whole).count();
    let read = hashes.map(|hashes| {
        format!("; {} files hashed, {}", hashes.files, crate::spec::Bytes(hashes.bytes))
    });
    lines.push(format!("{whole} of {} whole{}\n", models.len(), read.unwrap_or_default()));
    lines.join("\n")
}

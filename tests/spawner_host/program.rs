//! A daemon's process side alone, to be killed by tests: it starts one fake engine for each group
//! of arguments, says their process ids, and waits. As `spawner_host guard` it is the guard.
//!
//! `spawner_host (detect|off) DIR PROGRAM ARG… [-- PROGRAM ARG…]…`

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use slotd::{
    process::{Cgroups, Owner, SpawnSpec, Spawner, SpawnerOptions, guard, log_path},
    spec::{Generation, profile::OnExit},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["guard"] {
        return guard::run();
    }
    match host(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn host(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [cgroups, dir, commands @ ..] = arguments else { return Err("no arguments".into()) };
    let cgroups = if cgroups == "off" { Cgroups::Off } else { Cgroups::Detect };
    let options = SpawnerOptions {
        guard: Some(std::env::current_exe()?),
        cgroups,
        owner: Owner::of(Path::new("/")),
        adopted: Vec::new(),
    };
    let spawner = Spawner::start(options)?;
    let mut children = Vec::new();
    for (index, command) in commands.split(|argument| argument == "--").enumerate() {
        let child = spawner.spawn(spec(Path::new(dir), index, command)?).await?;
        writeln!(io::stdout(), "child {}", child.pid())?;
        children.push(child);
    }
    writeln!(io::stdout(), "done")?;
    std::future::pending::<()>().await;
    drop(children);
    Ok(())
}

fn spec(dir: &Path, index: usize, command: &[String]) -> Result<SpawnSpec, Box<dyn Error>> {
    let (program, args) = command.split_first().ok_or("an empty command")?;
    let (slot, generation) = (format!("host{index}").parse()?, Generation(1));
    Ok(SpawnSpec {
        log: log_path(dir, &slot, generation),
        slot,
        generation,
        program: PathBuf::from(program),
        args: args.iter().map(Into::into).collect(),
        env: BTreeMap::new(),
        socket: None,
        working_dir: dir.to_path_buf(),
        on_exit: OnExit::Stop,
    })
}

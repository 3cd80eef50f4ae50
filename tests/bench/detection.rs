//! How soon a killed engine is out of the routing table, while all cores are busy.

use std::{
    process::{Child, Command, Stdio},
    thread,
};

use super::{Programs, daemon::Daemon, ms, percentile, worst};

const KILLS: usize = 300;

/// Processes that do nothing as fast as they can.
struct Load(Vec<Child>);

impl Load {
    fn of(count: usize) -> Self {
        let burn = || {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap()
        };
        Self((0..count).map(|_| burn()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill().and_then(|()| child.wait()));
        }
    }
}

pub(crate) async fn detection(programs: &Programs) {
    println!("\n| `SIGKILL` of an engine to out of routing | kills | p50 | p99 | max |");
    println!("|---|---|---|---|---|");
    let cores = thread::available_parallelism().map_or(2, usize::from);
    for (name, burning) in [("idle machine", 0), ("two busy loops a core", 2 * cores)] {
        let profile = format!(
            "engine = \"command\"\ncommand = [\"{}\", \"socket={{socket}}\"]\n",
            programs.fake.display()
        );
        let daemon = Daemon::start(&programs.slotd, &[("chat", profile)]).await;
        let load = Load::of(burning);
        let mut times = Vec::new();
        for _ in 0..KILLS {
            daemon.load("chat").await;
            times.push(daemon.kill("chat").await);
        }
        drop(load);
        daemon.end().await;
        println!(
            "| {name} | {KILLS} | {} | {} | {} |",
            ms(percentile(&times, 50)),
            ms(percentile(&times, 99)),
            ms(worst(&times))
        );
    }
}

//! Clients that never stop asking for an engine that dies at every start.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use tokio::task::JoinSet;

use super::{
    Programs,
    client::{CHAT, Connection},
    daemon::{Daemon, monotonic},
    ms, percentile,
};

const CLIENTS: usize = 8;
const WINDOW: Duration = Duration::from_mins(1);
/// Between an answer and the next question of a client: it hammers, but leaves the CPU to others.
const PAUSE: Duration = Duration::from_millis(10);

/// One question: when it was asked, when it was answered, and how.
struct Asked {
    from: Duration,
    to: Duration,
    status: u16,
}

/// Counts the spawns, and how soon after a death those who waited for the engine knew of it.
pub(crate) async fn hammer(programs: &Programs) {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("spawns");
    let profile = format!(
        "engine = \"command\"\ncommand = [\"{}\", \"socket={{socket}}\", \"die_at_start=1\", \"spawn_log={}\"]\n",
        programs.fake.display(),
        notes.display()
    );
    let daemon = Daemon::start(&programs.slotd, &[("chat", profile)]).await;
    let end = monotonic() + WINDOW;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = daemon.address();
        clients.spawn(async move {
            let mut connection = Connection::tcp(address).await;
            let mut asked = Vec::new();
            while monotonic() < end {
                let from = monotonic();
                let status = connection.send("POST", "/v1/chat/completions", CHAT).await;
                asked.push(Asked { from, to: monotonic(), status: status.as_u16() });
                tokio::time::sleep(PAUSE).await;
            }
            asked
        });
    }
    let asked: Vec<Asked> = clients.join_all().await.into_iter().flatten().collect();
    daemon.end().await;
    tell(&spawns(&notes), &asked);
}

/// When each engine started.
fn spawns(notes: &Path) -> Vec<Duration> {
    let lines = fs::read_to_string(notes).unwrap();
    let started = lines.lines().filter_map(|line| line.strip_prefix("started "));
    started.map(|nanos| Duration::from_nanos(nanos.trim().parse().unwrap())).collect()
}

fn tell(spawns: &[Duration], asked: &[Asked]) {
    let began = asked.iter().map(|one| one.from).min().unwrap();
    let mut answers = BTreeMap::new();
    for one in asked {
        *answers.entry(one.status).or_insert(0_usize) += 1;
    }
    let at: Vec<String> = spawns
        .iter()
        .map(|at| format!("{:.2} s", at.saturating_sub(began).as_secs_f64()))
        .collect();
    println!("\n| an engine that dies at each start | {} s, {CLIENTS} clients |", WINDOW.as_secs());
    println!("|---|---|");
    println!("| spawns | {} (at {}) |", spawns.len(), at.join(", "));
    let answers: Vec<String> =
        answers.iter().map(|(status, count)| format!("{count} × {status}")).collect();
    println!("| answers | {} |", answers.join(", "));
    let waited = |one: &&Asked| spawns.iter().any(|at| one.from <= *at && *at < one.to);
    let told: Vec<Duration> = asked
        .iter()
        .filter(waited)
        .map(|one| one.to.saturating_sub(*spawns.iter().rfind(|at| **at < one.to).unwrap()))
        .collect();
    if !told.is_empty() {
        let (half, all) = (ms(percentile(&told, 50)), ms(percentile(&told, 100)));
        println!(
            "| start of the engine to the waiting clients' answers | {} answers, p50 {half}, max {all} |",
            told.len()
        );
    }
    let times: Vec<Duration> = asked.iter().map(|one| one.to.saturating_sub(one.from)).collect();
    let (half, most) = (ms(percentile(&times, 50)), ms(percentile(&times, 100)));
    println!("| question to answer | p50 {half}, max {most} |");
}

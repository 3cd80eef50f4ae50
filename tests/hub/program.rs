//! A hub of models that does what it is told: the protocol of the Hugging Face hub over a folder, with
//! faults to order. For tests of caches and of pulls; any client of the hub may be pointed at it.
//!
//! `hub FOLDER` serves `FOLDER/ORG/REPO/REVISION/…` and prints two addresses, `http://127.0.0.1:PORT
//! http://127.0.0.2:PORT`: the hub, and another host that large files can be sent to. It ends when its
//! standard input does.
//!
//! ```text
//! GET  /api/models/REPO/revision/REV       the commit and its files; /api/models/REPO the same of `main`
//! GET  /api/models/REPO/tree/REV           every file with its size and hashes
//! GET  /api/models/REPO/refs               the branches
//! GET, HEAD  /REPO/resolve/REV/FILE        a file, or a part of it
//! POST /-/rules                            what goes wrong from here on, see `rules`
//! GET  /-/seen                             every request so far; DELETE forgets them
//! ```

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program of tests: it prints its address and is slow when it is told to be"
)]

mod http;
mod repos;
mod rules;
mod serve;

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
};

use repos::Repos;
use rules::Rules;
use serve::{Hub, Seen};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        println!("usage: hub FOLDER");
        return ExitCode::from(64);
    };
    match run(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::from(74)
        }
    }
}

fn run(folder: PathBuf) -> io::Result<()> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.2:0")?];
    let mut urls = Vec::new();
    for listener in &listeners {
        urls.push(format!("http://{}", listener.local_addr()?));
    }
    let [_, other] = urls.as_slice() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    let hub = Arc::new(Hub {
        repos: Repos::new(folder),
        rules: Mutex::new(Rules::default()),
        seen: Mutex::new(Vec::<Seen>::new()),
        other: other.clone(),
    });
    println!("{}", urls.join(" "));
    io::stdout().flush()?;
    for listener in listeners {
        let hub = Arc::clone(&hub);
        // Ends with the program.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = Arc::clone(&hub);
                thread::spawn(move || serve::connection(&hub, &stream));
            }
        });
    }
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

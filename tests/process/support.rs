//! What the tests of processes share.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use slotd::{
    process::{Cgroups, Child, Owner, SpawnSpec, Spawner, SpawnerOptions, log_path},
    spec::{Generation, profile::OnExit},
};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

/// Returns where cargo puts a program of these tests.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let target = own.parent().and_then(Path::parent).unwrap();
    target.join("examples").join(name)
}

/// Waits until `claim` holds; fails by its name after a deadline.
pub(crate) async fn until(name: &str, mut claim: impl FnMut() -> bool) {
    let wait = async {
        while !claim() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "never true: {name}");
}

/// Returns the state letter of a process; `None` if there is none.
pub(crate) fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Tells whether a process runs; a zombie does not.
pub(crate) fn is_alive(pid: Pid) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Returns the cgroup directories that were made for a child.
pub(crate) fn cgroup_dirs(pid: u32) -> Vec<PathBuf> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let names = own.lines().filter_map(|line| line.rsplit_once("/slotd-"));
    let names: Vec<String> = names.map(|(_, rest)| format!("slotd-{rest}")).collect();
    let mut found = Vec::new();
    find(Path::new("/sys/fs/cgroup"), &names, &mut found);
    found
}

fn find(dir: &Path, names: &[String], found: &mut Vec<PathBuf>) {
    let dirs = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    for entry in dirs.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if names.iter().any(|name| entry.file_name() == name.as_str()) {
            found.push(entry.path());
        } else {
            find(&entry.path(), names, found);
        }
    }
}

/// Limits the memory of a child's cgroup; false if that is refused.
pub(crate) fn limit_memory(pid: u32, bytes: u64) -> bool {
    let files = ["memory.max", "memory.limit_in_bytes"];
    let limits = |dir: &PathBuf| {
        // Where there is swap it would take what the limit refuses.
        drop(fs::write(dir.join("memory.swap.max"), "0"));
        files.iter().any(|file| {
            let file = dir.join(file);
            file.exists() && fs::write(file, bytes.to_string()).is_ok()
        })
    };
    cgroup_dirs(pid).iter().filter(|dir| limits(dir)).count() > 0
}

/// Sends a completion request and waits for no answer.
pub(crate) fn post_completion(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(request).unwrap();
}

/// That of all tests, and of `spawner_host`.
fn owner() -> Owner {
    Owner::of(Path::new("/"))
}

/// A spawner with a directory for its logs.
pub(crate) struct Bench {
    pub(crate) spawner: Spawner,
    dir: TempDir,
    generation: AtomicU64,
}

impl Bench {
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        Self::start(SpawnerOptions { guard: None, cgroups, owner: owner(), adopted: Vec::new() })
    }

    pub(crate) fn with_guard(cgroups: Cgroups) -> Self {
        Self::start(SpawnerOptions {
            guard: Some(program("spawner_host")),
            cgroups,
            owner: owner(),
            adopted: Vec::new(),
        })
    }

    fn start(options: SpawnerOptions) -> Self {
        let spawner = Spawner::start(options).unwrap();
        Self { spawner, dir: tempfile::tempdir().unwrap(), generation: AtomicU64::new(1) }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("engines/test.sock")
    }

    pub(crate) fn log(&self, generation: u64) -> PathBuf {
        log_path(&self.dir().join("logs"), &"test".parse().unwrap(), Generation(generation))
    }

    pub(crate) fn spec(&self, args: &[&str]) -> SpawnSpec {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst);
        SpawnSpec {
            slot: "test".parse().unwrap(),
            generation: Generation(generation),
            program: program("fake_engine"),
            args: args.iter().map(Into::into).collect(),
            env: BTreeMap::from([("GIVEN".into(), "1".into())]),
            log: self.log(generation),
            socket: Some(self.socket()),
            working_dir: self.dir().to_path_buf(),
            on_exit: OnExit::Stop,
        }
    }

    pub(crate) async fn spawn(&self, args: &[&str]) -> Child {
        self.spawner.spawn(self.spec(args)).await.unwrap()
    }

    /// Waits for a line of a generation's log that starts with `start`, and returns the rest.
    pub(crate) async fn line(&self, generation: u64, start: &str) -> String {
        line(&self.log(generation), start).await
    }

    /// Returns the process that the engine said it has started.
    pub(crate) async fn grandchild(&self, generation: u64) -> Pid {
        pid(&self.line(generation, "grandchild ").await)
    }
}

async fn line(log: &Path, start: &str) -> String {
    let mut found = None;
    until(&format!("the engine said `{start}`"), || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        found = whole.lines().find_map(|line| line.strip_prefix(start)).map(str::to_owned);
        found.is_some()
    })
    .await;
    found.unwrap()
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap())
}

/// A daemon's process side in a process of its own, that can be killed.
pub(crate) struct Host {
    process: std::process::Child,
    dir: TempDir,
    pub(crate) children: Vec<u32>,
    grandchildren: Vec<Pid>,
}

impl Host {
    /// Starts it with one fake engine, which has a grandchild, for each list of arguments.
    pub(crate) async fn start(cgroups: &str, engines: &[&[&str]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("spawner_host"));
        command.arg(cgroups).arg(dir.path()).stdout(Stdio::piped());
        for (index, args) in engines.iter().enumerate() {
            command.args((index > 0).then_some("--")).arg(program("fake_engine")).args(*args);
        }
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = said.map(Result::unwrap).take_while(|line| line != "done");
        let children: Vec<u32> =
            said.map(|line| line.strip_prefix("child ").unwrap().parse().unwrap()).collect();
        assert_eq!(children.len(), engines.len(), "not all engines were started");
        let mut host = Self { process, dir, children, grandchildren: Vec::new() };
        for index in 0..engines.len() {
            let grandchild = host.grandchild(index).await;
            host.grandchildren.push(grandchild);
        }
        host
    }

    pub(crate) async fn grandchild(&self, index: usize) -> Pid {
        let slot = format!("host{index}").parse().unwrap();
        pid(&line(&log_path(self.dir.path(), &slot, Generation(1)), "grandchild ").await)
    }

    /// Returns all engines and what they have started.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let children = self.children.iter().map(|pid| Pid::from_raw((*pid).try_into().unwrap()));
        children.chain(self.grandchildren.iter().copied()).collect()
    }

    /// Waits for its guard.
    pub(crate) async fn guard(&self) -> Pid {
        until("there is a guard", || self.guard_now().is_some()).await;
        self.guard_now().unwrap()
    }

    pub(crate) fn guard_now(&self) -> Option<Pid> {
        let own = self.process.id();
        let children = fs::read_dir(format!("/proc/{own}/task")).ok()?.filter_map(Result::ok);
        let children =
            children.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children = children.collect::<String>();
        let is_guard = |pid: &Pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"spawner_host\0guard\0")
        };
        children.split_whitespace().map(pid).find(is_guard)
    }

    /// Kills it as an admin or the kernel would.
    pub(crate) fn kill(mut self) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failed test must not leave a daemon behind; after `kill` there is none.
        drop(self.process.kill());
    }
}

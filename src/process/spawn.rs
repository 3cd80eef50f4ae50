//! Starts engines, from one thread that never ends while they live.
//!
//! The kernel sends a child its parent-death signal when the *thread* that forked it ends, so a
//! thread of a pool would kill engines by going idle.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Read},
    os::{
        fd::OwnedFd,
        unix::ffi::OsStrExt,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tracing::{debug, warn};

use super::{
    adopt::Proven,
    cgroup::{Cell, Hierarchies},
    child::{Child, Hold, Parts},
    fault::{SpawnFault, StartFault, is_shortage},
    files, identity, leaf,
    register::{Entry, Register},
    sys::{self, Peek, Setup},
};
use crate::spec::{Generation, SlotName, profile::OnExit};

/// How many jobs may wait for the thread. A caller that finds the queue full waits.
const QUEUE: usize = 64;
/// A program that is being replaced on disk is tried again this often, this far apart.
const BUSY_TRIES: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Added to the engines' OOM score, so that the kernel ends them before the daemon.
const OOM_SCORE: i32 = 500;
/// How long leftovers of an earlier daemon may take to die.
const CLEAN_LIMIT: Duration = Duration::from_secs(10);

/// How a [`Spawner`] works.
#[derive(Clone, Debug)]
pub struct SpawnerOptions {
    /// The program whose `guard` subcommand is [`super::guard::run`]: this very program. Without it
    /// nobody ends grandchildren after a `kill -9` of the daemon.
    pub guard: Option<PathBuf>,
    /// Whether cgroups are used where there are any.
    pub cgroups: Cgroups,
    /// Whose cgroups are whose: of all that dead daemons left, only what has this mark is ended. Two
    /// daemons of one state directory have the same mark, others another one.
    pub owner: Owner,
    /// Cgroup directories of an earlier daemon that are not leftovers: of engines that are adopted.
    pub adopted: Vec<PathBuf>,
}

/// Marks the cgroups of all daemons of one state directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner(u32);

impl Owner {
    /// Returns the mark of a state directory, the same in every build of slotd.
    pub fn of(state_dir: &Path) -> Self {
        let path = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
        let digest: [u8; 32] = Sha256::digest(path.as_os_str().as_bytes()).into();
        let [a, b, c, d, ..] = digest;
        Self(u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Whether cgroups are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cgroups {
    /// Where this process may make directories in a hierarchy.
    Detect,
    /// Never: process groups alone, as on macOS.
    Off,
}

/// One engine to start.
#[derive(Clone, Eq, PartialEq)]
pub struct SpawnSpec {
    /// The slot.
    pub slot: SlotName,
    /// The child's generation.
    pub generation: Generation,
    /// The program; a bare name is looked up in `PATH` of `env`.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub args: Vec<OsString>,
    /// Its whole environment: nothing is inherited.
    pub env: BTreeMap<OsString, OsString>,
    /// Takes its stdout and stderr; made with its parents, appended to.
    pub log: PathBuf,
    /// The Unix socket on which it is going to listen: unlinked before the spawn and after the end.
    pub socket: Option<PathBuf>,
    /// The directory in which it starts.
    pub working_dir: PathBuf,
    /// Whether it ends with the daemon; one that is kept does so until [`super::KeepHandle::release`].
    pub on_exit: OnExit,
}

/// Starts engines. Cheap to clone; once the last clone and the last [`Child`] are gone, the thread
/// and the guard end.
#[derive(Clone, Debug)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
pub(super) enum Job {
    Spawn(Box<SpawnSpec>, oneshot::Sender<Result<Child, SpawnFault>>),
    /// Nothing of the child is left.
    Forget(String),
    /// The guard with this process id has ended.
    GuardEnded(u32),
    /// The child is to outlive the daemon.
    Release(String, oneshot::Sender<()>),
    /// Nothing is left to be guarded.
    DismissGuard(oneshot::Sender<()>),
}

/// Tells the thread that nothing is left of one child.
#[derive(Clone, Debug)]
pub(super) struct Forget {
    name: String,
    jobs: mpsc::Sender<Job>,
}

impl Forget {
    /// Returns once the guard has been told: it reads what it was told before it sees our end.
    pub(super) async fn release(&self) {
        let (tx, rx) = oneshot::channel();
        if self.jobs.send(Job::Release(self.name.clone(), tx)).await.is_ok() {
            // Without the thread there is no guard.
            drop(rx.await);
        }
    }

    pub(super) async fn tell(&self) {
        // Without the thread there is no guard to be told.
        drop(self.jobs.send(Job::Forget(self.name.clone())).await);
    }
}

impl Spawner {
    /// Starts the thread and the guard, and ends what an earlier daemon has left in cgroups. The
    /// first spawn waits for that.
    ///
    /// # Errors
    /// [`StartFault`], each variant as it says.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn start(options: SpawnerOptions) -> Result<Self, StartFault> {
        if options.cgroups == Cgroups::Detect {
            leaf::enter();
        }
        let (tx, mut jobs) = mpsc::channel(QUEUE);
        let runtime = Handle::current();
        let register = match options.guard {
            Some(program) => Register::start(program, runtime.clone(), tx.downgrade())
                .map_err(|(program, source)| StartFault::Guard { program, source })?,
            None => Register::without_guard(),
        };
        let maker = tx.downgrade();
        let work = move || {
            let hierarchies = match options.cgroups {
                Cgroups::Detect => Hierarchies::detect(options.owner),
                Cgroups::Off => Hierarchies::none(),
            };
            hierarchies.clean_stale(&options.adopted, CLEAN_LIMIT);
            let mut forge = Forge { hierarchies, register, runtime, jobs: maker };
            while let Some(job) = jobs.blocking_recv() {
                forge.perform(job);
            }
        };
        // It ends when all senders are gone; each child holds one.
        let thread = thread::Builder::new().name("spawner".to_owned());
        thread.spawn(work).map_err(StartFault::Thread)?;
        Ok(Self { jobs: tx })
    }

    /// Starts one engine. If the caller goes away meanwhile, the engine is ended again.
    ///
    /// # Errors
    /// [`SpawnFault`], each variant as it says.
    pub async fn spawn(&self, spec: SpawnSpec) -> Result<Child, SpawnFault> {
        for _ in 1..BUSY_TRIES {
            match self.try_spawn(spec.clone()).await {
                Err(SpawnFault::Exhausted { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                result => return result,
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        self.try_spawn(spec).await
    }

    /// Takes over an engine of an earlier daemon. Like any child, it is killed when dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn adopt(
        &self,
        (slot, generation): (&SlotName, Generation),
        proven: Proven,
        socket: Option<PathBuf>,
    ) -> Child {
        let forget = Forget { name: name_of(slot, generation), jobs: self.jobs.clone() };
        let Proven { pid, handle, cell } = proven;
        // After an upgrade in place the engine is a child of this very process.
        let is_child = sys::peek_exit(pid, Peek::Now).is_ok();
        let hold = if is_child { Hold::Number } else { Hold::Handle(handle) };
        let parts = Parts { pid, hold, cell, socket, forget };
        Child::new(parts, Handle::current())
    }

    /// Ends the guard without letting it act, and returns once it is reaped. Called when everything
    /// that it knows has ended.
    pub async fn dismiss_guard(&self) {
        let (tx, rx) = oneshot::channel();
        if self.jobs.send(Job::DismissGuard(tx)).await.is_ok() {
            // Without the thread there is no guard.
            drop(rx.await);
        }
    }

    async fn try_spawn(&self, spec: SpawnSpec) -> Result<Child, SpawnFault> {
        let (tx, rx) = oneshot::channel();
        let job = Job::Spawn(Box::new(spec), tx);
        self.jobs.send(job).await.map_err(|_| SpawnFault::Ended)?;
        rx.await.unwrap_or(Err(SpawnFault::Ended))
    }
}

/// What the thread owns.
struct Forge {
    hierarchies: Hierarchies,
    register: Register,
    runtime: Handle,
    jobs: mpsc::WeakSender<Job>,
}

impl Forge {
    fn perform(&mut self, job: Job) {
        match job {
            Job::Spawn(spec, answer) => {
                let result = self.spawn(&spec);
                if let Err(fault) = &result {
                    debug!(slot = %spec.slot, generation = %spec.generation, %fault, "spawn failed");
                }
                // If nobody waits any more, dropping the child ends it.
                drop(answer.send(result));
            }
            Job::Forget(name) => self.register.remove(&name),
            Job::Release(name, answer) => {
                self.register.remove(&name);
                // Who asked may be gone.
                answer.send(()).ok();
            }
            Job::GuardEnded(pid) => self.register.guard_ended(pid),
            Job::DismissGuard(answer) => {
                self.register.dismiss_guard();
                // Who asked may be gone.
                answer.send(()).ok();
            }
        }
    }

    fn spawn(&mut self, spec: &SpawnSpec) -> Result<Child, SpawnFault> {
        let jobs = self.jobs.upgrade().ok_or(SpawnFault::Ended)?;
        let log = prepare(spec)?;
        let mut cell = self.hierarchies.make(&spec.slot, spec.generation);
        let name = name_of(&spec.slot, spec.generation);
        // Before the fork: a daemon that is killed in between has its cgroup on record.
        self.register.add(&name, Entry { group: None, cell: cell.clone() });
        match self.fork(spec, log, &mut cell) {
            Ok(pid) => {
                self.register.add(&name, Entry { group: Some(leader(pid)), cell: cell.clone() });
                let forget = Forget { name, jobs };
                let hold = Hold::Number;
                let parts = Parts { pid, hold, cell, socket: spec.socket.clone(), forget };
                let _entered = self.runtime.enter();
                Ok(Child::new(parts, self.runtime.clone()))
            }
            Err(source) => {
                cell.remove();
                self.register.remove(&name);
                Err(SpawnFault::of(spec.program.clone(), source))
            }
        }
    }

    fn fork(&mut self, spec: &SpawnSpec, log: File, cell: &mut Cell) -> io::Result<Pid> {
        let (mut reports, report) = io::pipe()?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .env_clear()
            .envs(&spec.env)
            .current_dir(&spec.working_dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let setup = Setup {
            on_exit: spec.on_exit,
            parent: Pid::this(),
            joins: cell.joins(),
            oom_score: oom_score(),
            files: files::first(),
            report: OwnedFd::from(report),
        };
        sys::run_before_exec(&mut command, setup);
        let child = command.spawn()?;
        // Closes our end of the pipe, so that reading it comes to an end.
        drop(command);
        self.hear(&mut reports, cell, spec);
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Pid::from_raw(pid))
    }

    /// Takes note of what the child could not do for itself.
    fn hear(&mut self, reports: &mut PipeReader, cell: &mut Cell, spec: &SpawnSpec) {
        let mut heard = Vec::new();
        if let Err(error) = reports.read_to_end(&mut heard) {
            warn!(slot = %spec.slot, %error, "reports of a child were not readable");
        }
        for report in heard {
            cell.give_up(report);
            self.hierarchies.give_up(report);
            debug!(slot = %spec.slot, report = %char::from(report), "child could not set itself up");
        }
    }
}

/// The name under which the guard knows a child.
fn name_of(slot: &SlotName, generation: Generation) -> String {
    format!("{slot}.g{generation}")
}

fn leader(pid: Pid) -> (i32, Option<u64>) {
    (pid.as_raw(), identity::start_time(pid.as_raw().unsigned_abs()))
}

/// Makes the log, the directories and a free place for the socket.
fn prepare(spec: &SpawnSpec) -> Result<File, SpawnFault> {
    if !spec.working_dir.is_dir() {
        return Err(SpawnFault::WorkingDir { path: spec.working_dir.clone() });
    }
    let fault = |path: &Path| {
        let (program, path) = (spec.program.clone(), path.to_path_buf());
        move |source| {
            if is_shortage(&source) {
                SpawnFault::Exhausted { program, source }
            } else {
                SpawnFault::Prepare { path, source }
            }
        }
    };
    if let Some(socket) = &spec.socket {
        make_parent(socket).map_err(fault(socket))?;
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault(socket)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    open_log(&spec.log).or_else(|error| {
        // An engine whose words are lost serves all the same.
        warn!(slot = %spec.slot, generation = %spec.generation, %error, "engine's log not kept");
        let null = Path::new("/dev/null");
        OpenOptions::new().write(true).open(null).map_err(fault(null))
    })
}

fn open_log(path: &Path) -> io::Result<File> {
    make_parent(path)?;
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn make_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)
}

/// Returns what to write to a child's `oom_score_adj`: never less than what it inherits, because
/// lowering needs a privilege.
fn oom_score() -> Vec<u8> {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own = own.trim().parse().unwrap_or(0);
    OOM_SCORE.max(own).to_string().into_bytes()
}

impl fmt::Debug for SpawnSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnSpec")
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &Shown(&self.env))
            .field("log", &self.log)
            .field("socket", &self.socket)
            .field("working_dir", &self.working_dir)
            .field("on_exit", &self.on_exit)
            .finish()
    }
}

/// An environment as it may be shown: values of secrets are left out.
struct Shown<'a>(&'a BTreeMap<OsString, OsString>);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(key, value)| {
            let value = if is_secret(key) { "(secret)".into() } else { value.to_string_lossy() };
            (key, value)
        });
        f.debug_map().entries(shown).finish()
    }
}

fn is_secret(key: &OsString) -> bool {
    let key = key.to_string_lossy().to_ascii_uppercase();
    ["KEY", "TOKEN", "SECRET", "PASSWORD"].iter().any(|end| key.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_the_environment_are_never_shown() {
        let secrets = ["HF_TOKEN", "api_key", "SECRET", "DB_PASSWORD"];
        let env = secrets.iter().map(|key| (key.into(), "canary".into()));
        let spec = SpawnSpec {
            slot: "chat".parse().unwrap(),
            generation: Generation(1),
            program: "/bin/true".into(),
            args: Vec::new(),
            env: env.chain([("LANG".into(), "C.UTF-8".into())]).collect(),
            log: "/tmp/log".into(),
            socket: None,
            working_dir: "/".into(),
            on_exit: OnExit::Stop,
        };
        let shown = format!("{spec:?} {spec:#?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("C.UTF-8") && shown.contains("HF_TOKEN"), "{shown}");
    }
}

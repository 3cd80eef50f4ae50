//! What is measured: slotd and what else passes requests on, each in front of the same origin.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

use super::{
    Programs,
    load::{Until, closed_loop, request},
    sys::{family, on_core},
};

/// The core of whatever passes requests on; the origin and the load have the other one.
const PROXY_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// What may stand in front of the origin.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// The origin itself on the proxy's core.
    Direct,
    /// The relay that knows nothing of HTTP.
    Relay,
    /// slotd, its engine on TCP.
    Slotd,
    /// slotd, its engine on a Unix socket.
    SlotdUnix,
    Nginx,
    Haproxy,
    /// The same, but it reads `model` of the body and chooses by it.
    HaproxyModel,
    LlamaSwap,
    Llamastash,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "l4 relay",
            Self::Slotd => "**slotd**",
            Self::SlotdUnix => "**slotd**, Unix-socket engine",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::HaproxyModel => "HAProxy reading `model`",
            Self::LlamaSwap => "llama-swap",
            Self::Llamastash => "llamastash",
        }
    }

    /// Every kind whose programs are there; says which are not.
    #[expect(clippy::print_stdout, reason = "the report says what was not measured")]
    pub(crate) fn found(with_peers: bool) -> Vec<Self> {
        let mut found = vec![Self::Direct, Self::Relay, Self::Slotd, Self::SlotdUnix];
        if !with_peers {
            return found;
        }
        let peers = [
            (Self::Nginx, "nginx", "SLOTD_BENCH_NGINX"),
            (Self::Haproxy, "haproxy", "SLOTD_BENCH_HAPROXY"),
            (Self::HaproxyModel, "haproxy", "SLOTD_BENCH_HAPROXY"),
            (Self::LlamaSwap, "llama-swap", "SLOTD_BENCH_LLAMA_SWAP"),
            (Self::Llamastash, "llamastash", "SLOTD_BENCH_LLAMASTASH"),
        ];
        for (kind, program, variable) in peers {
            if peer(program, variable).is_some() {
                found.push(kind);
            } else {
                println!("{}: not found (`{variable}` names the program)", kind.name());
            }
        }
        found
    }
}

/// A program by the variable that names it, else where programs are.
fn peer(program: &str, variable: &str) -> Option<PathBuf> {
    if let Some(named) = env::var_os(variable) {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The origin that all others stand in front of.
pub(crate) struct Origin {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Origin {
    pub(crate) fn start(programs: &Programs, core: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("slotd-bench-").tempdir_in("/tmp").unwrap();
        let mut child = on_core(core, &programs.own)
            .arg("origin")
            .arg(dir.path().join("o.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, dir, port: line.trim().parse().unwrap() }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        family(self.child.id())
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// One target, running.
pub(crate) struct Target {
    children: Vec<Child>,
    /// An origin of its own, where it is one.
    own: Option<Origin>,
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    _dir: TempDir,
}

impl Target {
    /// Starts a fresh one and waits until it answers.
    pub(crate) async fn start(kind: Kind, programs: &Programs, origin: &Origin) -> Self {
        let dir = tempfile::Builder::new().prefix("slotd-bench-").tempdir_in("/tmp").unwrap();
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut own = None;
        let mut key = "none".to_owned();
        let (mut command, at) = match kind {
            Kind::Direct => {
                let origin = own.insert(Origin::start(programs, PROXY_CORE));
                (None, origin.address())
            }
            Kind::Relay => {
                let mut command = on_core(PROXY_CORE, &programs.own);
                command.args(["relay", &address.to_string(), &origin.address().to_string()]);
                (Some(command), address)
            }
            Kind::Slotd | Kind::SlotdUnix => {
                let url = match kind {
                    Kind::SlotdUnix => {
                        format!("unix:{}", origin.dir.path().join("o.sock").display())
                    }
                    Kind::Slotd
                    | Kind::Direct
                    | Kind::Relay
                    | Kind::Nginx
                    | Kind::Haproxy
                    | Kind::HaproxyModel
                    | Kind::LlamaSwap
                    | Kind::Llamastash => format!("http://{}", origin.address()),
                };
                key = write_slotd(programs, dir.path(), &url);
                (Some(slotd(programs, dir.path(), address)), address)
            }
            Kind::Nginx => (Some(nginx(dir.path(), address, origin.address())), address),
            Kind::Haproxy => {
                (Some(haproxy(dir.path(), address, (origin.address(), false))), address)
            }
            Kind::HaproxyModel => {
                (Some(haproxy(dir.path(), address, (origin.address(), true))), address)
            }
            Kind::LlamaSwap => (Some(llama_swap(programs, dir.path(), address)), address),
            Kind::Llamastash => (Some(llamastash(programs, dir.path(), address)), address),
        };
        let children = command.iter_mut().map(|command| command.spawn().unwrap()).collect();
        let target = Self { children, own, address: at, key, _dir: dir };
        target.answers().await;
        target
    }

    async fn answers(&self) {
        let request = request(&self.key, 300, "");
        for _ in 0..200 {
            if TcpStream::connect(self.address).await.is_ok() {
                let tried = closed_loop(self.address, &request, 1, Until::Count(1)).await;
                if tried.requests == 1 {
                    return;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{} never answered", self.address);
    }

    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        let roots = self.children.iter().map(Child::id);
        let own = self.own.iter().flat_map(Origin::pids);
        // What a peer has started as its engine is none of the peer.
        let is_engine = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains("origin-tcp")
        };
        roots.flat_map(family).filter(|pid| !is_engine(pid)).chain(own).collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(end);
    }
}

/// Asks it to end, and sees to it.
fn end(child: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    for _ in 0..200 {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Writes what slotd reads: a slot, its own file, a key. Returns the key.
fn write_slotd(programs: &Programs, dir: &Path, url: &str) -> String {
    fs::create_dir(dir.join("profiles")).unwrap();
    let profile = format!("engine = \"external\"\nurl = \"{url}\"\nparallel = {PARALLEL}\n");
    fs::write(dir.join("profiles/bench.toml"), profile).unwrap();
    let more = env::var("SLOTD_BENCH_CONFIG").unwrap_or_default();
    fs::write(dir.join("slotd.toml"), format!("access_log = false\n{more}\n")).unwrap();
    let made = Command::new(&programs.slotd)
        .args(["key", "new", "bench", "--keys"])
        .arg(dir.join("keys"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// The most that a profile takes.
const PARALLEL: u32 = 16_384;

fn slotd(programs: &Programs, dir: &Path, address: SocketAddr) -> Command {
    let mut command = on_core(PROXY_CORE, &programs.slotd);
    command
        .args(["serve", "--listen", &address.to_string(), "--config"])
        .arg(dir.join("slotd.toml"))
        .arg("--keys")
        .arg(dir.join("keys"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--profiles")
        .arg(dir.join("profiles"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).unwrap());
    command
}

fn nginx(dir: &Path, address: SocketAddr, origin: SocketAddr) -> Command {
    let dir_name = dir.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {dir_name}/pid; error_log /dev/null;\n\
         events {{ worker_connections 9000; }}\n\
         http {{ access_log off; client_body_temp_path {dir_name}/b; proxy_temp_path {dir_name}/p;\n\
         fastcgi_temp_path {dir_name}/f; uwsgi_temp_path {dir_name}/u; scgi_temp_path {dir_name}/s;\n\
         keepalive_requests 100000000; tcp_nodelay on; client_body_buffer_size 256k;\n\
         upstream origin {{ server {origin}; keepalive 4096; keepalive_requests 100000000; }}\n\
         server {{ listen {address} backlog=4096; location / {{ proxy_pass http://origin;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n"
    );
    fs::write(dir.join("nginx.conf"), text).unwrap();
    let mut command = on_core(PROXY_CORE, &peer("nginx", "SLOTD_BENCH_NGINX").unwrap());
    command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg("/dev/null");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn haproxy(dir: &Path, address: SocketAddr, (origin, reads_model): (SocketAddr, bool)) -> Command {
    let (size, choice) = if reads_model {
        let choice = "option http-buffer-request\n\
             http-request set-var(txn.model) req.body,json_query('$.model')\n\
             use_backend origin if { var(txn.model) -m str bench }\n";
        ("tune.bufsize 65536\n", choice)
    } else {
        // At the default of 16 KiB too: it reads nothing.
        ("", "default_backend origin\n")
    };
    let text = format!(
        "global\nnbthread 1\nmaxconn 9000\n{size}\
         defaults\nmode http\ntimeout connect 5s\ntimeout client 120s\ntimeout server 120s\n\
         option http-keep-alive\noption http-no-delay\nhttp-reuse always\n\
         frontend in\nbind {address} backlog 4096\n{choice}\
         backend origin\nserver origin {origin}\n"
    );
    fs::write(dir.join("haproxy.cfg"), text).unwrap();
    let mut command = on_core(PROXY_CORE, &peer("haproxy", "SLOTD_BENCH_HAPROXY").unwrap());
    command.arg("-db").arg("-q").arg("-f").arg(dir.join("haproxy.cfg"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn llama_swap(programs: &Programs, dir: &Path, address: SocketAddr) -> Command {
    let text = format!(
        "logLevel: error\nmodels:\n  bench:\n    cmd: taskset -c {LOAD_CORE} {} origin-tcp 127.0.0.1:${{PORT}}\n    concurrencyLimit: 10000\n",
        programs.own.display()
    );
    fs::write(dir.join("config.yaml"), text).unwrap();
    let mut command = on_core(PROXY_CORE, &peer("llama-swap", "SLOTD_BENCH_LLAMA_SWAP").unwrap());
    command.arg("-config").arg(dir.join("config.yaml")).arg("-listen").arg(address.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn llamastash(programs: &Programs, dir: &Path, address: SocketAddr) -> Command {
    let text = format!(
        "backend:\n  generic:\n    servers:\n      - name: bench\n        binary: /usr/bin/taskset\n        \
         args: [\"-c\", \"{LOAD_CORE}\", \"{}\", \"origin-tcp\", \"127.0.0.1:{{port}}\"]\n        \
         ready: /health\n        memory_gib: 1\n        modes: [chat]\n",
        programs.own.display()
    );
    fs::write(dir.join("config.yaml"), text).unwrap();
    let mut command = on_core(PROXY_CORE, &peer("llamastash", "SLOTD_BENCH_LLAMASTASH").unwrap());
    command.arg("--config").arg(dir.join("config.yaml"));
    command.args(["daemon", "start", "--foreground", "--proxy-port", &address.port().to_string()]);
    for (name, folder) in [
        ("HOME", "home"),
        ("XDG_CONFIG_HOME", "c"),
        ("XDG_STATE_HOME", "s"),
        ("XDG_DATA_HOME", "d"),
        ("XDG_CACHE_HOME", "k"),
        ("XDG_RUNTIME_DIR", "r"),
    ] {
        fs::create_dir_all(dir.join(folder)).unwrap();
        command.env(name, dir.join(folder));
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

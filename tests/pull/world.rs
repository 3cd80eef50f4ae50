//! A hub with repositories, a cache, and `slotd pull` between them.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A hub that serves a folder.
pub(crate) struct Hub {
    child: Child,
    /// The hub ends when this does.
    _input: ChildStdin,
    pub(crate) url: String,
    folder: PathBuf,
    http: reqwest::Client,
}

/// One request that the hub saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) target: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) sent: u64,
}

/// How a pull ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) said: String,
}

impl Hub {
    /// Starts the program `examples/hub` beside `slotd`.
    pub(crate) fn start(slotd: &Path, folder: &Path) -> Self {
        let program = slotd.parent().unwrap().join("examples/hub");
        assert!(program.is_file(), "{} is not built", program.display());
        let mut child = Command::new(program)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the hub starts");
        let input = child.stdin.take().expect("a pipe");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("the hub says its addresses");
        let (url, _) = line.trim().split_once(' ').expect("two addresses");
        let url = url.to_owned();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { child, _input: input, url, folder: folder.to_owned(), http }
    }

    /// Puts a file into a repository's `main`.
    pub(crate) fn put(&self, path: &str, content: &[u8]) {
        self.put_at(path, "main", content);
    }

    /// Puts a file into another revision of a repository.
    pub(crate) fn put_at(&self, path: &str, revision: &str, content: &[u8]) {
        let (org_repo, file) = split(path);
        let path = self.folder.join(org_repo).join(revision).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Says what goes wrong from here on.
    pub(crate) async fn rules(&self, rules: Value) {
        let sent = self.http.post(format!("{}/-/rules", self.url)).json(&rules).send().await;
        let answer = sent.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Orders faults alone.
    pub(crate) async fn faults(&self, faults: Value) {
        self.rules(json!({ "faults": faults })).await;
    }

    /// Returns every request so far but those of this client.
    pub(crate) async fn seen(&self) -> Vec<Seen> {
        let answer = self.http.get(format!("{}/-/seen", self.url)).send().await.unwrap();
        let all: Vec<BTreeMap<String, Value>> = answer.json().await.unwrap();
        let text = |of: &BTreeMap<String, Value>, key: &str| {
            of.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        all.iter()
            .map(|one| Seen {
                host: text(one, "host").unwrap(),
                target: text(one, "target").unwrap(),
                range: text(one, "range"),
                authorization: text(one, "authorization"),
                sent: one.get("sent").and_then(Value::as_u64).unwrap(),
            })
            .collect()
    }

    /// Returns the requests for files.
    pub(crate) async fn fetches(&self) -> Vec<Seen> {
        let all = self.seen().await.into_iter();
        all.filter(|seen| seen.target.contains("/resolve/")).collect()
    }

    /// Forgets every request.
    pub(crate) async fn forget(&self) {
        self.http.delete(format!("{}/-/seen", self.url)).send().await.unwrap();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command line of slotd with this hub and cache and nothing else of the environment.
pub(crate) fn slotd(slotd: &Path, hub: &Hub, cache: &Path) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(slotd);
    command
        .env_clear()
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HUB_CACHE", cache)
        .env("HOME", cache)
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: tokio::process::Command) -> End {
    let output = command.output().await.unwrap();
    End {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        said: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Bytes that do not repeat, other ones for each `seed`.
pub(crate) fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // Source: xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The files of a repository in a cache: what its `main` leads to, by their paths.
pub(crate) fn snapshot(cache: &Path, repo: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = folder(cache, repo);
    let commit = fs::read_to_string(folder.join("refs/main")).expect("a revision");
    let mut files = BTreeMap::new();
    collect(&folder.join("snapshots").join(commit), "", &mut files);
    files
}

pub(crate) fn folder(cache: &Path, repo: &str) -> PathBuf {
    cache.join(format!("models--{}", repo.replace('/', "--")))
}

fn collect(folder: &Path, inside: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let name = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        if entry.path().is_dir() {
            collect(&entry.path(), &name, files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// What lies in the folder of contents: how much is begun, how many are whole. Whatever has the name of
/// a whole one is hashed.
pub(crate) fn blobs(cache: &Path, repo: &str) -> (u64, usize) {
    let (mut begun, mut whole) = (0, 0);
    for entry in fs::read_dir(folder(cache, repo).join("blobs")).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".incomplete") {
            // A pull that goes on may have made it whole since it was listed.
            begun += entry.metadata().map_or(0, |found| found.size());
            continue;
        }
        whole += 1;
        if name.len() == 64 {
            let sum = Sha256::digest(fs::read(entry.path()).unwrap());
            let hex = sum.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            assert_eq!(hex, name, "a file has the name of a whole one and is none");
        }
    }
    (begun, whole)
}

/// The first two parts of a path, and the rest.
fn split(path: &str) -> (&str, &str) {
    let at = path.match_indices('/').nth(1).expect("`org/repo/file`").0;
    let (repo, file) = path.split_at(at);
    (repo, file.trim_start_matches('/'))
}

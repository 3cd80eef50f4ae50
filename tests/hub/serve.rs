//! Requests and their answers.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    http::{Head, Request},
    repos::{Commit, Entry, Repos, pointer},
    rules::{Deed, Rules},
};

const BLOCK: usize = 64 << 10;

/// What all connections share.
pub(crate) struct Hub {
    pub(crate) repos: Repos,
    pub(crate) rules: Mutex<Rules>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    /// The address of the other host.
    pub(crate) other: String,
}

/// One request that came.
#[derive(Clone, Serialize)]
pub(crate) struct Seen {
    method: String,
    host: String,
    target: String,
    range: Option<String>,
    authorization: Option<String>,
    /// What it was answered with; 0 while it is not.
    status: u16,
    /// How much of a body was sent.
    sent: u64,
}

/// One request with its place in the list.
struct Exchange<'a> {
    hub: &'a Hub,
    stream: &'a TcpStream,
    request: Request,
    host: String,
    place: usize,
}

/// Serves one connection to its end.
pub(crate) fn connection(hub: &Hub, stream: &TcpStream) {
    let Ok(host) = stream.local_addr().map(|address| address.ip().to_string()) else { return };
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = Request::read(&mut reader) {
        let answered = if request.path().starts_with("/-/") {
            control(hub, stream, &request)
        } else {
            Exchange::new(hub, stream, request, &host).answer()
        };
        // Cut as it was told, or left by the client: nobody hears more either way.
        if answered.is_err() {
            break;
        }
    }
    // The client may have left before.
    drop(stream.shutdown(Shutdown::Both));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn control(hub: &Hub, stream: &TcpStream, request: &Request) -> io::Result<()> {
    let answer = match (request.method.as_str(), request.path()) {
        ("POST", "/-/rules") => match serde_json::from_slice(&request.body) {
            Ok(rules) => {
                *locked(&hub.rules) = rules;
                Ok(Value::Null)
            }
            Err(fault) => Err(fault.to_string()),
        },
        ("GET", "/-/seen") => Ok(json!(*locked(&hub.seen))),
        ("DELETE", "/-/seen") => {
            locked(&hub.seen).clear();
            Ok(Value::Null)
        }
        _ => Err("no such path".to_owned()),
    };
    let (status, text) = match answer {
        Ok(value) => (200, value.to_string()),
        Err(fault) => (400, json!({ "error": fault }).to_string()),
    };
    let head = Head::default().with("Content-Type", "application/json");
    head.write(stream, status, length(&text))?;
    (&mut &*stream).write_all(text.as_bytes())
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

impl<'a> Exchange<'a> {
    fn new(hub: &'a Hub, stream: &'a TcpStream, request: Request, host: &str) -> Self {
        let header = |name| request.header(name).map(str::to_owned);
        let seen = Seen {
            method: request.method.clone(),
            host: host.to_owned(),
            target: request.target.clone(),
            range: header("range"),
            authorization: header("authorization"),
            status: 0,
            sent: 0,
        };
        let mut all = locked(&hub.seen);
        all.push(seen);
        let place = all.len() - 1;
        Self { hub, stream, request, host: host.to_owned(), place }
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        // The list may have been emptied since.
        if let Some(seen) = locked(&self.hub.seen).get_mut(self.place) {
            note(seen);
        }
    }

    fn answer(&self) -> io::Result<()> {
        let Request { method, target, .. } = &self.request;
        let deed = locked(&self.hub.rules).next(method, &self.host, target);
        match &deed {
            Some(Deed::Status { code, retry_after_s }) => {
                let head = Head::default();
                let head = match retry_after_s {
                    Some(seconds) => head.with("Retry-After", seconds.to_string()),
                    None => head,
                };
                return self.text(*code, head, "{\"error\":\"as it was told\"}");
            }
            Some(Deed::Redirect { to }) => {
                let head = Head::default().with("Location", format!("{to}{target}"));
                return self.text(302, head, "");
            }
            _ => {}
        }
        let path = decoded(self.request.path());
        if self.is_refused() {
            let head = Head::default().with("X-Error-Message", "Invalid username or password.");
            return self.text(401, head, "{\"error\":\"Invalid username or password.\"}");
        }
        if let Some(asked) = path.strip_prefix("/api/models/") {
            return self.api(asked);
        }
        match path.trim_start_matches('/').split_once("/resolve/") {
            Some((repo, rest)) => self.file(repo, rest, deed.as_ref()),
            None => self.absent("EntryNotFound"),
        }
    }

    fn is_refused(&self) -> bool {
        let rules = locked(&self.hub.rules);
        let Some(token) = &rules.token else { return false };
        let shown = self.request.header("authorization").and_then(|it| it.strip_prefix("Bearer "));
        self.is_hub() && shown != Some(token)
    }

    /// Tells the hub from the other host.
    fn is_hub(&self) -> bool {
        !self.hub.other.contains(&self.host)
    }

    fn api(&self, asked: &str) -> io::Result<()> {
        let (repo, what, revision) = ["/revision/", "/tree/", "/refs"]
            .iter()
            .find_map(|what| asked.split_once(what).map(|(repo, rest)| (repo, *what, rest)))
            .unwrap_or((asked, "/revision/", "main"));
        if self.hub.repos.revisions(repo).is_empty() {
            return self.absent("RepoNotFound");
        }
        if what == "/refs" {
            return self.json(&self.refs(repo));
        }
        let Some(commit) = self.hub.repos.commit(repo, revision) else {
            return self.absent("RevisionNotFound");
        };
        let answer = if what == "/tree/" {
            commit.files.iter().map(listed).collect()
        } else {
            let names = commit.files.iter().map(|file| json!({ "rfilename": file.name }));
            json!({ "id": repo, "modelId": repo, "sha": commit.id, "private": false,
                "siblings": names.collect::<Vec<_>>(), "tags": [] })
        };
        self.json(&answer)
    }

    fn refs(&self, repo: &str) -> Value {
        let branch = |name: String| {
            let commit = self.hub.repos.commit(repo, &name)?;
            Some(
                json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commit.id }),
            )
        };
        let branches: Vec<_> =
            self.hub.repos.revisions(repo).into_iter().filter_map(branch).collect();
        json!({ "branches": branches, "tags": [], "converts": [] })
    }

    fn file(&self, repo: &str, rest: &str, deed: Option<&Deed>) -> io::Result<()> {
        let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
        let revision = decoded(revision);
        if self.hub.repos.revisions(repo).is_empty() {
            return self.absent("RepoNotFound");
        }
        let Some(commit) = self.hub.repos.commit(repo, &revision) else {
            return self.absent("RevisionNotFound");
        };
        let Some(entry) = commit.files.iter().find(|file| file.name == name) else {
            let head = Head::default()
                .with("X-Repo-Commit", commit.id)
                .with("X-Error-Code", "EntryNotFound");
            return self.text(404, head, "{\"error\":\"Entry not found\"}");
        };
        let is_elsewhere = entry.sha256.is_some()
            && self.is_hub()
            && locked(&self.hub.rules).send_large_to_other_host;
        if is_elsewhere {
            let to = format!("{}{}", self.hub.other, self.request.target);
            let head = self.head(&commit, entry).with("Location", to);
            return self.text(302, head, "");
        }
        self.content(&commit, entry, deed)
    }

    fn head(&self, commit: &Commit, entry: &Entry) -> Head {
        let head = Head::default().with("X-Repo-Commit", commit.id.clone());
        if entry.sha256.is_none() {
            return head.with("ETag", format!("\"{}\"", entry.git));
        }
        // The hub's own name of the answer, which is not that of the content.
        let own = if self.is_hub() { &entry.git } else { entry.etag() };
        head.with("ETag", format!("\"{own}\""))
            .with("X-Linked-Etag", format!("\"{}\"", entry.etag()))
            .with("X-Linked-Size", entry.size.to_string())
    }

    fn content(&self, commit: &Commit, entry: &Entry, deed: Option<&Deed>) -> io::Result<()> {
        let size = match deed {
            Some(Deed::Short { by }) => entry.size.saturating_sub(*by),
            _ => entry.size,
        };
        let head = self.head(commit, entry).with("Accept-Ranges", "bytes");
        let part = self.request.range().filter(|_| !matches!(deed, Some(Deed::NoRange)));
        let (first, last) = match part {
            Some((first, _)) if first >= size => {
                let head = head.with("Content-Range", format!("bytes */{size}"));
                return self.text(416, head, "");
            }
            Some((first, last)) => (first, last.map_or(size, |last| size.min(last + 1))),
            None => (0, size),
        };
        let (status, head) = if part.is_some() {
            (206, head.with("Content-Range", format!("bytes {first}-{}/{size}", last - 1)))
        } else {
            (200, head)
        };
        head.write(self.stream, status, last - first)?;
        self.note(|seen| seen.status = status);
        if self.request.method == "HEAD" {
            return Ok(());
        }
        self.body(entry, (first, last), deed)
    }

    fn body(&self, entry: &Entry, part: (u64, u64), deed: Option<&Deed>) -> io::Result<()> {
        let (first, last) = part;
        let end = match deed {
            Some(Deed::Drop { after } | Deed::Stall { after }) => last.min(first + after),
            _ => last,
        };
        let mut file = File::open(&entry.path)?;
        file.seek(SeekFrom::Start(first))?;
        let mut block = vec![0; BLOCK];
        let mut at = first;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            let read = file.read(block.get_mut(..most).unwrap_or_default())?;
            let Some(bytes) = block.get_mut(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            if let Some(Deed::Flip { at: place }) = deed {
                let inside = usize::try_from(place.wrapping_sub(at)).unwrap_or(usize::MAX);
                if let Some(byte) = bytes.get_mut(inside) {
                    *byte ^= 0x55;
                }
            }
            (&mut &*self.stream).write_all(bytes)?;
            let sent = u64::try_from(read).unwrap_or(0);
            at += sent;
            self.note(|seen| seen.sent += sent);
            if let Some(Deed::Slow { bytes_per_s }) = deed {
                thread::sleep(Duration::from_micros(sent * 1_000_000 / (*bytes_per_s).max(1)));
            }
        }
        match deed {
            Some(Deed::Drop { .. }) if end < last => Err(cut()),
            Some(Deed::Stall { .. }) if end < last => {
                // Until the client has had enough of it.
                (&mut &*self.stream).read_to_end(&mut Vec::new())?;
                Err(cut())
            }
            _ => Ok(()),
        }
    }

    fn absent(&self, code: &str) -> io::Result<()> {
        let head = Head::default().with("X-Error-Code", code);
        self.text(404, head, &json!({ "error": code }).to_string())
    }

    fn json(&self, value: &Value) -> io::Result<()> {
        self.text(200, Head::default(), &value.to_string())
    }

    fn text(&self, status: u16, head: Head, text: &str) -> io::Result<()> {
        let head = head.with("Content-Type", "application/json");
        head.write(self.stream, status, length(text))?;
        let is_head = self.request.method == "HEAD";
        self.note(|seen| {
            seen.status = status;
            seen.sent = if is_head { 0 } else { length(text) };
        });
        if is_head { Ok(()) } else { (&mut &*self.stream).write_all(text.as_bytes()) }
    }
}

/// What ends a connection that was told to break.
fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

fn listed(file: &Entry) -> Value {
    let mut listed =
        json!({ "type": "file", "path": file.name, "size": file.size, "oid": file.git });
    if let (Some(sha256), Some(fields)) = (&file.sha256, listed.as_object_mut()) {
        let lfs = json!({ "oid": sha256, "size": file.size, "pointerSize": pointer(sha256, file.size).len() });
        fields.insert("lfs".to_owned(), lfs);
    }
    listed
}

/// Undoes percent-encoding.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        if let (Some(code), Some(rest)) = (code, part.get(2..)) {
            bytes.push(code);
            bytes.extend_from_slice(rest.as_bytes());
        } else {
            bytes.push(b'%');
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

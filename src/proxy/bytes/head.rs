//! The head of a request: what is surely one, and what goes on to the engine.
//!
//! A head is taken where every part of it is plain; nothing here refuses. Who is not sure leaves the
//! request to hyper, which reads it anew.

use std::{ops::Range, time::Duration};

use hyper::header::HeaderValue;

use super::super::{
    Client,
    access::{Asker, Caller},
    forward::silence_of,
    serve::{is_request_id, new_request_id},
    surface::{self, Intake, Work},
};

/// The most headers of a request that is taken here.
const MOST_HEADERS: usize = 48;
/// The longest head that is taken here.
pub(super) const LONGEST_HEAD: usize = 16 << 10;
/// The longest body that is taken here: larger ones are bounded and collected elsewhere.
const LONGEST_BODY: usize = 1 << 20;
const METHOD: &[u8] = b"POST ";

/// What lies at the front of a buffer.
#[derive(Debug)]
pub(super) enum Front {
    /// A head that is not whole yet.
    Begun,
    /// Anything that is not surely a request of the hot paths.
    Odd,
    /// The head of one.
    Sure(Box<Asking>),
}

/// A request whose head was read.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) work: Work,
    /// Where its body lies in the buffer, once it is there.
    pub(super) body: Range<usize>,
    /// The head as it goes to the engine, but for the length of the body and the end.
    pub(super) forward: Vec<u8>,
    /// What the flight takes along.
    pub(super) request_id: Option<HeaderValue>,
    pub(super) agent: Option<HeaderValue>,
    /// Its key.
    pub(super) caller: Option<Caller>,
    /// How long the client hears nothing at most.
    pub(super) silence: Duration,
}

/// What becomes of one header.
enum Fate {
    Kept,
    KeptBack,
    Odd,
}

/// What was gathered of the headers.
#[derive(Default)]
struct Gathered<'a> {
    host: Option<&'a str>,
    length: Option<usize>,
    authorization: Option<&'a [u8]>,
    x_api_key: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    agent: Option<&'a [u8]>,
    read_timeout: Option<&'a str>,
}

/// Reads what lies at the front of `buffer`.
pub(super) fn read(buffer: &[u8], client: &Client) -> Front {
    let begins = buffer.len().min(METHOD.len());
    if buffer.get(..begins) != METHOD.get(..begins) {
        return Front::Odd;
    }
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => {
            let asking = buffer.get(..length).filter(|head| has_plain_lines(head));
            asking
                .and_then(|_| sure(&request, length, client))
                .map_or(Front::Odd, |asking| Front::Sure(Box::new(asking)))
        }
        Ok(httparse::Status::Partial) if buffer.len() < LONGEST_HEAD => Front::Begun,
        Ok(httparse::Status::Partial) | Err(_) => Front::Odd,
    }
}

/// Tells whether each line ends with both of its bytes.
fn has_plain_lines(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head)
        .all(|at| at.checked_sub(1).and_then(|at| head.get(at)) == Some(&b'\r'))
}

fn sure(request: &httparse::Request<'_, '_>, head: usize, client: &Client) -> Option<Asking> {
    if request.version != Some(1) || request.method != Some("POST") {
        return None;
    }
    let path = request.path?;
    let work = surface::work(path).filter(|work| is_hot(path, *work))?;
    let mut forward = Vec::with_capacity(head.saturating_add(128));
    for part in [METHOD, path.as_bytes(), b" HTTP/1.1\r\n"] {
        forward.extend_from_slice(part);
    }
    let mut gathered = Gathered::default();
    for header in request.headers.iter() {
        let start = forward.len();
        forward.extend_from_slice(header.name.as_bytes());
        forward.get_mut(start..)?.make_ascii_lowercase();
        match gathered.take(forward.get(start..)?, header.value) {
            Fate::Odd => return None,
            Fate::KeptBack => forward.truncate(start),
            Fate::Kept => {
                forward.extend_from_slice(b": ");
                forward.extend_from_slice(header.value);
                forward.extend_from_slice(b"\r\n");
            }
        }
    }
    let access = &client.shared.access;
    if !access.origins.is_empty() || !access.is_host(gathered.host?, client.local) {
        return None;
    }
    let caller = match access.asker((gathered.authorization, gathered.x_api_key)) {
        Asker::Anybody => None,
        Asker::Known(caller) => Some(caller),
        Asker::Nobody => return None,
    };
    let length = gathered.length.filter(|length| *length <= client.shared.limits.max_body)?;
    let theirs = gathered.request_id.filter(|id| is_request_id(id));
    let request_id = match theirs {
        Some(id) => HeaderValue::from_bytes(id).ok()?,
        None => new_request_id(),
    };
    for part in [b"x-request-id: ", request_id.as_bytes(), b"\r\nhost: localhost\r\n"] {
        forward.extend_from_slice(part);
    }
    Some(Asking {
        work,
        body: head..head.checked_add(length)?,
        forward,
        request_id: Some(request_id),
        agent: gathered.agent.and_then(|agent| HeaderValue::from_bytes(agent).ok()),
        caller,
        silence: silence_of(&client.shared.limits, gathered.read_timeout),
    })
}

/// Paths of JSON that every engine has under the same name.
fn is_hot(path: &str, work: Work) -> bool {
    work.intake == Intake::Json && path != "/v2/rerank"
}

impl<'a> Gathered<'a> {
    /// Decides on a header by its name in lower case.
    fn take(&mut self, name: &[u8], value: &'a [u8]) -> Fate {
        let is_plain = are_all(name, |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && are_all(value, |byte| matches!(byte, b' '..=b'~' | b'\t'));
        if !is_plain {
            return Fate::Odd;
        }
        match name {
            b"host" => once(&mut self.host, str::from_utf8(value).ok()),
            b"content-length" => once(&mut self.length, length(value)),
            b"authorization" => once(&mut self.authorization, Some(value)),
            b"x-api-key" => once(&mut self.x_api_key, Some(value)),
            b"x-request-id" => once(&mut self.request_id, Some(value)),
            b"connection" if value.eq_ignore_ascii_case(b"keep-alive") => Fate::KeptBack,
            b"user-agent" => kept(once(&mut self.agent, Some(value))),
            b"x-stainless-read-timeout" => {
                kept(once(&mut self.read_timeout, str::from_utf8(value).ok()))
            }
            b"accept-encoding"
            | b"api-key"
            | b"cookie"
            | b"forwarded"
            | b"keep-alive"
            | b"proxy-authorization"
            | b"referer" => Fate::KeptBack,
            // About the framing, the connection, a page, a trace, a lane: each has its own rules.
            b"connection"
            | b"content-encoding"
            | b"expect"
            | b"origin"
            | b"proxy-authenticate"
            | b"proxy-connection"
            | b"te"
            | b"traceparent"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
            | b"x-slotd-lane" => Fate::Odd,
            _ if name.starts_with(b"x-forwarded-") => Fate::KeptBack,
            _ if name.starts_with(b"sec-") => Fate::Odd,
            _ => Fate::Kept,
        }
    }
}

/// Tells whether a claim holds for each byte. Looks at all of them, which is done many at a time.
fn are_all(bytes: &[u8], claim: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, byte| so_far & claim(*byte))
}

/// Takes what may be there once.
fn once<T>(place: &mut Option<T>, value: Option<T>) -> Fate {
    if place.is_some() || value.is_none() {
        return Fate::Odd;
    }
    *place = value;
    Fate::KeptBack
}

/// The same for a header that goes along.
fn kept(fate: Fate) -> Fate {
    match fate {
        Fate::KeptBack => Fate::Kept,
        Fate::Kept | Fate::Odd => fate,
    }
}

/// Reads a length of one way of writing: digits, no zero in front, not above what is taken here.
fn length(value: &[u8]) -> Option<usize> {
    let is_plain = matches!(value, [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
    if !is_plain {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok().filter(|length| *length <= LONGEST_BODY)
}

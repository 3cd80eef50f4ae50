//! The head of an engine's answer, and the head that its client gets.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{HeaderName, HeaderValue},
};

use super::framing::Framing;

/// The most headers of an answer.
const MOST_HEADERS: usize = 100;

/// An answer whose head was read.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// What the client gets of its headers, each with its line end; without any about its body's framing.
    pub(super) headers: Vec<u8>,
    pub(super) framing: Framing,
    pub(super) is_events: bool,
    pub(super) has_date: bool,
    /// The engine keeps the connection open afterwards.
    pub(super) is_kept: bool,
}

/// What lies at the front of what an engine said.
#[derive(Debug)]
pub(super) enum Said {
    /// A head that is not whole yet.
    Begun,
    /// An interim answer of so many bytes.
    Interim(usize),
    /// A head of so many bytes.
    Head(usize, Reply),
    /// No HTTP, or none that can be passed on.
    Garbled,
}

/// Reads what lies at the front of what an engine said.
pub(super) fn read(bytes: &[u8]) -> Said {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Said::Begun,
        Err(_) => return Said::Garbled,
    };
    match response.code {
        Some(100 | 102..200) => Said::Interim(length),
        Some(200..) => reply(&response).map_or(Said::Garbled, |reply| Said::Head(length, reply)),
        Some(_) | None => Said::Garbled,
    }
}

fn reply(response: &httparse::Response<'_, '_>) -> Option<Reply> {
    let status = StatusCode::from_u16(response.code?).ok()?;
    let mut reply = Reply {
        status,
        headers: Vec::with_capacity(256),
        framing: Framing::UntilClose,
        is_events: false,
        has_date: false,
        is_kept: response.version == Some(1),
    };
    let (mut length, mut is_chunked) = (None, false);
    let kind = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-type"));
    reply.is_events = kind.is_some_and(|kind| kind.value.starts_with(b"text/event-stream"));
    for header in response.headers.iter() {
        let start = reply.headers.len();
        reply.headers.extend_from_slice(header.name.as_bytes());
        let name = reply.headers.get_mut(start..)?;
        name.make_ascii_lowercase();
        let is_kept = match &*name {
            b"content-length" => {
                let told = plain_length(header.value)?;
                if length.is_some_and(|length| length != told) {
                    return None;
                }
                length = Some(told);
                false
            }
            b"transfer-encoding" => {
                if is_chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                is_chunked = true;
                false
            }
            b"connection" => {
                reply.is_kept &= !named(header.value, b"close");
                false
            }
            // A stream's are slotd's.
            b"cache-control" | b"x-accel-buffering" if reply.is_events => false,
            name => {
                reply.has_date |= name == b"date";
                !is_ours(name) && !is_named_by_connection(response, name)
            }
        };
        if is_kept {
            put_value(&mut reply.headers, header.value);
        } else {
            reply.headers.truncate(start);
        }
    }
    reply.framing = match (is_chunked, length) {
        _ if matches!(status.as_u16(), 204 | 304) => Framing::Length(0),
        (true, _) => Framing::CHUNKED,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    reply.is_kept &= reply.framing != Framing::UntilClose;
    Some(reply)
}

/// Headers that are not the client's business, and those about one connection.
fn is_ours(name: &[u8]) -> bool {
    matches!(
        name,
        b"server"
            | b"set-cookie"
            | b"x-request-id"
            | b"connection"
            | b"expect"
            | b"keep-alive"
            | b"proxy-authenticate"
            | b"proxy-connection"
            | b"te"
            | b"trailer"
            | b"upgrade"
    ) || name.starts_with(b"access-control-")
}

fn is_named_by_connection(response: &httparse::Response<'_, '_>, name: &[u8]) -> bool {
    let mut lists = response
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("connection"))
        .map(|header| header.value);
    lists.any(|list| named(list, name))
}

/// Tells whether a list of words has one.
fn named(list: &[u8], word: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(word))
}

fn plain_length(value: &[u8]) -> Option<u64> {
    let is_plain = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if is_plain { str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// Appends a header.
pub(super) fn put(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    put_value(head, value);
}

/// Appends what comes behind a header's name.
fn put_value(head: &mut Vec<u8>, value: &[u8]) {
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Appends `content-length`.
pub(super) fn put_length(head: &mut Vec<u8>, length: u64) {
    let mut digits = [0_u8; 20];
    let (mut left, mut start) = (length, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' | u8::try_from(left % 10).unwrap_or(0);
        (left, start) = (left / 10, at);
        if left == 0 {
            break;
        }
    }
    put(head, "content-length", digits.get(start..).unwrap_or_default());
}

/// Appends the first line of an answer.
pub(super) fn put_status(head: &mut Vec<u8>, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or("<none>");
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
}

impl Reply {
    /// Returns the headers as the rest of slotd has them.
    pub(super) fn header_map(&self) -> HeaderMap {
        let lines = self.headers.split(|byte| *byte == b'\n');
        let pairs = lines.filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(at)?;
            let name = HeaderName::from_bytes(name).ok()?;
            let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
            Some((name, value))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }
}

/// Appends an answer that is whole already, but for what every answer says.
pub(super) fn put_whole(out: &mut Vec<u8>, response: &Response<()>, said: &[u8], body: &[u8]) {
    put_status(out, response.status());
    for (name, value) in response.headers() {
        put(out, name.as_str(), value.as_bytes());
    }
    put_length(out, u64::try_from(body.len()).unwrap_or(u64::MAX));
    for part in [said, b"\r\n", body] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Option<Reply> {
        match read(text.as_bytes()) {
            Said::Head(_, reply) => Some(reply),
            Said::Begun | Said::Interim(_) | Said::Garbled => None,
        }
    }

    #[test]
    fn the_framing_is_what_the_head_surely_says() {
        for (fields, framing, is_kept) in [
            ("content-length: 5\r\n", Framing::Length(5), true),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Framing::Length(5), true),
            ("content-length: 5\r\nconnection: x, Close\r\n", Framing::Length(5), false),
            ("transfer-encoding: Chunked\r\ncontent-length: 9\r\n", Framing::CHUNKED, true),
            ("", Framing::UntilClose, false),
        ] {
            let reply = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap();
            assert_eq!((reply.framing, reply.is_kept), (framing, is_kept), "{fields}");
        }
        for fields in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: 5, 5\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        ] {
            assert!(head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_none(), "{fields}");
        }
    }

    #[test]
    fn a_length_is_told_in_its_digits() {
        for length in [0, 7, 10, 4096, u64::MAX] {
            let mut head = Vec::new();
            put_length(&mut head, length);
            assert_eq!(String::from_utf8(head).unwrap(), format!("content-length: {length}\r\n"));
        }
    }

    #[test]
    fn what_is_about_the_engine_or_its_connection_stays_behind() {
        let reply = head(
            "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\n\
             Set-Cookie: a=b\r\nAccess-Control-Allow-Origin: *\r\nConnection: keep-alive, x-two\r\n\
             X-Two: 2\r\nContent-Type: application/json\r\n\r\n",
        )
        .unwrap();
        let text = String::from_utf8(reply.headers.clone()).unwrap();
        assert_eq!(text, "x-one: 1\r\ncontent-type: application/json\r\n");
        assert_eq!(reply.header_map().len(), 2);
    }
}

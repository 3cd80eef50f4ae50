//! As much of HTTP/1.1 as an engine needs: requests with a length, responses whole or in chunks.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{MsgFlags, recv};

/// One connection, over TCP or a Unix socket.
pub(crate) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// Tells whether the client has closed its end.
    pub(crate) fn is_closed(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.fd().as_raw_fd(), &mut [0], flags) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error != nix::errno::Errno::EAGAIN,
        }
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One request.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// `x-request-id`, if it was sent.
    pub(crate) id: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Reads the next request of a connection; `None` at its end.
    pub(crate) fn read(from: &mut BufReader<Connection>) -> io::Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request =
            Self { method: method.to_owned(), path: path.to_owned(), id: None, body: Vec::new() };
        let (mut length, mut is_chunked) = (0, false);
        while let Some(header) = line(from)?.filter(|header| !header.is_empty()) {
            let (name, value) = header.split_once(':').unwrap_or((&header, ""));
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or(0),
                "transfer-encoding" => is_chunked = true,
                "x-request-id" => request.id = Some(value.to_owned()),
                _ => {}
            }
        }
        if is_chunked {
            request.body = chunks(from)?;
        } else {
            from.take(length).read_to_end(&mut request.body)?;
        }
        Ok(Some(request))
    }
}

fn line(from: &mut BufReader<Connection>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = from.read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim_end().to_owned()))
}

fn chunks(from: &mut BufReader<Connection>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?.unwrap_or_default();
        let size = u64::from_str_radix(size.split(';').next().unwrap_or_default(), 16);
        let size = size.map_err(io::Error::other)?;
        from.take(size).read_to_end(&mut body)?;
        line(from)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Writes a whole response.
pub(crate) fn respond(to: &mut Connection, status: u16, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {}\r\n\r\n",
        reason(status),
        body.len()
    );
    to.write_all(format!("{head}{body}").as_bytes())
}

/// Begins a response of server-sent events.
pub(crate) fn begin_events(to: &mut Connection) -> io::Result<()> {
    to.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )
}

/// Writes one event.
pub(crate) fn event(to: &mut Connection, data: &str) -> io::Result<()> {
    let event = format!("data: {data}\n\n");
    to.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
}

/// Ends a response of events.
pub(crate) fn end_events(to: &mut Connection) -> io::Result<()> {
    to.write_all(b"0\r\n\r\n")
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        503 => "Service Unavailable",
        _ => "Other",
    }
}

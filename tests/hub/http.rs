//! As much of HTTP/1.1 as a hub needs.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
};

/// One request.
pub(crate) struct Request {
    pub(crate) method: String,
    /// As it was sent, with its query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Reads the next request of a connection; `None` at its end.
    pub(crate) fn read(from: &mut BufReader<&TcpStream>) -> io::Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Self { method, target, headers: Vec::new(), body: Vec::new() };
        while let Some(header) = line(from)?.filter(|header| !header.is_empty()) {
            let (name, value) = header.split_once(':').unwrap_or((&header, ""));
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = request.header("content-length").and_then(|length| length.parse().ok());
        from.take(length.unwrap_or(0)).read_to_end(&mut request.body)?;
        Ok(Some(request))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// The bytes that are asked for, where it is a part: the first, and the last where that is said.
    pub(crate) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

fn line(from: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = from.read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim_end().to_owned()))
}

/// The head of an answer.
#[derive(Default)]
pub(crate) struct Head(Vec<(&'static str, String)>);

impl Head {
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// Writes it; a body of `length` bytes is to follow.
    pub(crate) fn write(&self, mut to: &TcpStream, status: u16, length: u64) -> io::Result<()> {
        let mut text = Vec::new();
        write!(text, "HTTP/1.1 {status} {}\r\n", reason(status))?;
        for (name, value) in &self.0 {
            write!(text, "{name}: {value}\r\n")?;
        }
        write!(text, "Content-Length: {length}\r\n\r\n")?;
        to.write_all(&text)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        _ => "Error",
    }
}

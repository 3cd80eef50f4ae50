//! The table of odd requests.

#![expect(clippy::too_many_lines, reason = "a table has as many lines as cases")]

use super::HIDDEN;
use crate::client::chat;

/// What has to become of a case.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// So many requests reach the engine, each answered.
    Passes(usize),
    /// Nothing reaches the engine; every answer, if there is one, is a refusal.
    Refused,
    /// The endpoint answers by itself: nothing reaches the engine.
    Ours,
    /// Standards leave room: one request, or a refusal.
    AtMostOne,
    /// It is not complete: nothing reaches the engine, whatever is answered at its end.
    Waits,
}

use Expected::{AtMostOne, Ours, Passes, Refused, Waits};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: Expected,
}

const LINE: &str = "POST /v1/chat/completions HTTP/1.1\r\n";
const START: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";

fn body() -> String {
    chat("chat", false)
}

/// A whole request that only a server which lost the framing would see.
fn hidden() -> String {
    let body = format!("{{\"model\":\"chat\",\"prompt\":\"{HIDDEN}\"}}");
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn whole() -> String {
    format!("{START}content-length: {}\r\n\r\n{}", body().len(), body())
}

fn chunked() -> String {
    format!("{:x}\r\n{}\r\n0\r\n\r\n", body().len(), body())
}

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for group in
        [lengths(), encodings(), chunks(), fields(), lines(), hosts(), floods(), orders(), bodies()]
    {
        cases.extend(group);
    }
    cases
}

fn case(name: &'static str, text: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name, bytes: text.into(), expected }
}

/// `{L}` stands for the body's length in fields that come in the place of its plain one.
fn with_fields(name: &'static str, fields: &str, expected: Expected) -> Case {
    let fields = fields.replace("{L}", &body().len().to_string());
    let after = if matches!(expected, Passes(_)) { String::new() } else { hidden() };
    case(name, format!("{START}{fields}\r\n\r\n{}{after}", body()), expected)
}

fn lengths() -> Vec<Case> {
    [
        ("a plain length", "content-length: {L}", Passes(1)),
        ("a length between tabs", "content-length:\t{L}\t", Passes(1)),
        ("a length in capitals", "CONTENT-LENGTH:{L}", Passes(1)),
        ("a length with zeros before it", "content-length: 000{L}", Passes(1)),
        ("a length twice, the same", "content-length: {L}\r\ncontent-length: {L}", Passes(1)),
        ("a length with a plus", "content-length: +{L}", Refused),
        ("a length with a minus", "content-length: -{L}", Refused),
        ("a length of minus nothing", "content-length: -0", Refused),
        ("a list of the same length", "content-length: {L}, {L}", Refused),
        ("a list of lengths", "content-length: {L}, 0", Refused),
        ("a length in hexadecimal", "content-length: 0x2a", Refused),
        ("a length with a power", "content-length: 1e2", Refused),
        ("a length with a fraction", "content-length: {L}.0", Refused),
        ("a length with an underscore", "content-length: 1_0", Refused),
        ("a length of two words", "content-length: {L} 5", Refused),
        ("a length in quotes", "content-length: \"{L}\"", Refused),
        ("an empty length", "content-length:", Refused),
        ("a length of letters", "content-length: ten", Refused),
        ("a length with a semicolon", "content-length: {L};", Refused),
        ("a length of 2^64", "content-length: 18446744073709551616", Refused),
        ("a length of 2^64 - 1", "content-length: 18446744073709551615", Refused),
        ("a length of thirty digits", "content-length: 999999999999999999999999999999", Refused),
        ("a length in other digits", "content-length: \u{ff15}", Refused),
        ("two lengths, the first short", "content-length: 0\r\ncontent-length: {L}", Refused),
        ("two lengths, the second short", "content-length: {L}\r\ncontent-length: 0", Refused),
        (
            "three lengths, the last other",
            "content-length: {L}\r\ncontent-length: {L}\r\ncontent-length: 1",
            Refused,
        ),
        ("two lengths, cases mixed", "Content-Length: {L}\r\ncontent-lengtH: 3", Refused),
        ("a length with a space in its name", "content length: {L}", Refused),
        ("a length with a space before the colon", "content-length : {L}", Refused),
        ("no length and no encoding", "x: y", Refused),
        ("a length of nothing before a body", "content-length: 0", Refused),
    ]
    .map(|(name, fields, expected)| {
        // What follows a body of no length is a request of its own, so it must be none.
        if matches!(name, "no length and no encoding" | "a length of nothing before a body") {
            return case(name, format!("{START}{fields}\r\n\r\n{}", body()), expected);
        }
        with_fields(name, fields, expected)
    })
    .into()
}

fn encodings() -> Vec<Case> {
    let plain = [
        ("chunked", "transfer-encoding: chunked", Passes(1)),
        ("chunked in capitals", "Transfer-Encoding: CHUNKED", Passes(1)),
        ("length before chunked", "content-length: 5\r\ntransfer-encoding: chunked", AtMostOne),
        ("chunked before length", "transfer-encoding: chunked\r\ncontent-length: 5", AtMostOne),
        ("no length before chunked", "content-length: 0\r\ntransfer-encoding: chunked", AtMostOne),
        ("chunked before no length", "transfer-encoding: chunked\r\ncontent-length: 0", AtMostOne),
        (
            "length, chunked, length",
            "content-length: 5\r\ntransfer-encoding: chunked\r\ncontent-length: 9",
            AtMostOne,
        ),
        (
            "a bad length before chunked",
            "content-length: x\r\ntransfer-encoding: chunked",
            AtMostOne,
        ),
        (
            "chunked before a bad length",
            "transfer-encoding: chunked\r\ncontent-length: x",
            AtMostOne,
        ),
        ("xchunked", "transfer-encoding: xchunked", Refused),
        ("chunkedx", "transfer-encoding: chunkedx", Refused),
        ("chunk", "transfer-encoding: chunk", Refused),
        ("identity", "transfer-encoding: identity", Refused),
        ("gzip alone", "transfer-encoding: gzip", Refused),
        ("an empty encoding", "transfer-encoding:", Refused),
        ("chunked, then identity", "transfer-encoding: chunked, identity", Refused),
        (
            "chunked, then gzip, in two fields",
            "transfer-encoding: chunked\r\ntransfer-encoding: gzip",
            Refused,
        ),
        ("chunked with a parameter", "transfer-encoding: chunked;q=1", Refused),
        ("chunked in quotes", "transfer-encoding: \"chunked\"", Refused),
        ("chunked after a vertical tab", "transfer-encoding: \u{b}chunked", Refused),
        ("chunked before a NUL", "transfer-encoding: chunked\0", Refused),
        ("chunked with a space before the colon", "transfer-encoding : chunked", Refused),
        (
            "an underscore in the encoding's name",
            "transfer_encoding: chunked\r\ncontent-length: 0",
            Refused,
        ),
        ("xchunked and a length", "transfer-encoding: xchunked\r\ncontent-length: 5", Refused),
        ("identity and a length", "transfer-encoding: identity\r\ncontent-length: 5", Refused),
    ];
    let mut cases: Vec<Case> = plain
        .into_iter()
        .map(|(name, fields, expected)| {
            let after = if matches!(expected, AtMostOne) { hidden() } else { String::new() };
            case(name, format!("{START}{fields}\r\n\r\n{}{after}", chunked()), expected)
        })
        .collect();
    for (name, field) in [
        ("gzip, then chunked", "gzip, chunked"),
        ("chunked twice", "chunked, chunked"),
        ("identity, then chunked", "identity, chunked"),
        ("a comma, then chunked", ", chunked"),
    ] {
        let text = format!("{START}transfer-encoding: {field}\r\n\r\n{}", chunked());
        cases.push(case(name, text, AtMostOne));
    }
    let old = START.replace("HTTP/1.1", "HTTP/1.0");
    cases.push(case(
        "chunked in HTTP/1.0",
        format!("{old}transfer-encoding: chunked\r\n\r\n{}", chunked()),
        Refused,
    ));
    cases.push(case(
        "length and chunked, the body for the length",
        format!(
            "{START}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{}",
            hidden()
        ),
        Refused,
    ));
    cases
}

fn chunks() -> Vec<Case> {
    let length = body().len();
    let of = |chunks: String| format!("{START}transfer-encoding: chunked\r\n\r\n{chunks}");
    let sized = |size: &str| format!("{size}\r\n{}\r\n0\r\n\r\n", body());
    let text = body();
    let (first, rest) = text.split_at(7);
    let mut cases = vec![
        case(
            "two chunks",
            of(format!("7\r\n{first}\r\n{:X}\r\n{rest}\r\n0\r\n\r\n", rest.len())),
            Passes(1),
        ),
        case("a chunk with an extension", of(sized(&format!("{length:x};a=b"))), Passes(1)),
        case("zeros before a chunk's size", of(sized(&format!("0000{length:x}"))), Passes(1)),
        case(
            "zeros as the last chunk",
            of(format!("{length:x}\r\n{text}\r\n000\r\n\r\n")),
            Passes(1),
        ),
        case("a trailer", of(format!("{length:x}\r\n{text}\r\n0\r\nx: y\r\n\r\n")), Passes(1)),
        case(
            "a length as a trailer",
            of(format!("{length:x}\r\n{text}\r\n0\r\ncontent-length: 1\r\n\r\n")),
            AtMostOne,
        ),
        case(
            "an encoding as a trailer",
            of(format!("{length:x}\r\n{text}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n")),
            AtMostOne,
        ),
        case(
            "a host as a trailer",
            of(format!("{length:x}\r\n{text}\r\n0\r\nhost: evil\r\n\r\n")),
            AtMostOne,
        ),
        case(
            "a trailer without a colon",
            of(format!("{length:x}\r\n{text}\r\n0\r\nnothing\r\n\r\n")),
            AtMostOne,
        ),
        case("no last chunk", of(format!("{length:x}\r\n{text}\r\n")), Waits),
        case("no end of the last chunk", of(format!("{length:x}\r\n{text}\r\n0\r\n")), Waits),
        case("less than a chunk's size", of(format!("{:x}\r\n{text}", length + 9)), Waits),
        case(
            "more than a chunk's size",
            of(format!("{:x}\r\n{text}\r\n0\r\n\r\n", length - 3)),
            Refused,
        ),
        case("no line end after a chunk", of(format!("{length:x}\r\n{text}0\r\n\r\n")), Refused),
        case("a bare LF after a chunk", of(format!("{length:x}\r\n{text}\n0\r\n\r\n")), Refused),
        case("a bare LF after a size", of(format!("{length:x}\n{text}\r\n0\r\n\r\n")), Refused),
        case("a bare CR after a size", of(format!("{length:x}\r{text}\r\n0\r\n\r\n")), Refused),
        case("a bare LF in an extension", of(sized(&format!("{length:x};a\nb"))), Refused),
        case(
            "a flood of extensions",
            of(sized(&format!("{length:x};{}", "a".repeat(40_000)))),
            Refused,
        ),
        case(
            "a flood of trailers",
            of(format!("{length:x}\r\n{text}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(20_000))),
            Refused,
        ),
        case(
            "an endless trailer",
            of(format!("{length:x}\r\n{text}\r\n0\r\nx: {}\r\n\r\n", "y".repeat(200_000))),
            Refused,
        ),
    ];
    for (name, size) in [
        ("a size of letters", "xyz".to_owned()),
        ("a size with a minus", format!("-{length:x}")),
        ("a size with a plus", format!("+{length:x}")),
        ("a size with 0x", format!("0x{length:x}")),
        ("a space before a size", format!(" {length:x}")),
        ("no size", String::new()),
        ("a size of 2^64", "10000000000000000".to_owned()),
        ("a size of seventeen F", "FFFFFFFFFFFFFFFFF".to_owned()),
        ("a size in quotes", format!("\"{length:x}\"")),
        ("a size with an underscore", "2_a".to_owned()),
        ("a NUL after a size", format!("{length:x}\0")),
        ("a comma after a size", format!("{length:x},")),
        ("an extension without a size", ";a=b".to_owned()),
    ] {
        cases.push(case(name, of(sized(&size)), Refused));
    }
    cases.push(case("a space after a size", of(sized(&format!("{length:x} "))), AtMostOne));
    cases
}

fn fields() -> Vec<Case> {
    let length = body().len();
    let with = |fields: &str| {
        format!("{START}{fields}content-length: {length}\r\n\r\n{}", body()).into_bytes()
    };
    let mut cases = vec![
        case("a folded field", with("x: a\r\n b\r\n"), Refused),
        case("a field folded by a tab", with("x: a\r\n\tb\r\n"), Refused),
        case("a folded encoding", with("transfer-encoding:\r\n chunked\r\n"), Refused),
        case(
            "a folded length",
            format!("{START}content-length:\r\n {length}\r\n\r\n{}", body()),
            Refused,
        ),
        case("a space before the first field", format!("{LINE} host: localhost\r\n\r\n"), Refused),
        case("a space before the colon", with("x : y\r\n"), Refused),
        case("a tab before the colon", with("x\t: y\r\n"), Refused),
        case("a field without a colon", with("nothing\r\n"), Refused),
        case("a field without a name", with(": y\r\n"), Refused),
        case("a NUL in a value", with("x: a\0b\r\n"), Refused),
        case("a NUL in a name", with("x\0y: a\r\n"), Refused),
        case("a bare CR in a value", with("x: a\rb\r\n"), Refused),
        case("a bare CR before a hidden length", with("x: a\rcontent-length: 0\r\n"), Refused),
        case("a bell in a value", with("x: a\u{7}b\r\n"), Refused),
        case("a DEL in a value", with("x: a\u{7f}b\r\n"), Refused),
        case("a bracket in a name", with("x(y): a\r\n"), Refused),
        case("other letters in a name", with("\u{e9}x: a\r\n"), Refused),
        case("other letters in a value", with("x: \u{e9}\r\n"), AtMostOne),
        case("an empty value", with("x:\r\n"), Passes(1)),
        case(
            "a name of a thousand letters",
            with(&format!("{}: y\r\n", "x".repeat(1000))),
            AtMostOne,
        ),
        case("bare LF as every line end", whole().replace("\r\n", "\n"), AtMostOne),
        case("a bare LF in the head's end", whole().replacen("\r\n\r\n", "\r\n\n", 1), AtMostOne),
        case("a bare LF after a field", with("x: y\n"), AtMostOne),
        case(
            "a bare LF before a hidden field",
            with("x: y\ntransfer-encoding: chunked\r\n"),
            AtMostOne,
        ),
    ];
    // Fields about one connection reach nobody.
    for (name, field) in [
        ("`Connection` that names the length", "connection: content-length\r\n"),
        ("`Connection` that names the host", "connection: host\r\n"),
        ("`Connection` that names the encoding", "connection: transfer-encoding\r\n"),
        (
            "an upgrade to h2c",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        ),
        ("a proxy's connection", "proxy-connection: keep-alive\r\n"),
        ("an overriding method", "x-http-method-override: DELETE\r\n"),
        ("an overriding path", "x-original-url: /elsewhere\r\n"),
    ] {
        cases.push(case(name, with(field), Passes(1)));
    }
    cases
}

fn lines() -> Vec<Case> {
    let end = format!("host: localhost\r\ncontent-length: {}\r\n\r\n{}", body().len(), body());
    let mut cases = Vec::new();
    for (name, line, expected) in [
        ("an absolute form", "POST http://localhost/v1/chat/completions HTTP/1.1", Passes(1)),
        (
            "an absolute form in capitals",
            "POST HTTP://LOCALHOST/v1/chat/completions HTTP/1.1",
            AtMostOne,
        ),
        (
            "an absolute form of another host",
            "POST http://evil.example/v1/chat/completions HTTP/1.1",
            Refused,
        ),
        (
            "an absolute form of another port",
            "POST http://localhost:1/v1/chat/completions HTTP/1.1",
            Refused,
        ),
        (
            "an absolute form with a user",
            "POST http://a@localhost/v1/chat/completions HTTP/1.1",
            Refused,
        ),
        (
            "an absolute form without slashes",
            "POST http:localhost/v1/chat/completions HTTP/1.1",
            Refused,
        ),
        ("an absolute form without a host", "POST http:///v1/chat/completions HTTP/1.1", Refused),
        ("an absolute form of a file", "POST file:///v1/chat/completions HTTP/1.1", Refused),
        ("an authority form", "POST localhost:80 HTTP/1.1", Refused),
        ("CONNECT", "CONNECT localhost:80 HTTP/1.1", Refused),
        ("CONNECT to elsewhere", "CONNECT evil.example:443 HTTP/1.1", Refused),
        ("an asterisk", "OPTIONS * HTTP/1.1", Ours),
        ("an asterisk that is posted", "POST * HTTP/1.1", Refused),
        ("two slashes", "POST //v1/chat/completions HTTP/1.1", Refused),
        ("dots in the path", "POST /v1/x/../chat/completions HTTP/1.1", Refused),
        ("an encoded path", "POST /v1/chat%2fcompletions HTTP/1.1", Refused),
        ("a query", "POST /v1/chat/completions?a=b HTTP/1.1", Passes(1)),
        ("a fragment", "POST /v1/chat/completions#a HTTP/1.1", AtMostOne),
        ("a path without a slash", "POST v1/chat/completions HTTP/1.1", Refused),
        ("no path", "POST HTTP/1.1", Refused),
        ("no version", "POST /v1/chat/completions", Refused),
        ("two spaces before the path", "POST  /v1/chat/completions HTTP/1.1", Refused),
        ("two spaces before the version", "POST /v1/chat/completions  HTTP/1.1", Refused),
        ("a tab in the line", "POST\t/v1/chat/completions HTTP/1.1", Refused),
        ("a space after the version", "POST /v1/chat/completions HTTP/1.1 ", Refused),
        ("a space before the method", " POST /v1/chat/completions HTTP/1.1", Refused),
        ("HTTP/0.9", "POST /v1/chat/completions HTTP/0.9", Refused),
        ("HTTP/1.2", "POST /v1/chat/completions HTTP/1.2", Refused),
        ("HTTP/11", "POST /v1/chat/completions HTTP/11", Refused),
        ("HTTP/2.0", "POST /v1/chat/completions HTTP/2.0", Refused),
        ("a lower-case version", "POST /v1/chat/completions http/1.1", Refused),
        ("a lower-case method", "post /v1/chat/completions HTTP/1.1", Refused),
        ("a made-up method", "SMUGGLE /v1/chat/completions HTTP/1.1", Refused),
        ("TRACE", "TRACE /v1/chat/completions HTTP/1.1", Refused),
        ("a method with a NUL", "PO\0ST /v1/chat/completions HTTP/1.1", Refused),
        ("a path with a NUL", "POST /v1/chat/completions\0 HTTP/1.1", Refused),
        ("a path with a DEL", "POST /v1/chat/completions\u{7f} HTTP/1.1", Refused),
        ("other letters in a path", "POST /v1/chat/completions\u{e9} HTTP/1.1", Refused),
        ("a backslash in a path", "POST /v1\\chat/completions HTTP/1.1", Refused),
        ("HTTP/1.0 with a host", "POST /v1/chat/completions HTTP/1.0", AtMostOne),
    ] {
        cases.push(case(name, format!("{line}\r\n{end}"), expected));
    }
    cases.push(case("an empty line before the request", format!("\r\n{}", whole()), AtMostOne));
    cases.push(case("a bare LF before the request", format!("\n{}", whole()), AtMostOne));
    cases.push(case("HTTP/2 from the start", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused));
    cases.push(case(
        "TLS to a plain port",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        Refused,
    ));
    cases.push(case("SMTP", "EHLO localhost\r\n\r\n", Refused));
    cases.push(case("nothing but NULs", vec![0; 64], Refused));
    cases.push(case("half a line", "POST /v1/ch", Waits));
    cases.push(case("nothing at all", "", Waits));
    cases
}

fn hosts() -> Vec<Case> {
    let end = format!("content-length: {}\r\n\r\n{}", body().len(), body());
    let mut cases = Vec::new();
    for (name, host, expected) in [
        ("a host with a port", "host: localhost:80\r\n", Passes(1)),
        ("a host in capitals", "HOST: LOCALHOST\r\n", Passes(1)),
        ("a host by its address", "host: 127.0.0.1\r\n", Passes(1)),
        ("a host by its other address", "host: [::1]:80\r\n", Passes(1)),
        ("no host", "", Refused),
        ("an empty host", "host:\r\n", Refused),
        ("two hosts", "host: localhost\r\nhost: localhost\r\n", Refused),
        ("two hosts, one foreign", "host: localhost\r\nhost: evil.example\r\n", Refused),
        ("a foreign host", "host: evil.example\r\n", Refused),
        ("a host that begins like ours", "host: localhost.evil.example\r\n", Refused),
        ("a host that ends like ours", "host: evil.localhost\r\n", Refused),
        ("a host with a dot at its end", "host: localhost.\r\n", Refused),
        ("a host with a user", "host: a@localhost\r\n", Refused),
        ("a host with a path", "host: localhost/x\r\n", Refused),
        ("a list of hosts", "host: localhost, evil.example\r\n", Refused),
        ("a host with a space", "host: local host\r\n", Refused),
        ("a host with two ports", "host: localhost:80:80\r\n", Refused),
        ("a host with a port of letters", "host: localhost:http\r\n", Refused),
        ("a host with an empty port", "host: localhost:\r\n", Refused),
        ("a host with a zone", "host: [::1%25lo]\r\n", Refused),
        ("a host without its bracket", "host: [::1\r\n", Refused),
        ("a mapped address", "host: [::ffff:127.0.0.1]:80\r\n", AtMostOne),
        ("an octal address", "host: 0177.0.0.1\r\n", Refused),
        ("a hexadecimal address", "host: 0x7f.0.0.1\r\n", Refused),
        ("an address as one number", "host: 2130706433\r\n", Refused),
        ("a short address", "host: 127.1\r\n", Refused),
        ("an address of nobody", "host: 0.0.0.0\r\n", Refused),
        ("a host with other letters", "host: loc\u{e0}lhost\r\n", Refused),
        ("a forwarded host", "host: evil.example\r\nx-forwarded-host: localhost\r\n", Refused),
        ("a page from elsewhere", "host: localhost\r\norigin: https://evil.example\r\n", Refused),
        ("a page from nowhere", "host: localhost\r\norigin: null\r\n", Refused),
    ] {
        cases.push(case(name, format!("{LINE}{host}{end}"), expected));
    }
    cases
}

fn floods() -> Vec<Case> {
    let end = format!("content-length: {}\r\n\r\n{}", body().len(), body());
    let many = |count: usize| format!("{START}{}{end}", "x: y\r\n".repeat(count));
    vec![
        case("ninety fields", many(90), Passes(1)),
        case("a hundred and one fields", many(101), Refused),
        case("ten thousand fields", many(10_000), Refused),
        case(
            "a field of 60 KiB",
            format!("{START}x: {}\r\n{end}", "y".repeat(60 << 10)),
            AtMostOne,
        ),
        case("a field of 80 KiB", format!("{START}x: {}\r\n{end}", "y".repeat(80 << 10)), Refused),
        case(
            "a field of 4 MiB without its end",
            format!("{START}x: {}", "y".repeat(4 << 20)),
            Refused,
        ),
        case("a name of 4 MiB", format!("{START}{}: y\r\n{end}", "x".repeat(4 << 20)), Refused),
        case(
            "a path of 4 KiB",
            format!("POST /{} HTTP/1.1\r\nhost: localhost\r\n{end}", "x".repeat(4096)),
            Refused,
        ),
        case(
            "a path of 1 MiB",
            format!("POST /{} HTTP/1.1\r\nhost: localhost\r\n{end}", "x".repeat(1 << 20)),
            Refused,
        ),
        case("a method of 1 MiB", "X".repeat(1 << 20), Refused),
        case("empty lines for ever", "\r\n".repeat(200_000), Refused),
    ]
}

fn orders() -> Vec<Case> {
    let get = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    // The end of those whose framing keeps the connection open.
    let last = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    vec![
        case("one request", whole(), Passes(1)),
        case("two in one piece", whole().repeat(2), Passes(2)),
        case("ten in one piece", whole().repeat(10), Passes(10)),
        case(
            "chunked, then plain",
            format!("{START}transfer-encoding: chunked\r\n\r\n{}{}", chunked(), whole()),
            Passes(2),
        ),
        case("one and a half", format!("{}{START}content-le", whole()), Passes(1)),
        case("one, then no HTTP", format!("{}this is none\r\n\r\n", whole()), Passes(1)),
        case(
            "one, then a bad length",
            format!("{}{START}content-length: +5\r\n\r\nhello{}", whole(), hidden()),
            Passes(1),
        ),
        case(
            "a read with a body",
            format!(
                "GET /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{}{last}",
                hidden().len(),
                hidden()
            ),
            AtMostOne,
        ),
        case(
            "a read with chunks",
            format!(
                "GET /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n{last}",
                hidden().len(),
                hidden()
            ),
            AtMostOne,
        ),
        case(
            "a refused read with a body",
            format!(
                "GET /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{}{last}",
                hidden().len(),
                hidden()
            ),
            AtMostOne,
        ),
        case(
            "a refused host with a body",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: evil\r\ncontent-length: {}\r\n\r\n{}{last}",
                hidden().len(),
                hidden()
            ),
            AtMostOne,
        ),
        case(
            "closed, then another",
            format!(
                "{START}connection: close\r\ncontent-length: {}\r\n\r\n{}{}",
                body().len(),
                body(),
                hidden()
            ),
            Passes(1),
        ),
        case("a hundred reads", get.repeat(100), AtMostOne),
    ]
}

fn bodies() -> Vec<Case> {
    let length = body().len();
    let expecting = |value: &str| {
        format!("{START}expect: {value}\r\ncontent-length: {length}\r\n\r\n{}", body())
    };
    let mut cases = vec![
        case("asking first, not waiting", expecting("100-continue"), AtMostOne),
        case("asking first in capitals", expecting("100-CONTINUE"), AtMostOne),
        case("expecting something else", expecting("a miracle"), AtMostOne),
        case(
            "asking first for too much",
            format!("{START}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", 2 << 20),
            Refused,
        ),
        case(
            "a length that is longer than the body",
            format!("{START}content-length: {}\r\n\r\n{}", length + 10, body()),
            Waits,
        ),
        case(
            "a length that is shorter than the body",
            format!("{START}content-length: {}\r\n\r\n{}", length - 3, body()),
            Refused,
        ),
        case("no body at all", format!("{START}content-length: {length}\r\n\r\n"), Waits),
        case(
            "too large a body",
            format!("{START}content-length: {}\r\n\r\n{}", 2 << 20, " ".repeat(2 << 20)),
            Refused,
        ),
        case(
            "too many chunks",
            format!(
                "{START}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
                format!("10000\r\n{}\r\n", " ".repeat(1 << 16)).repeat(20)
            ),
            Refused,
        ),
        case(
            "a body of NULs",
            [format!("{START}content-length: 64\r\n\r\n").into_bytes(), vec![0; 64]].concat(),
            Refused,
        ),
        case(
            "a compressed body",
            format!("{START}content-encoding: gzip\r\ncontent-length: {length}\r\n\r\n{}", body()),
            Refused,
        ),
        case(
            "a body of brackets",
            format!("{START}content-length: 200000\r\n\r\n{}", "[".repeat(200_000)),
            Refused,
        ),
        case(
            "two models",
            format!(
                "{START}content-length: 35\r\n\r\n{{\"model\":\"chat\",\"model\":\"otherone\"}}"
            ),
            Refused,
        ),
    ];
    // A request as the text of a prompt is text.
    let prompt =
        serde_json::json!({"model": "chat", "prompt": "GET / HTTP/1.1\r\nhost: a\r\n\r\n"});
    let prompt = prompt.to_string();
    cases.push(case(
        "a request in a prompt",
        format!("{START}content-length: {}\r\n\r\n{prompt}", prompt.len()),
        Passes(1),
    ));
    cases
}

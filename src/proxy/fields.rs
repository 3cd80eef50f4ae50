//! Looks for a few fields of a form as it arrives, wherever among the files they stand.
//!
//! ```text
//! Value ─ delimiter ─▶ Head ─ blank line ─▶ Value …
//!                       └ "--" ─▶ Ended
//! ```
//!
//! Source: RFC 7578, and RFC 2046 section 5.1.

use std::ops::Range;

/// The longest value that is looked at.
const LONGEST_VALUE: usize = 1 << 10;
/// The longest head of a part.
const LONGEST_HEAD: usize = 16 << 10;

/// What a form says beside its files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Found {
    /// The value of `model`, and where it stands in the body.
    pub(super) model: Option<(String, Range<u64>)>,
    /// Whether `stream` is true.
    pub(super) is_stream: bool,
}

/// A form that arrives.
#[derive(Debug)]
pub(super) struct Fields {
    /// The line end and the boundary that end a part.
    delimiter: Vec<u8>,
    state: State,
    /// What was fed and not looked at to its end.
    rest: Vec<u8>,
    /// Where `rest` starts in the body, two bytes on: a form begins as if after a line end.
    at: u64,
    found: Found,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Value(Option<Field>),
    Head,
    Ended,
}

/// A field that is looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Field {
    Model,
    Stream,
}

impl Fields {
    /// Begins a form whose parts are told apart by `boundary`.
    pub(super) fn new(boundary: &str) -> Self {
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        let (rest, found) = (b"\r\n".to_vec(), Found::default());
        Self { delimiter, state: State::Value(None), rest, at: 0, found }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.state == State::Ended {
            return;
        }
        self.rest.extend_from_slice(data);
        while self.step() {}
    }

    /// Returns what the form says. `None` if it has no end: something is missing.
    pub(super) fn end(self) -> Option<Found> {
        (self.state == State::Ended).then_some(self.found)
    }

    /// Goes on as far as the next change of state; says whether there was one.
    fn step(&mut self) -> bool {
        match self.state {
            State::Value(field) => {
                let Some(end) = find(&self.rest, &self.delimiter) else {
                    self.forget(field);
                    return false;
                };
                if let Some(field) = field.filter(|_| end <= LONGEST_VALUE) {
                    self.take(field, end);
                }
                self.drop_first(end + self.delimiter.len());
                self.state = State::Head;
                true
            }
            State::Head => {
                if self.rest.starts_with(b"--") {
                    self.state = State::Ended;
                    self.rest.clear();
                    return false;
                }
                let Some(end) = find(&self.rest, b"\r\n\r\n") else {
                    if self.rest.len() > LONGEST_HEAD {
                        self.state = State::Value(None);
                        return true;
                    }
                    return false;
                };
                let field = self.rest.get(..end).and_then(named_field);
                self.drop_first(end + 4);
                // An empty value has its delimiter's line end from here on.
                self.state = State::Value(field);
                true
            }
            State::Ended => false,
        }
    }

    /// Forgets of a value what cannot be part of its delimiter, or of a field that is looked for.
    fn forget(&mut self, field: Option<Field>) {
        let is_kept = field.is_some() && self.rest.len() <= LONGEST_VALUE + self.delimiter.len();
        if !is_kept {
            let count = self.rest.len().saturating_sub(self.delimiter.len());
            self.drop_first(count);
            self.state = State::Value(None);
        }
    }

    fn take(&mut self, field: Field, end: usize) {
        let Some(value) = self.rest.get(..end).and_then(|value| std::str::from_utf8(value).ok())
        else {
            return;
        };
        match field {
            Field::Model if self.found.model.is_none() => {
                let start = self.at.saturating_sub(2);
                let range = start..start + length(end);
                self.found.model = Some((value.to_owned(), range));
            }
            Field::Model => {}
            Field::Stream => self.found.is_stream = matches!(value, "true" | "True" | "1"),
        }
    }

    fn drop_first(&mut self, count: usize) {
        self.rest.drain(..count.min(self.rest.len()));
        self.at += length(count);
    }
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Finds what begins with a carriage return.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.iter().position(|byte| *byte == b'\r')?;
        if bytes.get(at..)?.starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
}

/// Reads the name of a part, if it is one that is looked for.
fn named_field(head: &[u8]) -> Option<Field> {
    let head = std::str::from_utf8(head).ok()?;
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let mut parameters = disposition.split(';').map(str::trim);
    let name = parameters.find_map(|parameter| parameter.strip_prefix("name="))?;
    match name.trim_matches('"') {
        "model" => Some(Field::Model),
        "stream" => Some(Field::Stream),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
        Content-Type: audio/wav\r\n\r\nRIFF\r\n--X\r\n\r\rname=\"model\"\r\n\r\nno\r\n";
    const MODEL: &str =
        "--XX\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\norg/whisper:tiny\r\n";
    const STREAM: &str = "--XX\r\nContent-Disposition: form-data; name=stream\r\n\r\ntrue\r\n";

    fn found(form: &str, piece: usize) -> Option<Found> {
        let mut fields = Fields::new("XX");
        form.as_bytes().chunks(piece).for_each(|data| fields.feed(data));
        fields.end()
    }

    #[test]
    fn the_model_is_found_before_and_after_the_file_however_the_form_was_cut() {
        for parts in [[MODEL, FILE, STREAM], [FILE, STREAM, MODEL], [STREAM, MODEL, FILE]] {
            let form = format!("{}--XX--\r\n", parts.concat());
            for piece in [1, 2, 3, 7, 64, 4096] {
                let found = found(&form, piece).expect("the form is whole");
                let (model, range) = found.model.expect("it names a model");
                assert_eq!((model.as_str(), found.is_stream), ("org/whisper:tiny", true));
                let (start, end) =
                    (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
                assert_eq!(form.get(start..end), Some("org/whisper:tiny"), "cut by {piece}");
            }
        }
    }

    #[test]
    fn a_form_without_an_end_is_none_and_one_without_a_model_says_so() {
        assert_eq!(found(&[MODEL, FILE].concat(), 5), None);
        assert_eq!(found("", 1), None);
        let form = format!("{FILE}--XX--");
        assert_eq!(found(&form, 3), Some(Found::default()));
    }

    #[test]
    fn memory_stays_small_however_long_a_value_is() {
        let mut fields = Fields::new("XX");
        fields.feed(b"--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n");
        for _ in 0..100 {
            fields.feed(&[b'x'; 4096]);
            assert!(fields.rest.len() < 8192);
        }
        fields.feed(b"\r\n--XX--");
        assert_eq!(fields.end(), Some(Found::default()));
    }
}

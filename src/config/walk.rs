//! Takes typed values out of a TOML file and notes every mistake with its place.
//!
//! Each `take` method looks at one key, notes a fault if the value is not what the key takes, and
//! goes on: all faults of a file come at once. What is known after the whole file has been seen
//! (unknown keys, several keys together) is noted by the caller through [`Walk::refuse`].

use std::{collections::BTreeSet, ops::Range, ops::RangeInclusive, path::Path, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{
    fault::Fault,
    nearest::{listed, nearest},
};
use crate::spec::{Bytes, parse_duration};

/// A value and where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct At<T> {
    pub(super) value: T,
    /// The key's path, `aliases[1]` say.
    pub(super) key: String,
    /// The byte of the file where the value starts.
    pub(super) offset: usize,
}

/// One value of the file, as the parser found it.
type Found<'t> = &'t Spanned<DeValue<'t>>;

/// A walk over one file.
#[derive(Debug)]
pub(super) struct Walk<'t> {
    file: &'t Path,
    text: &'t str,
    table: &'t DeTable<'t>,
    faults: Vec<Fault>,
    /// Lines on which the parser gave up: what it made of them says nothing about the author.
    broken_lines: BTreeSet<usize>,
}

impl<'t> Walk<'t> {
    /// Starts a walk over `table`, which was parsed from `text` with the syntax errors `errors`.
    pub(super) fn new(
        file: &'t Path,
        text: &'t str,
        table: &'t DeTable<'t>,
        errors: &[Error],
    ) -> Self {
        let mut walk =
            Self { file, text, table, faults: Vec::new(), broken_lines: BTreeSet::new() };
        for error in errors {
            walk.note_syntax(error);
        }
        walk
    }

    /// Ends the walk: every fault, in the order of the file.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults;
        faults.sort();
        faults.dedup();
        faults
    }

    /// Tells whether the file had no syntax error, so that a key that was not found is not there.
    pub(super) fn is_whole(&self) -> bool {
        self.broken_lines.is_empty()
    }

    /// Notes a fault at a place.
    pub(super) fn refuse(
        &mut self,
        offset: usize,
        key: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let fault = Fault::of_file(self.file, message).with_key(key).at(self.text, offset);
        if fault.line.is_some_and(|line| self.broken_lines.contains(&line)) {
            return;
        }
        self.faults.push(fault.with_hint(hint));
    }

    /// Notes a fault of a value that was taken.
    pub(super) fn refuse_value(
        &mut self,
        value: &At<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.refuse(value.offset, &value.key, message, hint);
    }

    /// Notes that a key is missing. A file with syntax errors may well have it.
    pub(super) fn refuse_missing(&mut self, key: &str, message: &str, hint: &str) {
        if self.is_whole() {
            self.faults.push(Fault::of_file(self.file, message).with_key(key).with_hint(hint));
        }
    }

    /// Notes every key that is not in `known`; `hint` may know better than spelling.
    pub(super) fn refuse_unknown(&mut self, known: &[&str], hint: impl Fn(&str) -> Option<String>) {
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let hint = hint(name)
                .or_else(|| nearest(name, known).map(|near| format!("did you mean `{near}`?")))
                .unwrap_or_else(|| format!("the keys are {}", listed(known)));
            self.refuse(key.span().start, &shown_key(name), "unknown key", hint);
        }
    }

    /// Returns where the key itself stands.
    pub(super) fn offset_of_key(&self, key: &str) -> Option<usize> {
        self.table.get_key_value(key).map(|(key, _)| key.span().start)
    }

    /// Takes a text that is not empty.
    pub(super) fn take_text(&mut self, key: &str) -> Option<At<String>> {
        let found = self.table.get(key)?;
        self.text_of(key, found, "a string", MayBeEmpty::No)
    }

    /// Takes an array of texts, none of them empty unless `may_be_empty`. An item with a fault is
    /// left out.
    pub(super) fn take_texts(
        &mut self,
        key: &str,
        may_be_empty: MayBeEmpty,
    ) -> Option<Vec<At<String>>> {
        let found = self.table.get(key)?;
        let DeValue::Array(items) = found.get_ref() else {
            let hint = match found.get_ref().as_str() {
                Some(_) => format!("put it in brackets: `{key} = [{}]`", self.source(found)),
                None => format!("write `{key} = [\"…\", \"…\"]`"),
            };
            self.refuse_type(key, found, "an array of strings", &hint);
            return None;
        };
        let texts = items.iter().enumerate().filter_map(|(index, item)| {
            self.text_of(&format!("{key}[{index}]"), item, "a string", may_be_empty)
        });
        Some(texts.collect())
    }

    /// Takes a table of texts. A pair with a fault is left out.
    pub(super) fn take_pairs(&mut self, key: &str) -> Option<Vec<(At<String>, At<String>)>> {
        let found = self.table.get(key)?;
        let DeValue::Table(table) = found.get_ref() else {
            let hint = format!("write `{key} = {{ NAME = \"value\" }}`");
            self.refuse_type(key, found, "a table of strings", &hint);
            return None;
        };
        let pairs = table.iter().filter_map(|(name, value)| {
            let path = format!("{key}.{}", shown_key(name.get_ref()));
            let value = self.text_of(&path, value, "a string", MayBeEmpty::Yes)?;
            let name =
                At { value: name.get_ref().to_string(), key: path, offset: name.span().start };
            Some((name, value))
        });
        Some(pairs.collect())
    }

    /// Takes `true` or `false`.
    pub(super) fn take_flag(&mut self, key: &str) -> Option<bool> {
        let found = self.table.get(key)?;
        let flag = found.get_ref().as_bool();
        if flag.is_none() {
            let hint = format!("write `{key} = true` or `{key} = false`, without quotes");
            self.refuse_type(key, found, "`true` or `false`", &hint);
        }
        flag
    }

    /// Takes a whole number in `range`.
    pub(super) fn take_number(
        &mut self,
        key: &str,
        range: &RangeInclusive<u32>,
        hint: &str,
    ) -> Option<u32> {
        let found = self.table.get(key)?;
        let expected = format!("{}..={}", range.start(), range.end());
        let Some(integer) = found.get_ref().as_integer() else {
            let hint = match found.get_ref().as_str() {
                Some(text) if text.parse::<u32>().is_ok() => {
                    format!("leave the quotes out: `{key} = {text}`")
                }
                _ => hint.to_owned(),
            };
            self.refuse_type(key, found, &format!("a whole number in {expected}"), &hint);
            return None;
        };
        // A number beyond 128 bits is out of every range.
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u32::try_from(number).ok());
        let in_range = number.filter(|number| range.contains(number));
        if in_range.is_none() {
            self.refuse_range(key, found, &expected, hint);
        }
        in_range
    }

    /// Takes a duration in `range`.
    pub(super) fn take_duration(
        &mut self,
        key: &str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let hint =
            "a whole number and one of the units `ms`, `s`, `m`, `h`, `d`: `\"90s\"`, `\"5m\"`";
        let text = self.take_quantity(key, "a duration", hint)?;
        let found = self.table.get(key)?;
        match parse_duration(&text.value) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let expected = format!(
                    "{}..={}",
                    shown_duration(*range.start()),
                    shown_duration(*range.end())
                );
                self.refuse_range(key, found, &expected, hint);
                None
            }
            Err(fault) => {
                self.refuse_value(&text, fault.to_string(), hint);
                None
            }
        }
    }

    /// Takes a number of bytes in `range`.
    pub(super) fn take_size(&mut self, key: &str, range: &RangeInclusive<Bytes>) -> Option<Bytes> {
        let hint =
            "a whole number and one of the units `B`, `KiB`, `MiB`, `GiB`, `TiB`: `\"32MiB\"`";
        let text = self.take_quantity(key, "a size", hint)?;
        let found = self.table.get(key)?;
        match text.value.parse::<Bytes>() {
            Ok(size) if range.contains(&size) => Some(size),
            Ok(_) => {
                self.refuse_range(
                    key,
                    found,
                    &format!("{}..={}", range.start(), range.end()),
                    hint,
                );
                None
            }
            Err(fault) => {
                self.refuse_value(&text, fault.to_string(), hint);
                None
            }
        }
    }

    /// Takes one of the `known` words.
    pub(super) fn take_choice<T: Copy>(&mut self, key: &str, known: &[(&str, T)]) -> Option<T> {
        let text = self.take_text(key)?;
        self.choice_of(&text, known)
    }

    /// Takes an array of the `known` words; one that is there twice counts once.
    pub(super) fn take_choices<T: Copy + PartialEq>(
        &mut self,
        key: &str,
        known: &[(&str, T)],
    ) -> Option<Vec<T>> {
        let mut chosen = Vec::new();
        for text in self.take_texts(key, MayBeEmpty::No)? {
            let choice = self.choice_of(&text, known);
            chosen.extend(choice.filter(|choice| !chosen.contains(choice)));
        }
        Some(chosen)
    }

    fn choice_of<T: Copy>(&mut self, text: &At<String>, known: &[(&str, T)]) -> Option<T> {
        if let Some((_, choice)) = known.iter().find(|(word, _)| *word == text.value) {
            return Some(*choice);
        }
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(&text.value, &words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of {}", listed(&words)),
        };
        let message = format!("`{}` is not one of {}", cut(&text.value), listed(&words));
        self.refuse_value(text, message, hint);
        None
    }

    /// Takes the text of a quantity; a bare number gets the hint about units.
    fn take_quantity(&mut self, key: &str, expected: &str, hint: &str) -> Option<At<String>> {
        let found = self.table.get(key)?;
        if found.get_ref().is_str() {
            return self.text_of(key, found, expected, MayBeEmpty::No);
        }
        self.refuse_type(key, found, &format!("{expected} with a unit, in quotes"), hint);
        None
    }

    fn text_of(
        &mut self,
        key: &str,
        found: Found<'t>,
        expected: &str,
        may_be_empty: MayBeEmpty,
    ) -> Option<At<String>> {
        let offset = found.span().start;
        let Some(text) = found.get_ref().as_str() else {
            let hint = match found.get_ref() {
                DeValue::Array(_) | DeValue::Table(_) => format!("write `{key} = \"…\"`"),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_) => format!("put it in quotes: `\"{}\"`", self.source(found)),
            };
            self.refuse_type(key, found, expected, &hint);
            return None;
        };
        if text.is_empty() && may_be_empty == MayBeEmpty::No {
            self.refuse(offset, key, "cannot be empty", "leave it out, or say what is meant");
            return None;
        }
        if text.contains('\0') {
            let hint = "no program can be given one: take the `\\u0000` out";
            self.refuse(offset, key, "cannot hold a NUL character", hint);
            return None;
        }
        Some(At { value: text.to_owned(), key: key.to_owned(), offset })
    }

    fn refuse_type(&mut self, key: &str, found: Found<'t>, expected: &str, hint: &str) {
        let message = format!("expected {expected}, found {}", kind(found.get_ref()));
        self.refuse(found.span().start, key, message, hint);
    }

    fn refuse_range(&mut self, key: &str, found: Found<'t>, expected: &str, hint: &str) {
        let shown = self.source(found);
        let message =
            format!("`{}` is out of range, expected {expected}", shown.trim_matches(['"', '\'']));
        self.refuse(found.span().start, key, message, hint);
    }

    fn note_syntax(&mut self, error: &Error) {
        let span = error.span().unwrap_or(Range { start: self.text.len(), end: self.text.len() });
        let fault = Fault::of_file(self.file, format!("bad TOML: {}", error.message()))
            .at(self.text, span.start);
        // One slip makes the parser stumble several times on a line: the first says it best.
        let is_first = fault.line.is_some_and(|line| self.broken_lines.insert(line));
        if is_first {
            self.faults.push(fault.with_hint(syntax_hint(error.message())));
        }
    }

    /// Returns the value as it was typed, cut to a readable length.
    fn source(&self, found: Found<'t>) -> String {
        cut(self.text.get(found.span()).unwrap_or_default())
    }
}

/// Says whether `""` is a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MayBeEmpty {
    Yes,
    No,
}

/// Shows a duration in the largest unit that holds it whole.
pub(super) fn shown_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (unit, scale) = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
        .into_iter()
        .find(|(_, scale)| millis > 0 && millis.is_multiple_of(*scale))
        .unwrap_or(("ms", 1));
    format!("{}{unit}", millis / scale)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn syntax_hint(message: &str) -> &'static str {
    if message.contains("string values must be quoted") {
        "put text in quotes: `key = \"value\"`"
    } else if message.contains("duplicate key") {
        "keep one of the two"
    } else {
        "a line is `key = value`; text stands in double quotes, a list in brackets"
    }
}

/// Cuts a text to what fits into a message, and takes line breaks and control characters out.
fn cut(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { '␣' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

fn shown_key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

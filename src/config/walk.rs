//! Takes typed values out of a TOML file and notes every mistake with its place.
//!
//! Each `take` method looks at one key, notes a fault if the value is not what the key takes, and
//! goes on: all faults of a file come at once. What is known after the whole file has been seen
//! (unknown keys, several keys together) is noted by the caller through [`Walk::refuse`].

use std::{collections::BTreeSet, path::Path};

use serde_json::{Number, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::Fault,
    syntax::Mended,
    words::{cut, listed, nearest},
};

/// The most faults that are noted of one file.
const MOST: usize = 100;

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
pub(super) type Found<'t> = &'t Spanned<DeValue<'t>>;

/// A walk over one file.
#[derive(Debug)]
pub(super) struct Walk<'t> {
    file: &'t Path,
    text: &'t str,
    pub(super) table: &'t DeTable<'t>,
    /// What the keys of `table` are below, `ladder[0].` say, and where it starts.
    below: (String, usize),
    /// At most [`MOST`]; `unnoted` counts the others.
    faults: Vec<Fault>,
    unnoted: usize,
    /// Lines with a syntax error: what the parser made of them says nothing about the author.
    broken_lines: BTreeSet<usize>,
    /// Where the parser was lost for good.
    lost_at: Option<usize>,
}

impl<'t> Walk<'t> {
    /// Starts a walk over `table`, which was parsed from the mended `text`.
    pub(super) fn new(
        file: &'t Path,
        text: &'t str,
        mended: &Mended,
        table: &'t DeTable<'t>,
    ) -> Self {
        let (broken_lines, lost_at) = (BTreeSet::new(), mended.lost_at);
        let faults = Vec::new();
        let below = (String::new(), 0);
        let mut walk = Self { file, text, table, below, faults, unnoted: 0, broken_lines, lost_at };
        for stumble in &mended.stumbles {
            if walk.is_full() {
                break;
            }
            let fault = Fault::of_file(file, format!("bad TOML: {}", stumble.message))
                .at(text, stumble.offset)
                .with_hint(stumble.hint);
            // One slip makes the parser stumble several times on a line: the first says it best.
            if fault.line.is_some_and(|line| walk.broken_lines.insert(line)) {
                walk.faults.push(fault);
            }
        }
        walk
    }

    /// Ends the walk: every fault, in the order of the file.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults;
        faults.sort();
        faults.dedup();
        if self.unnoted > 0 {
            let message = format!("has {} more faults, expected a profile", self.unnoted);
            faults.push(Fault::of_file(self.file, message));
        }
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
        if self.is_full() {
            return;
        }
        let key = format!("{}{key}", self.below.0);
        let fault = Fault::of_file(self.file, message).with_key(&key).at(self.text, offset);
        let is_broken = fault.line.is_some_and(|line| self.broken_lines.contains(&line));
        let is_lost = self.lost_at.is_some_and(|lost| offset > lost);
        if !is_broken && !is_lost {
            self.faults.push(fault.with_hint(hint));
        }
    }

    /// Notes a fault of the table that is being walked.
    pub(super) fn refuse_here(&mut self, message: &str, hint: &str) {
        let (below, offset) = std::mem::take(&mut self.below);
        self.refuse(offset, below.trim_end_matches('.'), message, hint);
        self.below = (below, offset);
    }

    /// Tells whether there are more faults than anybody reads; counts one more if so.
    fn is_full(&mut self) -> bool {
        let is_full = self.faults.len() >= MOST;
        self.unnoted += usize::from(is_full);
        is_full
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

    /// Tells whether a key has an array, or a table, which is meant as one of an array.
    pub(super) fn is_list(&self, key: &str) -> bool {
        let found = self.table.get(key);
        found.is_some_and(|found| matches!(found.get_ref(), DeValue::Array(_) | DeValue::Table(_)))
    }

    /// Takes an array of tables, each by `take`. An item that is no table is left out.
    pub(super) fn take_tables<T>(
        &mut self,
        key: &str,
        mut take: impl FnMut(&mut Self) -> T,
    ) -> Option<Vec<T>> {
        let found = self.table.get(key)?;
        let hint = format!("write `[[{key}]]` above each");
        let DeValue::Array(items) = found.get_ref() else {
            self.refuse_type(key, found, "an array of tables", &hint);
            return None;
        };
        let mut taken = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{key}[{index}]");
            let DeValue::Table(table) = item.get_ref() else {
                self.refuse_type(&path, item, "a table", &hint);
                continue;
            };
            let below = (format!("{path}."), item.span().start);
            taken.push(self.inside(table, below, &mut take));
        }
        Some(taken)
    }

    /// Takes a table by `take`.
    pub(super) fn take_table<T>(
        &mut self,
        key: &str,
        take: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let found = self.table.get(key)?;
        let DeValue::Table(table) = found.get_ref() else {
            let hint = format!("write `[{}{key}]` above its keys", self.below.0);
            self.refuse_type(key, found, "a table", &hint);
            return None;
        };
        let below = format!("{}{}.", self.below.0, shown_key(key));
        Some(self.inside(table, (below, found.span().start), take))
    }

    /// Takes a table of tables, each by `take`; the names come with their places. One that is no
    /// table is left out.
    pub(super) fn take_named_tables<T>(
        &mut self,
        key: &str,
        mut take: impl FnMut(&mut Self) -> T,
    ) -> Option<Vec<(At<String>, T)>> {
        let names = self.take_table(key, |walk| {
            let named = walk.table.iter().map(|(name, _)| {
                let key = format!("{key}.{}", shown_key(name.get_ref()));
                At { value: name.get_ref().to_string(), key, offset: name.span().start }
            });
            named.collect::<Vec<_>>()
        })?;
        self.take_table(key, |walk| {
            let tables = names.into_iter().filter_map(|name| {
                let table = walk.take_table(&name.value, &mut take)?;
                Some((name, table))
            });
            tables.collect()
        })
    }

    /// Takes a table of values that JSON has as well. A pair with a fault is left out.
    pub(super) fn take_values(&mut self, key: &str) -> Vec<(At<String>, Value)> {
        let taken = self.take_table(key, |walk| {
            let pairs = walk.table.iter().filter_map(|(name, found)| {
                let path = shown_key(name.get_ref());
                let value = json_of(found.get_ref()).or_else(|| {
                    let hint = "dates, `nan` and `inf` are none: write a string or a number";
                    walk.refuse(
                        found.span().start,
                        &path,
                        "holds what JSON has no value for",
                        hint,
                    );
                    None
                })?;
                let key = format!("{key}.{path}");
                let name = At { value: name.get_ref().to_string(), key, offset: name.span().start };
                Some((name, value))
            });
            pairs.collect()
        });
        taken.unwrap_or_default()
    }

    /// Walks a table below this one.
    fn inside<T>(
        &mut self,
        table: &'t DeTable<'t>,
        below: (String, usize),
        take: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let outer = std::mem::replace(&mut self.table, table);
        let outer_below = std::mem::replace(&mut self.below, below);
        let taken = take(self);
        (self.table, self.below) = (outer, outer_below);
        taken
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

    pub(super) fn text_of(
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
            self.refuse(
                offset,
                key,
                "cannot be empty",
                "write what is meant between the quotes, or take it out",
            );
            return None;
        }
        if text.contains('\0') {
            let hint = "no program can be given one: take the `\\u0000` out";
            self.refuse(offset, key, "cannot hold a NUL character", hint);
            return None;
        }
        Some(At { value: text.to_owned(), key: key.to_owned(), offset })
    }

    pub(super) fn refuse_type(&mut self, key: &str, found: Found<'t>, expected: &str, hint: &str) {
        let message = format!("expected {expected}, found {}", kind(found.get_ref()));
        self.refuse(found.span().start, key, message, hint);
    }

    pub(super) fn refuse_range(&mut self, key: &str, found: Found<'t>, expected: &str, hint: &str) {
        let shown = self.source(found);
        let message =
            format!("`{}` is out of range, expected {expected}", shown.trim_matches(['"', '\'']));
        self.refuse(found.span().start, key, message, hint);
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

/// Returns the JSON of a value; `None` if JSON has none.
fn json_of(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok()?;
            i64::try_from(number)
                .map(Value::from)
                .or_else(|_| u64::try_from(number).map(Value::from))
                .ok()?
        }
        DeValue::Float(float) => {
            let number = float.as_str().parse::<f64>().ok()?;
            Value::Number(Number::from_f64(number)?)
        }
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| json_of(item.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => {
            let pairs = table.iter();
            let pairs = pairs
                .map(|(key, value)| Some((key.get_ref().to_string(), json_of(value.get_ref())?)));
            Value::Object(pairs.collect::<Option<_>>()?)
        }
    })
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

fn shown_key(name: &str) -> String {
    let name = cut(name);
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(is_bare) { name } else { format!("{name:?}") }
}

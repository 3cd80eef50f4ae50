//! Takes flags, numbers, quantities and words of a list out of a TOML file.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    walk::{At, MayBeEmpty, Walk},
    words::{cut, listed, nearest},
};
use crate::spec::{Bytes, parse_duration};

impl Walk<'_> {
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
        let hint = "write a whole number and a unit: `\"90s\"`, `\"5m\"`";
        let text = self.take_quantity(key, "a duration", hint)?;
        let found = self.table.get(key)?;
        match parse_duration(&cut(&text.value)) {
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

    /// Takes a duration in `range`, `default` without one, or `off`, which is none.
    pub(super) fn take_duration_or_off(
        &mut self,
        key: &str,
        range: &RangeInclusive<Duration>,
        default: Duration,
    ) -> Option<Duration> {
        let is_off =
            self.table.get(key).is_some_and(|found| found.get_ref().as_str() == Some("off"));
        (!is_off).then(|| self.take_duration(key, range).unwrap_or(default))
    }

    /// Takes a number of bytes in `range`.
    pub(super) fn take_size(&mut self, key: &str, range: &RangeInclusive<Bytes>) -> Option<Bytes> {
        let hint = "write a whole number and a unit: `\"32MiB\"`, `\"1GiB\"`";
        let text = self.take_quantity(key, "a size", hint)?;
        let found = self.table.get(key)?;
        match cut(&text.value).parse::<Bytes>() {
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
        self.take_choice_or(key, known, "leave it out to use the default")
    }

    /// Takes one of the `known` words; `hint` says what to do about one that is near none of them.
    pub(super) fn take_choice_or<T: Copy>(
        &mut self,
        key: &str,
        known: &[(&str, T)],
        hint: &str,
    ) -> Option<T> {
        let text = self.take_text(key)?;
        self.choice_of(&text, known, hint)
    }

    /// Takes an array of the `known` words; one that is there twice counts once.
    pub(super) fn take_choices<T: Copy + PartialEq>(
        &mut self,
        key: &str,
        known: &[(&str, T)],
    ) -> Option<Vec<T>> {
        let mut chosen = Vec::new();
        for text in self.take_texts(key, MayBeEmpty::No)? {
            let choice = self.choice_of(&text, known, "leave it out to use the default");
            chosen.extend(choice.filter(|choice| !chosen.contains(choice)));
        }
        Some(chosen)
    }

    fn choice_of<T: Copy>(
        &mut self,
        text: &At<String>,
        known: &[(&str, T)],
        hint: &str,
    ) -> Option<T> {
        if let Some((_, choice)) = known.iter().find(|(word, _)| *word == text.value) {
            return Some(*choice);
        }
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(&text.value, &words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => hint.to_owned(),
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
}

/// Shows a duration in the largest unit that holds it whole.
fn shown_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, scale) = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
        .into_iter()
        .find(|(_, scale)| millis.is_multiple_of(*scale))
        .unwrap_or(("ms", 1));
    format!("{}{unit}", millis / scale)
}

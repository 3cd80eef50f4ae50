//! The fields of a request, asked for by name and type; a wrong type is a refusal that names the
//! field. `null` counts as absent, and unknown fields are not looked at (`foreign` looks at some).

use std::ops::RangeInclusive;

use serde_json::{Map, Value as Json};

use super::refusal::Refusal;

/// A request's JSON object.
#[derive(Clone, Debug)]
pub(super) struct Fields(Map<String, Json>);

impl Fields {
    /// Reads a request's body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Json::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Refusal::request("the body is not a JSON object")),
            Err(error) => Err(Refusal::request(format!("the body is not JSON: {error}"))),
        }
    }

    pub(super) fn any(&self, name: &str) -> Option<&Json> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn needed(&self, name: &str) -> Result<&Json, Refusal> {
        self.any(name).ok_or_else(|| Refusal::field(name, "is missing"))
    }

    pub(super) fn number(
        &self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, Refusal> {
        let Some(value) = self.any(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong(name, "a number", value))?;
        if !range.contains(&number) {
            let (low, high) = range.into_inner();
            let problem = format!("is {number}, expected {low} to {high}");
            return Err(Refusal::field(name, problem));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::as_conversions,
            reason = "logits are f32"
        )]
        let number = number as f32;
        Ok(Some(number))
    }

    pub(super) fn whole(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.any(name) else { return Ok(None) };
        let number = whole(value).ok_or_else(|| not_whole(name, value))?;
        if !range.contains(&number) {
            let (low, high) = range.into_inner();
            return Err(Refusal::field(name, format!("is {number}, expected {low} to {high}")));
        }
        Ok(Some(number))
    }

    /// A whole number from 0 on.
    pub(super) fn count(&self, name: &str, most: i64) -> Result<Option<usize>, Refusal> {
        Ok(self.whole(name, 0..=most)?.and_then(|number| usize::try_from(number).ok()))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        let Some(value) = self.any(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(name, "true or false", value))
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&[Json]>, Refusal> {
        let Some(value) = self.any(name) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| wrong(name, "a list", value))?;
        Ok(Some(list))
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&Map<String, Json>>, Refusal> {
        let Some(value) = self.any(name) else { return Ok(None) };
        value.as_object().map(Some).ok_or_else(|| wrong(name, "an object", value))
    }
}

/// Reads a whole number, also where it is written as a float (`3.0`).
pub(super) fn whole(value: &Json) -> Option<i64> {
    const MOST: f64 = 9_007_199_254_740_992.0;
    let float = || value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= MOST);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::as_conversions,
        reason = "whole, and up to 2^53 exact"
    )]
    value.as_i64().or_else(|| float().map(|float| float as i64))
}

/// Refuses what is no whole number; a number is named.
pub(super) fn not_whole(name: &str, found: &Json) -> Refusal {
    const EXPECTED: &str = "a whole number";
    if found.is_number() {
        return Refusal::field(name, format!("is {found}, expected {EXPECTED}"));
    }
    wrong(name, EXPECTED, found)
}

/// Refuses a field whose value is not what was expected.
pub(super) fn wrong(name: &str, expected: &str, found: &Json) -> Refusal {
    let found = match found {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    Refusal::field(name, format!("is {found}, expected {expected}"))
}

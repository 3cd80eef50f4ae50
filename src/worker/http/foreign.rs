//! Fields of other engines' APIs that change what comes out, and that this engine does not obey: they are refused
//! where they are switched on, for an answer that passes them over looks like one that keeps to them.
//!
//! Source: the README of llama.cpp's server, and the extra parameters of vLLM's.

use serde_json::Value as Json;

use super::{
    fields::{Fields, wrong},
    refusal::Refusal,
};

/// What an answer must be, and what asks for that here.
const CONSTRAINTS: [(&str, &str); 9] = [
    ("grammar", "json_schema"),
    ("guided_json", "json_schema"),
    ("guided_regex", "json_schema"),
    ("guided_choice", "json_schema"),
    ("guided_grammar", "json_schema"),
    ("guided_json_object", "response_format"),
    ("structured_outputs", "json_schema"),
    ("functions", "tools"),
    ("function_call", "tool_choice"),
];

/// Says whether a number switches something on.
type IsOn = fn(f32) -> bool;

/// How tokens are drawn.
const SAMPLING: [(&str, IsOn); 7] = [
    ("mirostat", |mode| mode > 0.0),
    ("typical_p", |mass| mass < 1.0),
    ("dynatemp_range", |range| range > 0.0),
    ("xtc_probability", |probability| probability > 0.0),
    ("dry_multiplier", |multiplier| multiplier > 0.0),
    ("top_n_sigma", |sigma| sigma > 0.0),
    ("min_tokens", |least| least > 0.0),
];

/// The steps of a draw in their order, with their letters.
const STEPS: [(&str, char); 5] =
    [("penalties", 'e'), ("top_k", 'k'), ("top_p", 'p'), ("min_p", 'm'), ("temperature", 't')];
/// Those that do nothing unless they are switched on, which is refused.
const IDLE_STEPS: [(&str, char); 5] =
    [("dry", 'd'), ("top_n_sigma", 's'), ("typ_p", 'y'), ("typical_p", 'y'), ("xtc", 'x')];

/// Refuses a request that asks for what would not be done.
pub(super) fn check(fields: &Fields) -> Result<(), Refusal> {
    for (name, instead) in CONSTRAINTS {
        if fields.any(name).is_some_and(|value| !is_off(value)) {
            let problem = format!("is not supported by this engine, `{instead}` is");
            return Err(Refusal::unsupported(name, problem));
        }
    }
    for (name, is_on) in SAMPLING {
        let number = fields.number(name, f64::MIN..=f64::MAX)?;
        if let Some(number) = number.filter(|number| is_on(*number)) {
            let problem = format!("is {number}, this engine draws without it");
            return Err(Refusal::unsupported(name, problem));
        }
    }
    check_steps(fields)
}

/// Says whether a constraint constrains nothing.
fn is_off(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::String(word) => matches!(word.as_str(), "" | "none" | "auto"),
        Json::Array(list) => list.is_empty(),
        Json::Bool(true) | Json::Number(_) | Json::Object(_) => false,
    }
}

fn check_steps(fields: &Fields) -> Result<(), Refusal> {
    const NAME: &str = "samplers";
    let Some(value) = fields.any(NAME) else { return Ok(()) };
    let asked: Vec<&str> = match value {
        Json::Array(names) => names.iter().map(|name| name.as_str().unwrap_or("")).collect(),
        Json::String(letters) => letters.chars().map(of_letter).collect(),
        other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_)) => {
            return Err(wrong(NAME, "a list of strings", other));
        }
    };
    let is_idle = |name: &str| IDLE_STEPS.iter().any(|(idle, _)| *idle == name);
    let asked = asked.into_iter().filter(|name| !is_idle(name));
    if asked.eq(STEPS.iter().map(|(name, _)| *name)) {
        return Ok(());
    }
    let order = STEPS.map(|(name, _)| name).join("`, `");
    Err(Refusal::unsupported(NAME, format!("asks for other steps than this engine's: `{order}`")))
}

/// Gives the name of a letter, nothing if it has none.
fn of_letter(letter: char) -> &'static str {
    let named = STEPS.iter().chain(&IDLE_STEPS).find(|(_, its)| *its == letter);
    named.map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(body: &Json) -> Option<Json> {
        let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        check(&fields).err().map(|refusal| refusal.body()["error"].clone())
    }

    #[test]
    fn a_constraint_that_would_not_be_kept_to_is_refused() {
        let body = json!({ "grammar": "root ::= \"yes\"" });
        let error = refused(&body).unwrap();
        assert_eq!(error["message"], "`grammar` is not supported by this engine, `json_schema` is");
        assert_eq!((&error["param"], &error["code"]), (&json!("grammar"), &json!("unsupported")));
        for (name, value) in [
            ("guided_json", json!({ "type": "boolean" })),
            ("guided_regex", json!("a+")),
            ("guided_choice", json!(["a", "b"])),
            ("structured_outputs", json!({ "choice": ["a"] })),
            ("functions", json!([{ "name": "f" }])),
            ("function_call", json!({ "name": "f" })),
        ] {
            assert!(refused(&json!({ name: value })).is_some(), "{name}");
        }
        let off =
            json!({ "grammar": "", "functions": [], "function_call": "auto", "guided_json": null });
        assert_eq!(refused(&off), None);
    }

    #[test]
    fn a_way_to_draw_that_would_not_be_gone_is_refused() {
        for (name, on, off) in [
            ("mirostat", json!(2), json!(0)),
            ("typical_p", json!(0.5), json!(1.0)),
            ("dynatemp_range", json!(0.5), json!(0.0)),
            ("min_tokens", json!(3), json!(0)),
            ("xtc_probability", json!(0.5), json!(0)),
            ("top_n_sigma", json!(1.0), json!(-1.0)),
            (
                "samplers",
                json!(["top_k"]),
                json!(["dry", "penalties", "top_k", "typ_p", "top_p", "min_p", "temperature"]),
            ),
            ("samplers", json!("tk"), json!("edskypmxt")),
        ] {
            let error = refused(&json!({ name: on })).unwrap();
            assert_eq!((&error["param"], &error["code"]), (&json!(name), &json!("unsupported")));
            assert_eq!(refused(&json!({ name: off })), None, "{name}");
        }
        let error = refused(&json!({ "mirostat": 2 })).unwrap();
        assert_eq!(error["message"], "`mirostat` is 2, this engine draws without it");
    }
}

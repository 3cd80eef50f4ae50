//! Checks on `command` and `args`: where the engine listens is slotd's business.

use super::{
    file::{EngineKey, ProfileFile},
    walk::{At, Walk},
    words::{listed, nearest},
};

/// What slotd fills in.
const PLACEHOLDERS: [&str; 3] = ["{port}", "{socket}", "{model}"];

const EXAMPLE: &str = "write `command = [\"PROGRAM\", \"--port\", \"{port}\"]`";

/// Checks everything about `stop_command` that hangs together with `engine`.
pub(super) fn check_stop_command(walk: &mut Walk<'_>, typed: &ProfileFile) {
    let Some(offset) = walk.offset_of_key("stop_command") else { return };
    match typed.engine {
        Some(EngineKey::Command) => {
            let has_model = typed.model.is_some();
            check_words(walk, "stop_command", (&typed.stop_command, offset), has_model);
        }
        Some(EngineKey::Auto | EngineKey::LlamaServer | EngineKey::Candle) => {
            let hint = "take it out: slotd ends this engine itself";
            walk.refuse(offset, "stop_command", "is only used with `engine = \"command\"`", hint);
        }
        None | Some(EngineKey::External) => {}
    }
}

/// Checks everything about `command` that hangs together with `engine`.
pub(super) fn check_command(walk: &mut Walk<'_>, typed: &ProfileFile) {
    match (typed.engine, walk.offset_of_key("command")) {
        (Some(EngineKey::Command), None) => walk.refuse_missing(
            "command",
            "missing, `engine = \"command\"` needs the program and its arguments",
            "add `command = [\"PROGRAM\", \"--port\", \"{port}\"]`",
        ),
        (Some(EngineKey::Auto | EngineKey::LlamaServer | EngineKey::Candle), Some(offset)) => walk
            .refuse(
                offset,
                "command",
                "is only used with `engine = \"command\"`",
                "add `engine = \"command\"`, or take `command` out",
            ),
        (Some(EngineKey::Command), Some(offset)) => {
            if let Some(command) = &typed.command {
                check_argv(walk, command, offset, typed.model.is_some());
            }
            refuse_unused(walk);
        }
        // What `engine` was meant to be is not known.
        // `external` says so itself.
        (None | Some(EngineKey::External), _) | (Some(_), None) => {}
    }
}

/// Refuses arguments that slotd sets itself, for the engines whose arguments it knows.
pub(super) fn check_args(walk: &mut Walk<'_>, typed: &ProfileFile) {
    if matches!(typed.engine, Some(EngineKey::Command | EngineKey::External) | None) {
        return;
    }
    for argument in &typed.args {
        let flag = argument.value.split('=').next().unwrap_or_default();
        let Some(hint) = better_place(flag) else { continue };
        walk.refuse_value(argument, format!("`{flag}` is set by slotd"), hint);
    }
}

fn better_place(flag: &str) -> Option<&'static str> {
    match flag {
        "--host" | "--port" | "--socket" | "--listen" => {
            Some("take it out: the engine listens in private, clients use slotd's endpoint")
        }
        "--model" | "-m" => Some("use the key `model`"),
        "--parallel" | "-np" => Some("use the key `parallel`"),
        "--alias" | "-a" => Some("use the key `aliases`"),
        "--api-key" | "--api-key-file" => Some("take it out: only slotd can reach the engine"),
        _ => None,
    }
}

fn check_argv(walk: &mut Walk<'_>, command: &[At<String>], offset: usize, has_model: bool) {
    if !check_words(walk, "command", (command, offset), has_model) {
        return;
    }
    let has =
        |word: &str| command.iter().any(|argument| placeholders(&argument.value).contains(&word));
    match (has("{port}"), has("{socket}")) {
        (true, true) => walk.refuse(
            offset,
            "command",
            "has both `{port}` and `{socket}`, expected one of them",
            "keep the one that the program can listen on",
        ),
        (false, false) => walk.refuse(
            offset,
            "command",
            "has neither `{port}` nor `{socket}`, expected one of them",
            "tell the program where to listen: `\"--port\", \"{port}\"` (on 127.0.0.1)",
        ),
        (true, false) | (false, true) => {}
    }
}

/// Checks what an argument vector has to be whatever it is for; tells whether there is one.
fn check_words(
    walk: &mut Walk<'_>,
    key: &str,
    (words, offset): (&[At<String>], usize),
    has_model: bool,
) -> bool {
    match words.first() {
        None => {
            let hint = format!("write `{key} = [\"PROGRAM\", \"ARGUMENT\"]`");
            let hint = if key == "command" { EXAMPLE.to_owned() } else { hint };
            walk.refuse(offset, key, "cannot be empty", &hint);
            return false;
        }
        Some(program) if program.value.is_empty() => {
            let hint = "write the program's name or path";
            walk.refuse_value(program, "cannot be empty", hint);
        }
        Some(_) => {}
    }
    for argument in words {
        for word in placeholders(&argument.value) {
            check_placeholder(walk, key, (argument, word), has_model);
        }
    }
    true
}

fn check_placeholder(
    walk: &mut Walk<'_>,
    key: &str,
    (argument, word): (&At<String>, &str),
    has_model: bool,
) {
    if !PLACEHOLDERS.contains(&word) {
        let message =
            format!("unknown placeholder `{word}`, expected one of {}", listed(&PLACEHOLDERS));
        let hint = match nearest(word, &PLACEHOLDERS) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("to pass it on as it is, double the braces: `{{{word}}}`"),
        };
        walk.refuse_value(argument, message, hint);
    } else if word == "{model}" && !has_model && walk.offset_of_key("model").is_none() {
        let hint = format!("add `model = \"…\"`, or write the model into `{key}`");
        walk.refuse_value(argument, "`{model}` has nothing to stand for", hint);
    }
}

/// Refuses keys that slotd turns into arguments only for engines whose arguments it knows.
fn refuse_unused(walk: &mut Walk<'_>) {
    for key in ["context", "threads", "gpu_layers"] {
        if let Some(offset) = walk.offset_of_key(key) {
            let hint = "write it into `command` in the program's own words";
            walk.refuse(offset, key, "is not used with `engine = \"command\"`", hint);
        }
    }
}

/// Finds `{word}`, a word of small letters and `_`. Doubled braces (templates) and JSON are left
/// alone.
fn placeholders(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices('{') {
        let (before, braced) = text.split_at(start);
        let is_in_word = |c: char| c.is_ascii_lowercase() || c == '_';
        let word = braced.get(1..).unwrap_or_default();
        let length = word.find(|c| !is_in_word(c)).unwrap_or(word.len());
        let (_, after) = word.split_at(length);
        let is_doubled = before.ends_with('{') && after.starts_with("}}");
        if length > 0 && after.starts_with('}') && !is_doubled {
            found.extend(braced.get(..length + 2));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_in_single_braces_are_placeholders() {
        assert_eq!(placeholders("127.0.0.1:{port}"), ["{port}"]);
        assert_eq!(placeholders("{port}{modell}"), ["{port}", "{modell}"]);
        assert_eq!(placeholders(r#"{"port":{port}}"#), ["{port}"]);
        for text in [r#"{"a":1}"#, "{{port}}", "{}", "{", "}{", "{ port }", "{PORT}", "{{ x }}"] {
            assert_eq!(placeholders(text), Vec::<&str>::new(), "{text}");
        }
    }
}

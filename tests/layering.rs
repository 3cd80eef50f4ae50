//! Imports run downward only, and the core touches nothing that would make it impure.
//!
//! Reads the source as tokens, not as text: comments, strings and names that merely look alike do
//! not count. Every path that begins with `crate`, `slotd`, `self` or `super` is followed to the
//! module of the top level that it names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Top to bottom. Modules of one row are siblings, which do not know each other.
const ROWS: [&[&str]; 9] = [
    &["cli"],
    &["runtime"],
    &["proxy", "admin", "process", "probe", "sensor", "models", "store"],
    &["config"],
    &["mailbox"],
    &["supervisor"],
    &["engine"],
    &["worker"],
    &["spec"],
];

/// Words that must not stand in the core: clocks, I/O, tasks, logging, entropy, unordered maps.
const IMPURE: [&str; 12] = [
    "tokio",
    "Instant",
    "SystemTime",
    "fs",
    "thread",
    "async",
    "await",
    "tracing",
    "rand",
    "HashMap",
    "HashSet",
    "println",
];

#[test]
fn imports_run_downward_only() {
    let faults: Vec<String> =
        sources().iter().flat_map(|(path, text)| upward_imports(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| path.starts_with("src/supervisor"))
        .flat_map(|(path, text)| impurities(path, text))
        .collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn planted_upward_imports_are_found() {
    let find = |path: &str, text: &str| upward_imports(Path::new(path), text);
    assert_eq!(
        find("src/supervisor/slot.rs", "\n\nuse crate::mailbox::Mailbox;"),
        ["src/supervisor/slot.rs:3: uses `mailbox`, which is above it"],
    );
    assert_eq!(
        find("src/proxy/gate.rs", "use crate::{\n spec::SlotName,\n store::{self, State},\n};"),
        ["src/proxy/gate.rs:3: uses `store`, which is beside it"],
    );
    assert_eq!(
        find("src/process/mod.rs", "fn f() { super::probe::look() }"),
        ["src/process/mod.rs:1: uses `probe`, which is beside it"],
    );
    assert_eq!(
        find("src/spec/name.rs", "mod tests { use super::super::super::engine as e; }"),
        ["src/spec/name.rs:1: uses `engine`, which is above it"],
    );
    assert_eq!(
        find("src/worker/mod.rs", "use crate::{engine, spec};"),
        ["src/worker/mod.rs:1: uses `engine`, which is above it"],
    );
    assert_eq!(
        find("src/models/mod.rs", "use crate::worker;"),
        ["src/models/mod.rs:1: uses `worker`, which only `cli` may"],
    );
    assert_eq!(
        find("src/config/file.rs", "use crate::supervisor::Policy;"),
        ["src/config/file.rs:1: uses `supervisor`, of which `config` is to know nothing"],
    );
    assert_eq!(
        find("src/spec/mod.rs", "use crate::gossip::Peer;"),
        ["src/spec/mod.rs:1: uses `gossip`, which has no place in `ROWS`"],
    );
    assert_eq!(
        find("src/gossip/mod.rs", "fn f() {}"),
        ["src/gossip/mod.rs:1: `gossip` has no place in `ROWS`"],
    );
    assert_eq!(
        impurities(Path::new("src/supervisor/slot.rs"), "fn f() {\n std::fs::read(x) }"),
        ["src/supervisor/slot.rs:2: `fs` has no place in the core"],
    );
}

#[test]
fn what_only_looks_like_an_import_is_left_alone() {
    let innocent = r#"
        //! See [`crate::runtime`].
        /* crate::runtime /* nested */ crate::cli */
        pub(in crate::supervisor) fn f<'a>(text: &'a str) -> char {
            let _ = ("crate::runtime", r"crate::cli\", b"crate::cli", '"', '\'', "\"crate::cli");
            self::helper(super::slot::Slot, crate::spec::Bytes, other::crate_cli);
            '{'
        }
        mod tests { use super::*; use super::super::event::Event; }
    "#;
    let path = Path::new("src/supervisor/states/down.rs");
    assert_eq!(upward_imports(path, innocent), Vec::<String>::new());
}

/// Every source file of the package, with its path from the package's root. A folder with a manifest
/// of its own is another package, which cannot know this one.
#[expect(clippy::expect_used, reason = "without its sources the test has nothing to say")]
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a source folder can be listed") {
            let path = entry.expect("a source folder can be listed").path();
            if path.is_dir() {
                if !path.join("Cargo.toml").exists() {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file can be read");
                let path = path.strip_prefix(root).expect("it lies in the package").to_owned();
                sources.push((path, text));
            }
        }
    }
    sources.sort();
    assert!(sources.len() > 10, "the sources are not where they were");
    sources
}

fn impurities(path: &Path, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let fault = |token: &Token| {
        let word = IMPURE.iter().find(|word| **word == token.text)?;
        Some(format!("{}:{}: `{word}` has no place in the core", path.display(), token.line))
    };
    tokens.iter().filter_map(fault).collect()
}

fn upward_imports(path: &Path, text: &str) -> Vec<String> {
    let home = module_of(path);
    // `main.rs` and `lib.rs` stand above all rows.
    let Some(from) = home.first() else { return Vec::new() };
    let at = |line: usize| format!("{}:{line}:", path.display());
    if row(from).is_none() {
        return vec![format!("{} `{from}` has no place in `ROWS`", at(1))];
    }
    let uses: BTreeSet<(usize, String)> = uses(&home, &tokens(text)).into_iter().collect();
    let fault = |(line, to): &(usize, String)| {
        fault_of(from, to).map(|fault| format!("{} uses `{to}`, {fault}", at(*line)))
    };
    uses.iter().filter_map(fault).collect()
}

/// Says what is wrong with `from` using `to`.
fn fault_of(from: &str, to: &str) -> Option<String> {
    let (Some(below), Some(above)) = (row(to), row(from)) else {
        return Some("which has no place in `ROWS`".to_owned());
    };
    if from == to {
        None
    } else if below < above {
        Some("which is above it".to_owned())
    } else if below == above {
        Some("which is beside it".to_owned())
    } else if to == "worker" && from != "cli" {
        Some("which only `cli` may".to_owned())
    } else if from == "config" && !matches!(to, "spec" | "engine") {
        Some("of which `config` is to know nothing".to_owned())
    } else {
        None
    }
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The module that a file holds, from the crate's root: `src/a/b.rs` is `a::b`, `src/a/mod.rs` is `a`.
fn module_of(path: &Path) -> Vec<String> {
    let parts = path.strip_prefix("src").unwrap_or(path).with_extension("");
    let parts = parts.iter().map(|part| part.to_string_lossy().into_owned());
    let mut parts: Vec<String> = parts.collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "main" | "lib")) {
        parts.pop();
    }
    parts
}

/// Every top-level module that a path names, with the line it stands on.
fn uses(home: &[String], tokens: &[Token]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Inline modules that are open, each with the depth of braces at which it closes.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|index| tokens.get(index));
        let next = tokens.get(index + 1);
        match token.text.as_str() {
            "{" => {
                let before_name = index.checked_sub(2).and_then(|index| tokens.get(index));
                if let (Some(keyword), Some(name)) = (before_name, before)
                    && keyword.text == "mod"
                {
                    inline.push((name.text.clone(), depth));
                }
                depth += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                inline.pop_if(|(_, at)| *at == depth);
            }
            "crate" | "slotd" | "self" | "super"
                if next.is_some_and(|next| next.text == "::")
                    && before.is_none_or(|before| before.text != "::") =>
            {
                let names = inline.iter().map(|(name, _)| name.clone());
                let here: Vec<String> = home.iter().cloned().chain(names).collect();
                follow(&here, tokens, index, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Follows one path from its first word at `index`.
fn follow(here: &[String], tokens: &[Token], index: usize, found: &mut Vec<(usize, String)>) {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut base = match word(index) {
        "crate" | "slotd" => Vec::new(),
        _ => here.to_vec(),
    };
    if word(index) == "super" {
        base.pop();
    }
    let mut index = index + 2;
    while word(index) == "super" && word(index + 1) == "::" {
        base.pop();
        index += 2;
    }
    if !base.is_empty() {
        return; // It stays inside a module of the top level: its own.
    }
    let mut note = |index: usize| {
        if let Some(token) = tokens.get(index).filter(|token| token.is_word()) {
            found.push((token.line, token.text.clone()));
        }
    };
    if word(index) != "{" {
        note(index);
        return;
    }
    // A group: the first word of each of its parts, whatever stands in nested groups.
    let mut depth = 0_usize;
    loop {
        match word(index) {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            "" => return,
            _ => {}
        }
        if depth == 0 {
            return;
        }
        if depth == 1 && matches!(word(index), "{" | ",") {
            note(index + 1);
        }
        index += 1;
    }
}

/// A word, `::`, or one other character.
#[derive(Debug)]
struct Token {
    line: usize,
    text: String,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_') && self.text != "self"
    }
}

/// Splits source into tokens, without comments, strings and characters in quotes.
fn tokens(text: &str) -> Vec<Token> {
    let mut rest = text;
    let mut line = 1;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let is_word = first.is_alphanumeric() || first == '_';
        let length = skipped(rest).unwrap_or_else(|| {
            if is_word {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            }
        });
        let (taken, after) = rest.split_at(length);
        if skipped(rest).is_none() && !first.is_whitespace() {
            tokens.push(Token { line, text: taken.to_owned() });
        }
        line += taken.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Returns the length of the comment or the quoted text that `rest` begins with.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if let Some(length) = raw_string(rest) {
        return Some(length);
    }
    if rest.starts_with('"') || rest.starts_with("b\"") || rest.starts_with("c\"") {
        let open = rest.find('"')? + 1;
        return Some(open + closing(rest.get(open..)?, '"'));
    }
    // A character; a lifetime has no second quote.
    let quoted = rest.strip_prefix('\'')?;
    let is_character = quoted.starts_with('\\') || quoted.chars().nth(1) == Some('\'');
    is_character.then(|| 1 + closing(quoted, '\''))
}

/// Returns the length up to and with the closing quote.
fn closing(quoted: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    quoted.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let quoted = body.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = quoted.find(&end)? + end.len();
    Some(rest.len() - quoted.len() + length)
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let Some(here) = rest.get(at..).filter(|here| !here.is_empty()) else { return rest.len() };
        let step = if here.starts_with("/*") {
            depth += 1;
            2
        } else if here.starts_with("*/") {
            depth -= 1;
            2
        } else {
            here.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
}

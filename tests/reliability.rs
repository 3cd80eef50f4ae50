//! The table of faults in `docs/RELIABILITY.md` names tests that are there.

#![expect(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this is a test: a broken set-up is a failed one"
)]

use std::{
    collections::BTreeSet,
    fs, mem,
    path::{Path, PathBuf},
};

const CASES: usize = 48;
const RUNNABLE: usize = 44;

#[test]
fn every_fault_has_a_test_that_is_there_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/RELIABILITY.md")).unwrap();
    let tests = tests(root);
    let rows: Vec<Row<'_>> = table.lines().filter_map(Row::read).collect();
    let numbers: Vec<usize> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=CASES).collect::<Vec<_>>());
    let missing: Vec<&str> = rows
        .iter()
        .flat_map(|row| row.tests.clone())
        .filter(|name| !tests.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
    for row in rows.iter().filter(|row| row.tests.is_empty()) {
        assert!(row.answer.starts_with("— "), "row {} has neither test nor reason", row.number);
    }
    let runnable = rows.iter().filter(|row| !row.tests.is_empty()).count();
    assert!(runnable >= RUNNABLE, "{runnable} of {CASES} have a test");
}

/// One row of the table.
struct Row<'a> {
    number: usize,
    answer: &'a str,
    tests: Vec<&'a str>,
}

impl<'a> Row<'a> {
    /// Reads a row; `None` for a line that is none.
    fn read(line: &'a str) -> Option<Self> {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let number = cells.next()?.parse().ok()?;
        let (_, answer) = (cells.next()?, cells.next()?);
        let tests = cells.next().unwrap_or("").split('`').skip(1).step_by(2).collect();
        Some(Self { number, answer, tests })
    }
}

/// The names of all functions that follow a `#[…test…]`.
fn tests(root: &Path) -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        find(&root.join(folder), &mut files);
    }
    files.iter().flat_map(|file| tests_of(&fs::read_to_string(file).unwrap())).collect()
}

fn tests_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else if let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
            && mem::take(&mut is_test)
        {
            found.extend(rest.split('(').next().map(str::to_owned));
        }
    }
    found
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn a_function_that_is_no_test_is_not_taken_for_one() {
    let text = "fn helper() {}\n#[test]\n#[expect(x)]\nfn one() {}\n#[tokio::test]\nasync fn two() {}\nfn three() {}";
    assert_eq!(tests_of(text), ["one", "two"]);
}

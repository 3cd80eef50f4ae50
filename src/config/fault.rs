//! One mistake in what was typed: where, what, what next.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One mistake in a file, a flag or an environment variable, made to be read by the person who made
/// it. Sorts by file, then by place.
///
/// Shown as `file:line:column: key: message`, and the hint on a line of its own:
///
/// ```text
/// profiles/qwen.toml:7:11: context: `0` is out of range, expected 256..=1048576
///   hint: leave the key out to use the engine's own default
/// ```
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Fault {
    /// The file or directory, as it was named; none for a flag or a variable.
    pub file: Option<PathBuf>,
    /// The line, from 1; none when the fault is about the file as a whole.
    pub line: Option<usize>,
    /// The column, from 1, in characters; present when `line` is.
    pub column: Option<usize>,
    /// The key's path (`aliases[1]`, `env.HOME`), the flag or the variable.
    pub key: Option<String>,
    /// What is wrong and what is allowed; lower case, no full stop.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Fault {
    /// Makes a fault that is about a file or directory as a whole.
    pub(super) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: Some(file.to_owned()), ..Self::bare(message) }
    }

    /// Makes a fault of a flag or an environment variable.
    pub(super) fn of_flag(flag: &str, message: impl Into<String>) -> Self {
        Self { key: Some(flag.to_owned()), ..Self::bare(message) }
    }

    /// Makes a fault that no flag, variable or file is to blame for.
    fn bare(message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            key: None,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the key that the fault is about.
    #[must_use]
    pub(super) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// Adds the place of byte `offset` of `text`.
    #[must_use]
    pub(super) fn at(self, text: &str, offset: usize) -> Self {
        let (line, column) = line_and_column(text, offset);
        Self { line: Some(line), column: Some(column), ..self }
    }

    /// Adds what to do next.
    #[must_use]
    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let (Some(line), Some(column)) = (self.line, self.column) {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Finds line and column, both from 1, of byte `offset` of `text`; the column counts characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let (before, _) = text.split_at(text.floor_char_boundary(offset));
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        assert_eq!(line_and_column("a = 1\nbé = ü", "a = 1\nbé = ".len()), (2, 6));
        assert_eq!(line_and_column("", 0), (1, 1));
        assert_eq!(line_and_column("a\n", 99), (2, 1));
    }

    #[test]
    fn a_fault_reads_as_editors_expect() {
        let fault = Fault::of_file(Path::new("profiles/qwen.toml"), "is wrong")
            .with_key("context")
            .at("a\ncontext = 0", 12)
            .with_hint("leave it out");
        assert_eq!(
            fault.to_string(),
            "profiles/qwen.toml:2:11: context: is wrong\n  hint: leave it out"
        );
        assert_eq!(Fault::of_flag("--listen", "is wrong").to_string(), "--listen: is wrong");
    }
}

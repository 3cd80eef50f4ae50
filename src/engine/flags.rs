//! The options that a program's own `--help` names.

use std::collections::BTreeSet;

/// The long options that a version of an engine knows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Flags(BTreeSet<String>);

impl Flags {
    /// Reads help text: every word at the start of a line that begins with `--`, up to the first
    /// that is no option.
    pub fn parse(help: &str) -> Self {
        let mut names = BTreeSet::new();
        for line in help.lines() {
            for word in line.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
                if !word.starts_with('-') {
                    break;
                }
                if word.starts_with("--") {
                    names.insert(word.to_owned());
                }
            }
        }
        Self(names)
    }

    /// Tells whether the program knows `flag`. A help that named nothing knows everything: a
    /// wrapper that swallows `--help` must not lose every option.
    pub fn knows(&self, flag: &str) -> bool {
        self.0.is_empty() || self.0.contains(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_an_option_are_found_and_prose_is_not() {
        let help = "-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers, see --fit\n\
                    --ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI\n\
                    \x20                                       --not-an-option in the text\n\
                    text with --another in it\n";
        let flags = Flags::parse(help);
        for known in ["--gpu-layers", "--n-gpu-layers", "--ui", "--no-webui"] {
            assert!(flags.knows(known), "{known}");
        }
        for unknown in ["--fit", "--another"] {
            assert!(!flags.knows(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_program_without_help_is_given_every_option() {
        assert!(Flags::parse("").knows("--parallel"));
    }
}

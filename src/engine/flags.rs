//! The options that a program's own `--help` names.

use std::collections::BTreeSet;

/// The long options that a version of an engine knows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Flags(BTreeSet<String>);

impl Flags {
    /// Reads help text: in each line that starts with an option, its spellings, up to the first
    /// word that is none. Lines that start elsewhere are prose.
    pub fn parse(help: &str) -> Self {
        let mut names = BTreeSet::new();
        for line in help.lines().filter(|line| line.starts_with('-')) {
            let words = line.split([' ', ',', '\t']).filter(|word| !word.is_empty());
            let options = words.take_while(|word| word.starts_with('-'));
            names.extend(options.filter(|word| word.starts_with("--")).map(str::to_owned));
        }
        Self(names)
    }

    /// Tells whether the help named no option at all: a wrapper that swallows `--help`, say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether the help named `flag`.
    pub fn names(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }

    /// Tells whether the program can be given `flag`: a program without help must not lose every
    /// option.
    pub fn takes(&self, flag: &str) -> bool {
        self.is_empty() || self.names(flag)
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
            assert!(flags.takes(known), "{known}");
        }
        for unknown in ["--fit", "--another", "--not-an-option"] {
            assert!(!flags.takes(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_program_without_help_takes_every_option_and_names_none() {
        let flags = Flags::parse("");
        assert!(flags.takes("--parallel"));
        assert!(!flags.names("--parallel"));
    }
}

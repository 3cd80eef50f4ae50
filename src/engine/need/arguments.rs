//! What a profile's `args` say, for the few options that memory depends on.

/// The arguments of a profile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments<'a>(pub(super) &'a [String]);

impl<'a> Arguments<'a> {
    /// Returns each word with the value that it has if it is an option: what stands behind its `=`, else
    /// the next word.
    pub(super) fn pairs(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let next = self.0.iter().skip(1).map(String::as_str).chain([""]);
        self.0.iter().zip(next).map(|(word, next)| word.split_once('=').unwrap_or((word, next)))
    }

    /// Returns the value that the last of these options has.
    pub(super) fn value(self, options: &[&str]) -> Option<&'a str> {
        let pairs = self.pairs().filter(|(option, _)| options.contains(option));
        pairs.map(|(_, value)| value).last()
    }

    /// Returns the number that the last of these options has; `None` for a negative one as well.
    pub(super) fn number(self, options: &[&str]) -> Option<u64> {
        self.value(options)?.parse().ok()
    }

    /// Tells whether one of these options is there.
    pub(super) fn has(self, options: &[&str]) -> bool {
        self.0.iter().any(|word| options.contains(&word.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_options_counts_in_either_spelling() {
        let words = ["-c", "512", "--ctx-size", "1024", "--swa-full"].map(str::to_owned);
        let arguments = Arguments(&words);
        assert_eq!(arguments.number(&["--ctx-size", "-c"]), Some(1024));
        assert_eq!(arguments.value(&["--ubatch-size"]), None);
        assert!(arguments.has(&["--swa-full"]));
        let words = ["--ctx-size=64".to_owned(), "-ub".to_owned()];
        assert_eq!(Arguments(&words).number(&["--ctx-size"]), Some(64));
        assert_eq!(Arguments(&words).number(&["-ub"]), None);
    }
}

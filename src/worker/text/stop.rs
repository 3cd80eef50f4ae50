//! Stop strings across token borders: no part of one ever reaches the client.

/// Looks for stop strings in text that comes in pieces.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// The begin of a possible stop string.
    held: String,
}

/// What can be handed on after a piece of text.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Stopped {
    /// This much is not part of any stop string.
    Not(String),
    /// A stop string began after this text.
    At(String),
}

impl StopMatcher {
    /// Makes a matcher; empty strings never match.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    /// Takes a piece of text and gives what can be handed on.
    pub(crate) fn push(&mut self, text: &str) -> Stopped {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Stopped::At(std::mem::take(&mut self.held));
        }
        let keep_from = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| {
                self.held
                    .get(*at..)
                    .is_some_and(|tail| self.stops.iter().any(|stop| stop.starts_with(tail)))
            })
            .unwrap_or(self.held.len());
        let kept = self.held.split_off(keep_from);
        Stopped::Not(std::mem::replace(&mut self.held, kept))
    }

    /// Gives what was held back when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            match matcher.push(piece) {
                Stopped::Not(text) => out.push(text),
                Stopped::At(text) => {
                    out.push(text);
                    return (out, true);
                }
            }
        }
        out.push(matcher.finish());
        (out, false)
    }

    #[test]
    fn a_stop_across_pieces_leaks_nothing() {
        let (out, stopped) = run(&["END"], &["one E", "N", "D two"]);
        assert_eq!((out.concat().as_str(), stopped), ("one ", true));
    }

    #[test]
    fn what_only_looked_like_a_stop_comes_out() {
        let (out, stopped) = run(&["END"], &["one E", "N", "ough"]);
        assert_eq!(out, ["one ", "", "ENough", ""]);
        assert!(!stopped);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        let (out, stopped) = run(&["c", "b", "", "\n\n"], &["abc"]);
        assert_eq!((out.concat().as_str(), stopped), ("a", true));
    }

    #[test]
    fn a_repeated_begin_is_found() {
        let (out, stopped) = run(&["aab"], &["aa", "ab!"]);
        assert_eq!((out.concat().as_str(), stopped), ("a", true));
    }
}

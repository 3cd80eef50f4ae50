//! Text on its way out of a sequence.

use super::{
    job::Piece,
    sampler::Scored,
    text::{StopMatcher, Stopped, TextStream},
};

/// Text on its way out: whole characters, no part of a stop string, each token's score with the
/// text it belongs to.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: TextStream,
    stops: StopMatcher,
    /// Scores, each with the length of all text up to the end of its token.
    scores: Vec<(usize, Scored)>,
    decoded: usize,
    emitted: usize,
}

/// Whether an answer goes on.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Going {
    On,
    Ended,
}

impl Outgoing {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stream: TextStream::default(),
            stops: StopMatcher::new(stops),
            scores: Vec::new(),
            decoded: 0,
            emitted: 0,
        }
    }

    /// Takes the bytes of a token and gives what can go out.
    pub(super) fn push(&mut self, bytes: &[u8], scored: Option<Scored>) -> (Piece, Going) {
        let text = self.stream.push(bytes);
        self.decoded = self.decoded.saturating_add(text.len());
        self.scores.extend(scored.map(|scored| (self.decoded, scored)));
        match self.stops.push(&text) {
            Stopped::Not(text) => (self.emit(text), Going::On),
            Stopped::At(text) => {
                let piece = self.emit(text);
                self.scores.clear();
                (piece, Going::Ended)
            }
        }
    }

    /// Gives what was held back.
    pub(super) fn finish(&mut self) -> Piece {
        let text = self.stops.finish();
        let mut piece = self.emit(text);
        piece.scores.extend(self.scores.drain(..).map(|(_, scored)| scored));
        piece
    }

    fn emit(&mut self, text: String) -> Piece {
        self.emitted = self.emitted.saturating_add(text.len());
        let out = self.scores.iter().take_while(|(end, _)| *end <= self.emitted).count();
        Piece { text, scores: self.scores.drain(..out).map(|(_, scored)| scored).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(id: u32) -> Scored {
        Scored { id, logprob: 0.0, top: Vec::new() }
    }

    #[test]
    fn a_score_goes_out_with_the_text_of_its_token() {
        let mut outgoing = Outgoing::new(vec!["STOP".to_owned()]);
        let ids = |piece: &Piece| piece.scores.iter().map(|scored| scored.id).collect::<Vec<_>>();
        let (first, _) = outgoing.push(b"a S", Some(scored(1)));
        assert_eq!((first.text.as_str(), ids(&first)), ("a ", vec![]));
        let (second, _) = outgoing.push(b"un", Some(scored(2)));
        assert_eq!((second.text.as_str(), ids(&second)), ("Sun", vec![1, 2]));
        let (third, going) = outgoing.push(b"STOP", Some(scored(3)));
        assert_eq!((third.text.as_str(), ids(&third), going), ("", vec![], Going::Ended));
        assert_eq!(ids(&outgoing.finish()), Vec::<u32>::new());
    }
}

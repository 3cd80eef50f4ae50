//! What of an answer that comes piece by piece can be told at once, where it may hold calls of tools.

use super::calls::CallStyle;

/// The text of one answer that is still held back.
#[derive(Clone, Debug)]
pub(crate) struct CallScreen {
    style: CallStyle,
    held: String,
    has_said: bool,
}

impl CallScreen {
    /// Nothing has come yet.
    pub(crate) fn new(style: CallStyle) -> Self {
        Self { style, held: String::new(), has_said: false }
    }

    /// Takes a piece, and gives what is no call for certain.
    pub(crate) fn pass(&mut self, piece: &str) -> String {
        // What follows text is text, be it JSON: the whole answer is a call, or none of it is.
        if self.has_said && self.style.is_call_alone() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let rest = self.held.split_off(self.style.may_begin(&self.held));
        let said = std::mem::replace(&mut self.held, rest);
        self.has_said |= !said.is_empty();
        said
    }

    /// Gives what is still held, once nothing more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::text::Call;

    /// What is told at once, then what was held; and the calls in that.
    fn streamed(style: CallStyle, pieces: &[&str]) -> (String, String, Vec<Call>) {
        let mut screen = CallScreen::new(style);
        let told = pieces.iter().map(|piece| screen.pass(piece)).collect();
        let (said, calls) = style.divide(&screen.finish());
        (told, said, calls)
    }

    #[test]
    fn code_or_a_link_in_an_answer_does_not_hold_the_rest_back() {
        let json = "{\"name\": \"a\", \"parameters\": {}}";
        for style in [CallStyle::Bare, CallStyle::List] {
            for pieces in [
                vec!["See ", "[the page]", "(x) and", " more"],
                vec!["So: ", "{", "\n  x }", " end"],
                vec!["Like this:\n", json],
                vec![" ", "\n", "Items: ", "[{\"name\": \"a\", \"arguments\": {}}]"],
            ] {
                let whole = style.divide(&pieces.concat());
                let (told, rest, calls) = streamed(style, &pieces);
                assert_eq!((told, calls), whole, "{style:?} {pieces:?}");
                assert_eq!(rest, "");
            }
        }
    }

    #[test]
    fn a_call_alone_is_held_until_it_is_whole() {
        let pieces = ["\n", "{\"name\": \"a\", ", "\"parameters\": {\"x\": 1}}"];
        let (told, rest, calls) = streamed(CallStyle::Bare, &pieces);
        assert_eq!((told + &rest, calls), CallStyle::Bare.divide(&pieces.concat()));
        let pieces =
            ["Let me see. <tool", "_call>{\"name\": \"a\", \"arguments\": {}}</tool_call>"];
        let (told, _, calls) = streamed(CallStyle::Tagged, &pieces);
        assert_eq!((&*told, calls.len()), ("Let me see. ", 1));
    }
}

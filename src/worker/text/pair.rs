//! A query and a document as one text, in the form that models take which say how well the two belong together.

use tokenizers::{
    Encoding, PostProcessor as _, Tokenizer,
    utils::truncation::{TruncationParams, truncate_encodings},
};

use super::Vocabulary;

/// Two texts in one, with the tokens that the tokenizer puts around them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pair {
    pub(crate) tokens: Vec<u32>,
    /// Where the second text begins; the end where the model tells the two apart by other means.
    pub(crate) second: usize,
}

/// The first text of many pairs.
#[derive(Clone, Debug)]
pub(crate) struct Query<'a> {
    tokenizer: &'a Tokenizer,
    text: Encoding,
    /// Tokens of a pair.
    most: usize,
}

impl<'a> Query<'a> {
    /// Reads the text; its pairs have at most `most` tokens.
    pub(crate) fn new(
        vocabulary: &'a Vocabulary,
        text: &str,
        most: usize,
    ) -> Result<Self, tokenizers::Error> {
        let tokenizer = &vocabulary.tokenizer;
        Ok(Self { tokenizer, text: tokenizer.encode_fast(text, false)?, most })
    }

    /// Makes a pair. Where it is too long, the longer of the two texts loses its end, and when they are
    /// equally long both do, as in the `CrossEncoder` of sentence-transformers.
    pub(crate) fn with(&self, document: &str) -> Result<Pair, tokenizers::Error> {
        let mut document = self.tokenizer.encode_fast(document, false)?;
        document.set_type_ids(vec![1; document.len()]);
        let framing =
            self.tokenizer.get_post_processor().map_or(0, |frame| frame.added_tokens(true));
        let max_length = self.most.saturating_sub(framing);
        let params = TruncationParams { max_length, ..TruncationParams::default() };
        let (mut query, mut document) =
            truncate_encodings(self.text.clone(), Some(document), &params)?;
        // What was cut off would be framed as well.
        for text in [Some(&mut query), document.as_mut()].into_iter().flatten() {
            drop(text.take_overflowing());
        }
        let whole = self.tokenizer.post_process(query, document, true)?;
        let second = whole.get_type_ids().iter().position(|kind| *kind == 1);
        Ok(Pair { tokens: whole.get_ids().to_vec(), second: second.unwrap_or_else(|| whole.len()) })
    }
}

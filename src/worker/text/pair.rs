//! A query and a document as one text, in the form that models take which say how well the two belong together.

use tokenizers::{Encoding, PostProcessor as _, Tokenizer, utils::truncation::TruncationDirection};

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
    /// No longer than a pair may be: it is copied for each.
    text: Encoding,
    /// Tokens of the whole text.
    length: usize,
    /// Tokens of a pair's two texts.
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
        let framing = tokenizer.get_post_processor().map_or(0, |frame| frame.added_tokens(true));
        let most = most.saturating_sub(framing);
        let mut text = tokenizer.encode_fast(text, false)?;
        let length = text.len();
        cut(&mut text, most);
        Ok(Self { tokenizer, text, length, most })
    }

    /// Makes a pair. Where it is too long, the longer of the two texts loses its end, and when they are
    /// equally long both do, as in the `CrossEncoder` of sentence-transformers.
    pub(crate) fn with(&self, document: &str) -> Result<Pair, tokenizers::Error> {
        let mut document = self.tokenizer.encode_fast(document, false)?;
        document.set_type_ids(vec![1; document.len()]);
        let mut query = self.text.clone();
        let [of_query, of_document] = shares(self.length, document.len(), self.most);
        cut(&mut query, of_query);
        cut(&mut document, of_document);
        let whole = self.tokenizer.post_process(query, Some(document), true)?;
        let second = whole.get_type_ids().iter().position(|kind| *kind == 1);
        Ok(Pair { tokens: whole.get_ids().to_vec(), second: second.unwrap_or_else(|| whole.len()) })
    }
}

/// Says how many tokens two texts keep that have room for `most` together.
///
/// Source: `LongestFirst` in `truncate_encodings` of `tokenizers`, which takes no query that is cut already.
fn shares(query: usize, document: usize, most: usize) -> [usize; 2] {
    if query.saturating_add(document) <= most {
        return [query, document];
    }
    let shorter = query.min(document).min(most / 2);
    let longer = most - shorter;
    if query > document { [longer, shorter] } else { [shorter, longer] }
}

fn cut(text: &mut Encoding, most: usize) {
    text.truncate(most, 0, TruncationDirection::Right);
    // What was cut off would be framed as well.
    drop(text.take_overflowing());
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};

    use super::*;
    use crate::worker::model::{Header, tiny};

    fn vocabulary() -> Vocabulary {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::F32);
        Vocabulary::read(&Header::open(&path).unwrap()).unwrap()
    }

    #[test]
    fn a_long_query_is_not_copied_whole_for_every_document() {
        let vocabulary = vocabulary();
        let query = Query::new(&vocabulary, &"0 1 2 3 ".repeat(2_000), 31).unwrap();
        assert_eq!(query.text.len(), 31);
        assert_eq!(query.with("one document").unwrap().tokens.len(), 31);
    }

    #[test]
    fn a_pair_whose_query_was_cut_before_is_that_of_the_whole_query() {
        let vocabulary = vocabulary();
        let tokenizer = &vocabulary.tokenizer;
        let text = |length: usize| "abcdefghij".chars().cycle().take(length).collect::<String>();
        for most in 0..8 {
            for (of_query, of_document) in (0..20).flat_map(|a| (0..20).map(move |b| (a, b))) {
                let (asked, document) = (text(of_query), text(of_document).to_uppercase());
                let pair = Query::new(&vocabulary, &asked, most).unwrap().with(&document).unwrap();
                let whole = |text: &str| tokenizer.encode_fast(text, false).unwrap();
                let params = TruncationParams { max_length: most, ..TruncationParams::default() };
                let cut = truncate_encodings(whole(&asked), Some(whole(&document)), &params);
                let (first, second) = cut.unwrap();
                let wanted = [first.get_ids(), second.unwrap().get_ids()].concat();
                assert_eq!(pair.tokens, wanted, "{of_query} and {of_document} into {most}");
            }
        }
    }
}

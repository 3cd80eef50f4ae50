//! Words in messages: what a mistyped one was meant to be, lists, long texts cut short.

/// The longest text that is shown, in characters.
const LONGEST: usize = 60;

/// Returns the word of `known` that `typed` was most likely meant to be, if one is close enough:
/// at most one edit for each three characters, where `-` and `_`, and upper and lower case, are the
/// same. A text that is far too long is no slip.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed = Some(plain(typed)).filter(|typed| typed.len() <= LONGEST)?;
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&typed, &plain(word)), *word))
        .filter(|(edits, word)| *edits <= word.len().div_ceil(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, word)| word)
}

/// Lists words for a message: `` `a`, `b`, `c` ``.
pub(super) fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Cuts a text to what fits into a message, and takes line breaks and control characters out.
pub(super) fn cut(text: &str) -> String {
    let shown = text.chars().take(LONGEST).map(|c| if c.is_control() { '␣' } else { c });
    let rest = text.chars().nth(LONGEST).map(|_| '…');
    shown.chain(rest).collect()
}

fn plain(word: &str) -> String {
    word.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood_and_another_word_is_not() {
        let known = ["context", "gpu_layers", "env"];
        assert_eq!(nearest("contxt", &known), Some("context"));
        assert_eq!(nearest("GPU-layers", &known), Some("gpu_layers"));
        assert_eq!(nearest("evn", &known), Some("env"));
        assert_eq!(nearest("colour", &known), None);
    }
}

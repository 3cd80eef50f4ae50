//! The known word that a mistyped one was meant to be.

/// Returns the word of `known` that `typed` was most likely meant to be, if one is close enough:
/// at most one edit for each three characters, where `-` and `_`, and upper and lower case, are the
/// same.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed = plain(typed);
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

//! Text from tokens as they come: never half a character.

/// Bytes of tokens on their way to becoming text.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    /// At most three bytes: the begin of a character whose end is still to come.
    pending: Vec<u8>,
}

impl TextStream {
    /// Takes a token's bytes and gives the text that is complete; bytes that can never become a
    /// character come out as U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest: &[u8] = &self.pending;
        loop {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(broken) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(broken..).unwrap_or_default();
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_comes_out_when_its_last_byte_has_come() {
        let mut stream = TextStream::default();
        let parts: Vec<String> =
            "a😀b".as_bytes().iter().map(|byte| stream.push(&[*byte])).collect();
        assert_eq!(parts, ["a", "", "", "", "😀", "b"]);
    }

    #[test]
    fn bytes_that_are_no_text_become_one_replacement() {
        let mut stream = TextStream::default();
        assert_eq!(stream.push(&[b'a', 0xFF, b'b', 0xC3]), "a\u{FFFD}b");
        assert_eq!(stream.push(&[0xA9]), "é");
    }
}

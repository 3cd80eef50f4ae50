//! The letters by which byte-level vocabularies write bytes.
//!
//! Source: `bytes_to_unicode` of GPT-2's encoder: printable bytes stand for themselves, the others
//! for the letters from U+0100 on, in order.

use std::collections::BTreeMap;

/// Gives the letter of each byte, in the order of the bytes.
pub(crate) fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut next = 0x100_u32;
    (0..=u8::MAX).map(move |byte| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..) {
            char::from(byte)
        } else {
            let letter = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
            next = next.saturating_add(1);
            letter
        }
    })
}

/// Gives the byte that each letter stands for.
pub(super) fn letters() -> BTreeMap<char, u8> {
    byte_alphabet().zip(0..=u8::MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_written_as_the_known_letter() {
        let letters = letters();
        assert_eq!(letters.len(), 256);
        assert_eq!(letters.get(&'Ġ'), Some(&b' '));
        assert_eq!(letters.get(&'Ċ'), Some(&b'\n'));
    }
}

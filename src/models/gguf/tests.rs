use std::{fs, io::Cursor};

use proptest::prelude::*;

use super::*;

/// Writes a GGUF file as the specification says.
#[derive(Clone, Debug, Default)]
struct Writer {
    metadata: Vec<u8>,
    pairs: u64,
    tensors: Vec<u8>,
    count: u64,
    data: u64,
}

impl Writer {
    fn model() -> Self {
        Self::default()
            .text("general.architecture", "llama")
            .text("general.name", "Tiny")
            .number("general.file_type", 15)
            .number("llama.context_length", 2048)
            .texts("tokenizer.ggml.tokens", &["<s>", "a", "b"])
            .tensor("token_embd.weight", &[64, 3], 0)
            .tensor("output.weight", &[64, 4], 2)
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.extend(string(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.pairs += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &string(value))
    }

    fn number(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut array = 8_u32.to_le_bytes().to_vec();
        array.extend(u64::try_from(values.len()).unwrap().to_le_bytes());
        array.extend(values.iter().flat_map(|value| string(value)));
        self.pair(key, 9, &array)
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32) -> Self {
        self.tensors.extend(string(name));
        self.tensors.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        self.tensors.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(self.data.to_le_bytes());
        let TensorType { block, bytes } = TensorType::of(kind).unwrap();
        self.data += (shape.iter().product::<u64>() / block * bytes).next_multiple_of(32);
        self.count += 1;
        self
    }

    fn header(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.count.to_le_bytes());
        file.extend(self.pairs.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.tensors);
        file
    }

    fn file(&self) -> Vec<u8> {
        let mut file = self.header();
        let data = file.len().next_multiple_of(32) + usize::try_from(self.data).unwrap();
        file.resize(data, 0);
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u64::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn parse_bytes(bytes: &[u8]) -> Result<Header, HeaderFault> {
    parse(Cursor::new(bytes), u64::try_from(bytes.len()).unwrap())
}

fn fault(bytes: &[u8]) -> String {
    parse_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn a_whole_file_tells_what_it_is() {
    let header = parse_bytes(&Writer::model().file()).unwrap();
    let expected = Header {
        general_type: None,
        architecture: "llama".into(),
        name: Some("Tiny".into()),
        quantisation: Some("Q4_K_M"),
        parameters: 64 * 3 + 64 * 4,
        context_length: Some(2048),
        layers: None,
        pooling: None,
        tensors: 2,
        tensor_bytes: Bytes(64 * 3 * 4 + 64 * 4 / 32 * 18),
        parts: 1,
        facts: header.facts.clone(),
    };
    assert_eq!(header, expected);
    assert_eq!(header.facts.vocabulary, 3);
    assert_eq!(header.facts.bytes_of(|tensor| tensor.kind.place == Place::Input), 64 * 3 * 4);
    assert_eq!(header.facts.bytes_of(|tensor| tensor.kind.ggml_type == 2), 64 * 4 / 32 * 18);
}

#[test]
fn numbers_of_layers_are_kept_and_those_of_a_vocabulary_are_counted() {
    let mut heads = 5_u32.to_le_bytes().to_vec();
    heads.extend(2_u64.to_le_bytes());
    heads.extend([8_u32, 4].map(u32::to_le_bytes).concat());
    let file = Writer::default()
        .text("general.architecture", "gemma3")
        .pair("gemma3.attention.head_count_kv", 9, &heads)
        .number("gemma3.attention.sliding_window", 512)
        .number("llama.attention.sliding_window", 7)
        .file();
    let facts = parse_bytes(&file).unwrap().facts;
    assert_eq!(facts.of_layer("attention.head_count_kv", 1), Some(4));
    assert_eq!(facts.number("attention.sliding_window"), Some(512));
}

#[test]
fn a_key_counts_only_for_the_files_own_architecture() {
    let file = Writer::default()
        .number("bert.pooling_type", 2)
        .number("other.pooling_type", 1)
        .text("general.architecture", "bert")
        .file();
    let header = parse_bytes(&file).unwrap();
    assert_eq!((header.pooling, header.context_length), (Some(2), None));
}

#[test]
fn a_cut_file_is_told_at_every_length() {
    let file = Writer::model().file();
    let header = Writer::model().header().len();
    assert!(matches!(parse_bytes(&[]), Err(HeaderFault::Empty)));
    for length in 4..header {
        let parsed = parse_bytes(&file[..length]);
        assert!(matches!(parsed, Err(HeaderFault::CutHeader { .. })), "{length}: {parsed:?}");
    }
    // The last tensor's data, without its padding.
    let end = file.len() - 16;
    for length in header..end {
        let parsed = parse_bytes(&file[..length]);
        assert!(matches!(parsed, Err(HeaderFault::CutTensor { .. })), "{length}: {parsed:?}");
    }
    assert!(parse_bytes(&file[..end]).is_ok());
}

#[test]
fn each_fault_is_one_sentence_after_the_files_name() {
    let model = Writer::model();
    insta::assert_snapshot!(fault(b""), @"is empty; download it again");
    insta::assert_snapshot!(fault(b"<!DOCTYPE html>\n<html>"), @"is not a GGUF file, it begins with `<!DOCTYPE ht`; name a .gguf file, or download it again");
    insta::assert_snapshot!(fault(b"version https://git-lfs.github.com/spec/v1\noid"), @"is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`");
    insta::assert_snapshot!(fault(b"GGUF\x01\0\0\0"), @"has GGUF version 1, and engines read 2 and 3; convert or download it again");
    insta::assert_snapshot!(fault(b"GGUF\0\0\0\x03"), @"is a GGUF file for big-endian machines; download the one for this machine");
    insta::assert_snapshot!(fault(&model.file()[..60]), @"is cut short inside its header, at byte 60; download it again");
    insta::assert_snapshot!(fault(&model.file()[..900]), @"is cut short: tensor `output.weight` ends at byte 1296, the file has 900; download it again");
    insta::assert_snapshot!(fault(&model.clone().number("general.alignment", 33).file()), @"has a damaged header (its alignment is no small power of two); download it again");
    insta::assert_snapshot!(fault(&model.pair("x", 13, &[]).file()), @"has a damaged header (a value has an unknown type); download it again");
}

#[test]
fn what_a_header_claims_is_not_believed() {
    let claim = |pairs: u64, tensors: u64, rest: &[u8]| {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tensors.to_le_bytes());
        file.extend(pairs.to_le_bytes());
        file.extend(rest);
        file
    };
    let mut nested = string("x");
    nested.extend(9_u32.to_le_bytes());
    for _ in 0..10_000 {
        nested.extend(9_u32.to_le_bytes());
        nested.extend(1_u64.to_le_bytes());
    }
    let mut huge = string("t");
    huge.extend(4_u32.to_le_bytes());
    (0..4).for_each(|_| huge.extend(u64::MAX.to_le_bytes()));
    huge.extend([0; 12]);
    for file in [
        claim(u64::MAX, 0, &[]),
        claim(0, u64::MAX, &[]),
        claim(1, 0, &u64::MAX.to_le_bytes()),
        claim(1, 0, &nested),
        claim(0, 1, &huge),
    ] {
        assert!(parse_bytes(&file).is_err());
    }
}

#[test]
fn all_parts_of_a_split_model_must_be_there_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = |part: u32| folder.path().join(format!("m-{part:05}-of-00003.gguf"));
    let part = Writer::model().number("split.count", 3).file();
    let text = |part: u32| {
        let text = read(&at(part)).unwrap_err().to_string();
        text.replace(&folder.path().display().to_string(), "DIR")
    };
    fs::write(at(1), &part).unwrap();
    fs::write(at(2), &part).unwrap();
    insta::assert_snapshot!(text(1), @"is part 1 of 3, and part 3, `m-00003-of-00003.gguf`, is not beside it; download it");
    insta::assert_snapshot!(text(2), @"is part 2 of a split model; name the first one, `m-00001-of-00003.gguf`");
    fs::write(at(3), &part[..900]).unwrap();
    insta::assert_snapshot!(text(1), @"is split, and its part `DIR/m-00003-of-00003.gguf` is cut short: tensor `output.weight` ends at byte 1328, the file has 900; download it again");
    fs::write(at(3), &part).unwrap();
    let header = read(&at(1)).unwrap();
    assert_eq!((header.parts, header.tensors, header.parameters), (3, 6, 3 * 64 * 7));
}

#[test]
fn only_names_with_two_numbers_of_five_digits_are_parts() {
    let shard = shard_of("a-b-00002-of-00010.gguf").unwrap();
    assert_eq!((shard.prefix.as_str(), shard.part, shard.count), ("a-b", 2, 10));
    for name in
        ["a.gguf", "a-1-of-2.gguf", "a-00003-of-00002.gguf", "a-00001-of-00002", "-of-.gguf"]
    {
        assert_eq!(shard_of(name), None, "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        drop(parse_bytes(&bytes));
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(bytes);
        drop(parse_bytes(&file));
    }

    #[test]
    fn no_change_to_a_real_header_makes_the_reader_panic_or_find_more_than_the_file_has(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = Writer::model().file();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(header) = parse_bytes(&file) {
            prop_assert!(header.tensors <= 2);
        }
    }

    #[test]
    fn a_count_changed_to_anything_is_bounded(at in 0_usize..600, value in any::<u64>()) {
        let mut file = Writer::model().file();
        let at = at.min(file.len() - 8);
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        drop(parse_bytes(&file));
    }
}

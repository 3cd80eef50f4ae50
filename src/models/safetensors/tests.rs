use std::{fs, io::Cursor, path::PathBuf};

use proptest::prelude::*;

use super::*;

const TWO: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
    "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut file = u64::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn parse_bytes(bytes: &[u8]) -> Result<Header, HeaderFault> {
    parse(Cursor::new(bytes), u64::try_from(bytes.len()).unwrap())
}

fn fault(bytes: &[u8]) -> String {
    parse_bytes(bytes).unwrap_err().to_string()
}

fn one(entry: &str, data: usize) -> String {
    fault(&file(&format!(r#"{{"t":{entry}}}"#), data))
}

#[test]
fn a_whole_file_tells_its_tensors_and_where_they_lie() {
    let header = parse_bytes(&file(TWO, 32)).unwrap();
    let data = 8 + u64::try_from(TWO.len()).unwrap();
    let tensor = |name: &str, dtype: &str, shape: &[u64], range: Range<u64>| Tensor {
        name: name.into(),
        dtype: dtype.into(),
        shape: shape.to_vec(),
        range: data + range.start..data + range.end,
    };
    let tensors = vec![tensor("a", "F32", &[2, 3], 0..24), tensor("b", "BF16", &[4], 24..32)];
    assert_eq!(header, Header { tensors, format: Some("pt".into()) });
    assert_eq!((header.bytes(), header.parameters()), (Bytes(32), 10));
}

#[test]
fn a_cut_file_is_told_at_every_length() {
    let whole = file(TWO, 32);
    let header = 8 + TWO.len();
    assert!(matches!(parse_bytes(&[]), Err(HeaderFault::Empty)));
    for length in 1..header {
        let parsed = parse_bytes(&whole[..length]);
        assert!(matches!(parsed, Err(HeaderFault::CutHeader { .. })), "{length}: {parsed:?}");
    }
    for length in header..whole.len() {
        let parsed = parse_bytes(&whole[..length]);
        assert!(matches!(parsed, Err(HeaderFault::CutTensor { .. })), "{length}: {parsed:?}");
    }
}

#[test]
fn each_fault_is_one_sentence_after_the_files_name() {
    insta::assert_snapshot!(fault(b""), @"is empty; download it again");
    insta::assert_snapshot!(fault(b"version https://git-lfs.github.com/spec/v1\noid"), @"is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`");
    insta::assert_snapshot!(fault(b"<!DOCTYPE html>\n<html>"), @"is not a safetensors file, it begins with `<!DOCTYPE ht`; download it again");
    insta::assert_snapshot!(fault(&file(TWO, 32)[..60]), @"is cut short inside its header, at byte 60; download it again");
    insta::assert_snapshot!(fault(&file(TWO, 31)), @"is cut short: tensor `b` ends at byte 194, the file has 193; download it again");
    insta::assert_snapshot!(fault(&file(TWO, 33)), @"has a damaged header (its tensors end before the file does); download it again");
    insta::assert_snapshot!(fault(&file("{\"a\":", 0)), @"has a damaged header (EOF while parsing a value at line 1 column 5); download it again");
    insta::assert_snapshot!(one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4), @"has a damaged header (tensor `t` has another length than its shape says); download it again");
    insta::assert_snapshot!(one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4), @"has a damaged header (tensor `t` ends before it begins); download it again");
    insta::assert_snapshot!(one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8), @"has a damaged header (tensor `t` does not begin where the one before ends); download it again");
    insta::assert_snapshot!(one(r#"{"dtype":"F32","shape":[1]}"#, 8), @"has a damaged header (missing field `data_offsets` at line 1 column 32); download it again");
}

#[test]
fn what_a_header_claims_is_not_believed() {
    let most = u64::MAX;
    for entry in [
        format!(r#"{{"dtype":"F32","shape":[{most},{most}],"data_offsets":[0,4]}}"#),
        format!(r#"{{"dtype":"NEW","shape":[1],"data_offsets":[0,{most}]}}"#),
        format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{most},{most}]}}"#),
        format!(r#"{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}"#, "1,".repeat(99)),
        r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#.to_owned(),
        "[".repeat(100_000),
    ] {
        let text = one(&entry, 4);
        assert!(text.len() < 300, "{text}");
    }
    let twice = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    assert!(fault(&file(&format!(r#"{{"t":{twice},"t":{twice}}}"#), 4)).contains("twice"));
    let mut long = u64::MAX.to_le_bytes().to_vec();
    long.extend(b"{}");
    assert!(matches!(parse_bytes(&long), Err(HeaderFault::NotSafetensors { .. })));
}

#[test]
fn a_type_that_is_not_known_is_believed_within_its_file() {
    let json = r#"{"t":{"dtype":"NEW","shape":[7],"data_offsets":[0,5]}}"#;
    assert_eq!(parse_bytes(&file(json, 5)).unwrap().bytes(), Bytes(5));
}

/// A folder with an index over two files.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let tensor = r#"{"NAME":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    write("m-1.safetensors", &file(&tensor.replace("NAME", "a"), 4));
    write("m-2.safetensors", &file(&tensor.replace("NAME", "b"), 4));
    let index = r#"{"metadata":{"total_size":8.0},
        "weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    write("model.safetensors.index.json", index.as_bytes());
    folder
}

#[test]
fn a_folder_is_all_that_its_index_names() {
    let folder = folder();
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(folder.path().join("consolidated.safetensors"), file(TWO, 32)).unwrap();
    let model = read_model(folder.path()).unwrap();
    assert_eq!((model.bytes(), model.parameters(), model.parts.len()), (Bytes(8), 4, 2));
    assert_eq!(model.index, Some(index.clone()));
    assert_eq!(read_index(&index).unwrap().total, Some(Bytes(8)));
    // A file with all weights is what is loaded of a folder with both.
    let whole = folder.path().join("model.safetensors");
    fs::write(&whole, file(TWO, 32)).unwrap();
    assert_eq!(read_model(folder.path()).unwrap().bytes(), Bytes(32));
    fs::remove_file(whole).unwrap();
    // Without an index it is all there is.
    fs::remove_file(index).unwrap();
    assert_eq!(read_model(folder.path()).unwrap().bytes(), Bytes(40));
    fs::write(folder.path().join("model.safetensors"), file(TWO, 32)).unwrap();
    assert_eq!(read_model(folder.path()).unwrap().bytes(), Bytes(32));
}

#[test]
fn what_a_folder_lacks_is_said() {
    let folder = folder();
    let text = || read_model(folder.path()).unwrap_err().to_string();
    let at = |name: &str| folder.path().join(name);
    fs::rename(at("m-2.safetensors"), at("elsewhere")).unwrap();
    insta::assert_snapshot!(text(), @"names 2 files, and `m-2.safetensors` is not beside it; download it");
    fs::copy(at("m-1.safetensors"), at("m-2.safetensors")).unwrap();
    insta::assert_snapshot!(text(), @"has the part `m-2.safetensors`, which has a damaged header (it lacks tensor `b`); download it again");
    fs::write(at("m-2.safetensors"), b"").unwrap();
    insta::assert_snapshot!(text(), @"has the part `m-2.safetensors`, which is empty; download it again");
    let empty = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(read_model(empty.path()).unwrap_err(), @"has no safetensors file in it");
}

#[test]
fn an_index_names_nothing_outside_its_folder() {
    for name in ["../a.safetensors", "/etc/passwd", "", "a/../../b", "./a"] {
        let json = format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#);
        let parsed = parse_index(json.as_bytes());
        assert!(matches!(parsed, Err(HeaderFault::Damaged(_))), "{name}: {parsed:?}");
    }
    let inside = parse_index(br#"{"weight_map":{"t":"unet/a.safetensors"}}"#).unwrap();
    assert!(inside.parts.contains_key(&PathBuf::from("unet/a.safetensors")));
    assert!(parse_index(br#"{"weight_map":{}}"#).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        drop(parse_bytes(&bytes));
        let mut begun = u64::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
        begun.push(b'{');
        begun.extend(&bytes);
        drop(parse_bytes(&begun));
        drop(parse_index(&bytes));
    }

    #[test]
    fn after_any_change_to_a_header_what_is_found_lies_in_the_file(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..4),
    ) {
        let mut file = file(TWO, 32);
        for (at, byte) in changes.into_iter().chain(digits) {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(header) = parse_bytes(&file) {
            let size = u64::try_from(file.len()).unwrap();
            prop_assert!(header.tensors.iter().all(|tensor| tensor.range.end <= size));
            prop_assert!(header.bytes().0 <= size);
        }
    }

    #[test]
    fn whatever_is_written_is_read_again(
        lengths in prop::collection::vec(prop::collection::vec(0_u64..9, 0..4), 0..6),
    ) {
        let mut at = 0;
        let entries: Vec<String> = lengths.iter().enumerate().map(|(number, shape)| {
            let end = at + shape.iter().product::<u64>() * 2;
            let entry = format!(
                r#""t{number}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
            );
            at = end;
            entry
        }).collect();
        let json = format!("{{{}}}", entries.join(","));
        let header = parse_bytes(&file(&json, usize::try_from(at).unwrap())).unwrap();
        let shapes: Vec<_> = header.tensors.iter().map(|tensor| tensor.shape.clone()).collect();
        prop_assert_eq!(shapes, lengths);
        prop_assert_eq!(header.bytes(), Bytes(at));
    }
}

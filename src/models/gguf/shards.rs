//! Models in several files: `NAME-00001-of-00003.gguf`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::{Header, HeaderFault, parse};

/// The most parts that are looked for. Source: the name has five digits.
const MAX_PARTS: u64 = 99_999;

/// One part of a split model, by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shard {
    /// What stands before the numbers.
    pub prefix: String,
    /// Which one, from 1.
    pub part: u64,
    /// How many there are.
    pub count: u64,
}

impl Shard {
    pub(in crate::models) fn file_name(&self, part: u64) -> String {
        format!("{}-{part:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// Takes the name of a part apart; `None` for other names.
/// Source: `llama_split_path` in llama.cpp: `%s-%05d-of-%05d.gguf`.
pub fn shard_of(file_name: &str) -> Option<Shard> {
    let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    let number = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { text.parse::<u64>().ok() } else { None }
    };
    let (part, count) = (number(part)?, number(count)?);
    (1..=count).contains(&part).then(|| Shard { prefix: prefix.to_owned(), part, count })
}

/// Checks that the other parts of a split model lie whole beside the first, and adds what they hold.
pub(super) fn add_parts(path: &Path, header: &mut Header) -> Result<(), HeaderFault> {
    let name = path.file_name().and_then(|name| name.to_str());
    let shard = match name.and_then(shard_of) {
        Some(shard) => shard,
        None if header.parts == 1 => return Ok(()),
        None => {
            return Err(HeaderFault::Damaged(
                "it is a part of a split model, and its name does not say which",
            ));
        }
    };
    if shard.part != 1 {
        let first = PathBuf::from(shard.file_name(1));
        return Err(HeaderFault::NotFirstPart { part: shard.part, first });
    }
    if shard.count != header.parts || shard.count > MAX_PARTS {
        return Err(HeaderFault::Damaged(
            "its name and its header differ about the number of parts",
        ));
    }
    for part in 2..=shard.count {
        let file = path.with_file_name(shard.file_name(part));
        let other = match read_part(&file) {
            Ok(other) => other,
            Err(HeaderFault::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(HeaderFault::MissingPart {
                    missing: part,
                    count: shard.count,
                    path: shard.file_name(part).into(),
                });
            }
            Err(fault) => {
                return Err(HeaderFault::BadPart { path: file, fault: Box::new(fault) });
            }
        };
        header.tensors = header.tensors.saturating_add(other.tensors);
        header.parameters = header.parameters.saturating_add(other.parameters);
        header.tensor_bytes.0 = header.tensor_bytes.0.saturating_add(other.tensor_bytes.0);
        header.facts.add(other.facts);
    }
    Ok(())
}

fn read_part(path: &Path) -> Result<Header, HeaderFault> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    parse(file, size)
}

//! What the hub answers of a repository, read with suspicion: its paths become paths on this disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reference::is_commit;

/// More files than any repository of models has.
const MOST_FILES: usize = 100_000;

/// One file of a commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Its path in the repository: relative, with slashes, of plain parts alone.
    pub(super) path: String,
    /// Its size.
    pub(super) size: u64,
    /// What its content is called: the name of its blob, and what it is checked against.
    pub(super) hash: Hash,
    /// What the hub says besides, for the listing that other programs read.
    pub(super) listed: Listed,
}

/// The hash of a file's content.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Hash {
    /// SHA-256, of large files.
    Sha256(String),
    /// SHA-1 as git makes it, of small ones.
    Git(String),
}

impl Hash {
    /// Returns it as caches use it in names.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

/// A file as `trees/COMMIT.json` lists it. Source: `TreeCacheEntry` in `_tree_cache.py` of
/// `huggingface_hub` 2.4.0, format 1.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Listed {
    pub(super) size: u64,
    pub(super) blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lfs_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) xet_hash: Option<String>,
}

/// The file `trees/COMMIT.json`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Tree {
    pub(super) format_version: u32,
    pub(super) files: BTreeMap<String, Listed>,
}

/// The format of [`Tree`] that is known.
pub(super) const TREE_FORMAT: u32 = 1;

/// An item of `GET /api/models/REPO/tree/REVISION`.
#[derive(Debug, Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    lfs: Option<Lfs>,
    #[serde(default, rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    #[serde(default)]
    size: Option<u64>,
}

/// Reads one page of the list of files. Says what is wrong with it.
pub(super) fn read_page(body: &[u8]) -> Result<Vec<Entry>, String> {
    let items: Vec<Item> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if items.len() > MOST_FILES {
        return Err(format!("it lists {} files", items.len()));
    }
    items.into_iter().filter(|item| item.kind == "file").map(entry).collect()
}

fn entry(item: Item) -> Result<Entry, String> {
    let listed = Listed {
        size: item.size,
        blob_id: item.oid,
        lfs_size: item.lfs.as_ref().map(|lfs| lfs.size.unwrap_or(item.size)),
        lfs_sha256: item.lfs.map(|lfs| lfs.oid),
        xet_hash: item.xet_hash,
    };
    of_listed(item.path, listed)
}

/// Makes a file of a line of a listing. Says what is wrong with it.
pub(super) fn of_listed(path: String, listed: Listed) -> Result<Entry, String> {
    if !is_plain(&path) {
        return Err(format!("it has the path `{}`", path.escape_debug()));
    }
    let (size, hash) = match &listed.lfs_sha256 {
        Some(sha256) if is_hex(sha256, 64) => {
            (listed.lfs_size.unwrap_or(listed.size), Hash::Sha256(sha256.clone()))
        }
        None if is_hex(&listed.blob_id, 40) => (listed.size, Hash::Git(listed.blob_id.clone())),
        Some(_) | None => return Err(format!("it has no hash of `{path}`")),
    };
    Ok(Entry { path, size, hash, listed })
}

/// Reads the commit of `GET /api/models/REPO/revision/REVISION`.
pub(super) fn read_commit(body: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Revision {
        sha: String,
    }
    let revision: Revision = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if is_commit(&revision.sha) { Ok(revision.sha) } else { Err("it names no commit".to_owned()) }
}

/// Reads the address of the next page out of `Link: <URL>; rel="next"`.
pub(super) fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then_some(address)
    })
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Tells whether a path stays below the folder that it is joined to, whatever the system reads into it.
fn is_plain(path: &str) -> bool {
    (1..=1024).contains(&path.len())
        && !path.contains(['\\', ':'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_go_by_sha256_and_small_ones_by_their_git_hash() {
        let (sha256, git) = ("a".repeat(64), "b".repeat(40));
        let page = format!(
            r#"[{{"type":"directory","path":"x","oid":"{git}"}},
                {{"type":"file","path":"x/m.gguf","size":9,"oid":"{git}","lfs":{{"oid":"{sha256}","size":9,"pointerSize":1}},"xetHash":"c"}},
                {{"type":"file","path":"config.json","size":2,"oid":"{git}"}}]"#
        );
        let entries = read_page(page.as_bytes()).unwrap();
        assert_eq!(entries[0].hash, Hash::Sha256(sha256));
        assert_eq!(entries[1].hash, Hash::Git(git));
        assert_eq!((entries.len(), entries[0].size), (2, 9));
    }

    #[test]
    fn a_path_that_leaves_its_folder_is_refused() {
        for path in ["../x", "/etc/x", "a/../b", "a//b", "", ".", "a\\b", "a\nb", "c:x"] {
            let page = serde_json::json!([{ "type": "file", "path": path, "oid": "b".repeat(40) }]);
            assert!(read_page(page.to_string().as_bytes()).is_err(), "{path}");
        }
        let short = serde_json::json!([{ "type": "file", "path": "x", "oid": "../../x" }]);
        assert_eq!(read_page(short.to_string().as_bytes()), Err("it has no hash of `x`".into()));
    }

    #[test]
    fn a_commit_is_forty_digits() {
        assert!(read_commit(br#"{"sha":"../../etc"}"#).is_err());
        let sha = "0".repeat(40);
        assert_eq!(read_commit(format!(r#"{{"sha":"{sha}","siblings":[]}}"#).as_bytes()), Ok(sha));
    }

    #[test]
    fn the_next_page_is_where_the_link_says() {
        let link = r#"<https://h/a?x=1>; rel="prev", <https://h/b?cursor=2>; rel="next""#;
        assert_eq!(next_page(link), Some("https://h/b?cursor=2"));
        assert_eq!(next_page("nothing"), None);
    }
}

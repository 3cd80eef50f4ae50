use std::{collections::BTreeMap, os::unix::fs::symlink};

use super::*;

fn files(names: &[&str]) -> tempfile::TempDir {
    let hub = tempfile::tempdir().unwrap();
    let repo = hub.path().join("models--org--repo");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    fs::write(repo.join("refs/main"), "abc123\n").unwrap();
    for (number, name) in names.iter().enumerate() {
        let blob = repo.join(format!("blobs/{number}"));
        let file = repo.join("snapshots/abc123").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&blob, "x").unwrap();
        symlink(&blob, &file).unwrap();
    }
    hub
}

/// The chosen file and projector, inside the snapshot; or the fault with the hub as `HUB`.
fn found(hub: &Path, quant: Option<&str>) -> String {
    let snapshot = hub.join("models--org--repo/snapshots/abc123");
    let inside = |path: &Path| path.strip_prefix(&snapshot).unwrap().display().to_string();
    let source = ModelSource::Hub {
        repo: "org/repo".to_owned(),
        quant: quant.map(str::to_owned),
        revision: None,
    };
    match find_file(&source, hub) {
        Ok(Located { path, mmproj }) => {
            let mmproj = mmproj.map_or_else(String::new, |path| format!(" + {}", inside(&path)));
            inside(&path) + &mmproj
        }
        Err(fault) => fault.to_string().replace(&hub.display().to_string(), "HUB"),
    }
}

#[test]
fn the_cache_is_where_llama_cpp_looks_for_it() {
    let mut environment = BTreeMap::new();
    let mut expected = Vec::new();
    for (name, folder) in [
        ("HOME", "v/.cache/huggingface/hub"),
        ("XDG_CACHE_HOME", "v/huggingface/hub"),
        ("HF_HOME", "v/hub"),
        ("HUGGINGFACE_HUB_CACHE", "v"),
        ("HF_HUB_CACHE", "v"),
        ("LLAMA_CACHE", "v"),
    ] {
        environment.insert(name, "v");
        let found = hub_cache_dir(&|name| environment.get(name).map(Into::into));
        expected.push((found, folder));
    }
    for (found, folder) in expected {
        assert_eq!(found, Some(PathBuf::from(folder)));
    }
    assert_eq!(hub_cache_dir(&|name| (name == "HOME").then(OsString::new)), None);
}

#[test]
fn a_quantisation_is_a_word_of_the_name_in_any_case() {
    let hub = files(&["m-BF16.gguf", "m-F16.gguf", "m-Q4_K_M.gguf", "m.q8_0.gguf"]);
    let found = |quant| found(hub.path(), Some(quant));
    assert_eq!(found("F16"), "m-F16.gguf");
    assert_eq!(found("q4_k_m"), "m-Q4_K_M.gguf");
    assert_eq!(found("Q8_0"), "m.q8_0.gguf");
    insta::assert_snapshot!(found("Q4_K"), @"model `org/repo:Q4_K` is not in `HUB/models--org--repo/snapshots/abc123`, which has `m-BF16.gguf`, `m-F16.gguf`, `m-Q4_K_M.gguf`, `m.q8_0.gguf`; correct `model`, or fetch it with `slotd pull org/repo:Q4_K`");
}

#[test]
fn without_a_quantisation_the_usual_one_is_taken_then_the_first() {
    let hub = files(&["m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]);
    assert_eq!(found(hub.path(), None), "m-Q4_K_M.gguf");
    let hub = files(&["m-F16.gguf", "m-Q8_0.gguf"]);
    assert_eq!(found(hub.path(), None), "m-Q8_0.gguf");
    let hub = files(&["imatrix.gguf", "z.gguf", "README.md"]);
    assert_eq!(found(hub.path(), None), "z.gguf");
}

#[test]
fn the_first_part_and_the_projector_of_a_model_in_a_folder_are_found() {
    let parts = ["Q4_K_M/m-00002-of-00002.gguf", "Q4_K_M/m-00001-of-00002.gguf"];
    let hub = files(&[parts[0], parts[1], "mmproj-BF16.gguf", "mmproj-F16.gguf"]);
    assert_eq!(found(hub.path(), Some("Q4_K_M")), "Q4_K_M/m-00001-of-00002.gguf + mmproj-F16.gguf");
}

#[test]
fn what_is_not_downloaded_comes_with_the_command_that_does_it() {
    let hub = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(found(hub.path(), Some("Q8_0")), @"model `org/repo:Q8_0` is not in the Hugging Face cache `HUB`; fetch it with `slotd pull org/repo:Q8_0`");
    insta::assert_snapshot!(found(hub.path(), None), @"model `org/repo` is not in the Hugging Face cache `HUB`; fetch it with `slotd pull org/repo`");
    let hub = files(&["README.md"]);
    insta::assert_snapshot!(found(hub.path(), None), @"model `org/repo` is not in `HUB/models--org--repo/snapshots/abc123`, which has no GGUF file; correct `model`, or fetch it with `slotd pull org/repo`");
}

#[test]
fn a_pull_that_is_refused_was_advised_for_a_quantisation_that_the_hub_has_not() {
    let hub = files(&["m-Q4_K_M.gguf", "config.json"]);
    let list = |files: &[&str]| {
        let leaves = files.iter().map(|file| format!(r#""{file}":{{"size":1,"blob_id":"0"}}"#));
        let leaves = leaves.collect::<Vec<_>>().join(",");
        let trees = hub.path().join("models--org--repo/trees");
        fs::create_dir_all(&trees).unwrap();
        let text = format!(r#"{{"format_version":1,"files":{{{leaves}}}}}"#);
        fs::write(trees.join("abc123.json"), text).unwrap();
    };
    list(&["m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json"]);
    insta::assert_snapshot!(found(hub.path(), Some("Q5_K_S")), @"model `org/repo:Q5_K_S` is not in the revision that is here, which has `m-Q4_K_M.gguf`, `m-Q8_0.gguf`; correct `model`, or fetch a newer revision with `slotd pull org/repo:Q5_K_S`");
    let hopeless = |revision: &str| {
        let source = ModelSource::Hub {
            repo: "org/repo".to_owned(),
            quant: Some("Q5_K_S".to_owned()),
            revision: Some(revision.to_owned()),
        };
        (unlisted(&source, hub.path()).is_some(), is_pinned(&source))
    };
    assert_eq!(hopeless("main"), (true, false), "the hub may have a newer revision");
    insta::assert_snapshot!(found(hub.path(), Some("Q8_0")), @"model `org/repo:Q8_0` is not in `HUB/models--org--repo/snapshots/abc123`, which has `m-Q4_K_M.gguf`; correct `model`, or fetch it with `slotd pull org/repo:Q8_0`");
    fs::remove_file(hub.path().join("models--org--repo/snapshots/abc123/m-Q4_K_M.gguf")).unwrap();
    list(&["model.safetensors", "config.json"]);
    insta::assert_snapshot!(found(hub.path(), None), @"model `org/repo` is not in its repository, which has no GGUF file; correct `model`");
}

#[test]
fn a_file_whose_blob_is_gone_is_said_to_be_gone() {
    let hub = files(&["m-Q4_K_M.gguf"]);
    fs::remove_file(hub.path().join("models--org--repo/blobs/0")).unwrap();
    insta::assert_snapshot!(found(hub.path(), None), @"model `HUB/models--org--repo/snapshots/abc123/m-Q4_K_M.gguf` is a link to a file that is gone; download it again");
}

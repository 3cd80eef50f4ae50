mod clean;
mod found;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::spec::profile::ModelSource;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn string(text: &str) -> Vec<u8> {
    let length = u64::try_from(text.len()).unwrap();
    length.to_le_bytes().into_iter().chain(text.bytes()).collect()
}

/// A GGUF file of one tensor, as the specification says.
fn gguf(pairs: &[(&str, &str)], parts: u32) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(u64::try_from(pairs.len() + 1).unwrap().to_le_bytes());
    for (key, value) in pairs {
        file.extend(string(key).into_iter().chain(8_u32.to_le_bytes()).chain(string(value)));
    }
    file.extend(string("split.count").into_iter().chain(4_u32.to_le_bytes()));
    file.extend(parts.to_le_bytes());
    file.extend(string("output.weight"));
    file.extend(1_u32.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32) + 256, 7);
    file
}

fn llama() -> Vec<u8> {
    gguf(&[("general.architecture", "llama")], 1)
}

fn safetensors() -> Vec<u8> {
    let header = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let mut file = string(header);
    file.extend([1; 16]);
    file
}

/// A home with stores in it.
struct World(TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn write(&self, inside: &str, bytes: &[u8]) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Puts a file into the cache of the hub, by a link to its blob.
    fn cached(&self, repo: &str, name: &str, blob: &str, bytes: &[u8]) {
        let folder = format!("hub/models--{}", repo.replace('/', "--"));
        self.write(&format!("{folder}/blobs/{blob}"), bytes);
        self.write(&format!("{folder}/refs/main"), COMMIT.as_bytes());
        let link = self.path(&format!("{folder}/snapshots/{COMMIT}/{name}"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{blob}"), link).unwrap();
    }

    fn tree(&self, repo: &str, files: &Value) {
        let folder = format!("hub/models--{}", repo.replace('/', "--"));
        let tree = json!({ "format_version": 1, "files": files });
        self.write(&format!("{folder}/trees/{COMMIT}.json"), tree.to_string().as_bytes());
    }

    fn stores(&self) -> Stores {
        let stores = [
            (Source::Hub, "hub"),
            (Source::Folder, "models"),
            (Source::LlamaCpp, "llama.cpp"),
            (Source::LmStudio, "lm"),
            (Source::Ollama, "ollama"),
        ];
        Stores(stores.map(|(source, inside)| (source, self.path(inside))).to_vec())
    }

    fn scan(&self) -> Inventory {
        scan(&self.stores(), &mut Headers::default(), &[])
    }

    /// One line a model: its name, kind, state, and what is wrong.
    fn shown(&self) -> String {
        let found = self.scan();
        let lines = found.models.iter().map(|model| {
            let trouble = model.trouble().unwrap_or_default();
            let (kind, state) = (model.kind.as_str(), model.state.as_str());
            format!("{} {kind} {state} {trouble}", model.model).trim_end().to_owned()
        });
        let lines: Vec<_> = lines.chain(found.faults.clone()).collect();
        lines.join("\n").replace(&self.0.path().display().to_string(), "HOME")
    }
}

#[test]
fn every_store_is_read_in_its_own_layout() {
    let world = World::new();
    world.cached("org/tiny-GGUF", "tiny-Q4_K_M.gguf", &"a".repeat(64), &llama());
    world.cached("org/tiny", "model.safetensors", &"b".repeat(64), &safetensors());
    let config = br#"{"architectures":["LlamaForCausalLM"],"model_type":"llama"}"#;
    world.cached("org/tiny", "config.json", &"c".repeat(40), config);
    world.write("models/deep/e5.gguf", &gguf(&[("general.architecture", "bert")], 1));
    world.write("models/deep/mmproj-e5.gguf", &gguf(&[("general.architecture", "clip")], 1));
    world.write(
        "models/lora.gguf",
        &gguf(&[("general.architecture", "llama"), ("general.type", "adapter")], 1),
    );
    world.write("models/ggml-base.bin", b"lmgg\0\0\0\0");
    world.write("llama.cpp/org_tiny-GGUF_t.gguf", &llama());
    let manifest = json!({ "ggufFile": { "rfilename": "t.gguf", "size": llama().len() } });
    world.write("llama.cpp/manifest=org=tiny-GGUF=Q8_0.json", manifest.to_string().as_bytes());
    world.write("lm/publisher/model/file.gguf", &llama());
    let digest = "d".repeat(64);
    let layer = json!({ "mediaType": "application/vnd.ollama.image.model",
        "digest": format!("sha256:{digest}"), "size": llama().len() });
    let manifest = json!({ "layers": [layer] }).to_string();
    world.write("ollama/manifests/registry.ollama.ai/library/tiny/latest", manifest.as_bytes());
    world.write(&format!("ollama/blobs/sha256-{digest}"), &llama());
    insta::assert_snapshot!(world.shown(), @r"
    HOME/lm/publisher/model/file.gguf chat whole
    HOME/models/deep/e5.gguf embed whole
    HOME/models/deep/mmproj-e5.gguf projector whole
    HOME/models/ggml-base.bin whisper whole
    HOME/models/lora.gguf adapter whole
    org/tiny chat whole
    org/tiny-GGUF:Q4_K_M chat whole
    org/tiny-GGUF:Q8_0 chat whole
    tiny:latest chat whole
    ");
}

#[test]
fn what_is_missing_is_told_with_its_bytes_and_without_a_network() {
    let world = World::new();
    let index = json!({ "metadata": { "total_size": 48 }, "weight_map":
        { "a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors", "c": "model-00003-of-00003.safetensors" } });
    world.cached("org/sharded", "model.safetensors.index.json", "1", index.to_string().as_bytes());
    world.cached("org/sharded", "model-00001-of-00003.safetensors", "2", &safetensors());
    world.cached("org/sharded", "config.json", "3", b"{}");
    let leaf = |size: u64, blob: &str| json!({ "size": size, "blob_id": blob, "lfs_sha256": blob, "lfs_size": size });
    world.tree(
        "org/sharded",
        &json!({
            "model-00001-of-00003.safetensors": leaf(safetensors().len().try_into().unwrap(), "2"),
            "model-00002-of-00003.safetensors": leaf(500, "4"),
            "model-00003-of-00003.safetensors": leaf(700, "5"),
            "tokenizer.json": { "size": 90, "blob_id": "6" },
            "README.md": { "size": 5, "blob_id": "7" },
        }),
    );
    world.write("hub/models--org--sharded/blobs/5.1a2b3c4d.incomplete", &[0; 300]);
    insta::assert_snapshot!(world.shown(), @"org/sharded other incomplete `model-00002-of-00003.safetensors` is not there, and 2 more (990 B to fetch)");
    let found = world.scan();
    let [model] = found.models.as_slice() else { panic!("{found:?}") };
    assert_eq!(model.missing_bytes, Some(Bytes(500 + 400 + 90)));
    assert_eq!(found.unused_bytes, Bytes(300), "an unfinished download is in no model");
}

#[test]
fn each_damage_of_a_file_is_its_own_sentence() {
    let world = World::new();
    let split = |parts| gguf(&[("general.architecture", "llama")], parts);
    world.write("models/cut.gguf", &llama()[..400]);
    world.write("models/empty.gguf", b"");
    world.write("models/other.gguf", b"<html>rate limited</html>");
    world.write(
        "models/pointer.gguf",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4000\n",
    );
    world.write("models/split-00001-of-00003.gguf", &split(3));
    world.write("models/split-00003-of-00003.gguf", &split(3));
    world.write("models/wrong-00001-of-00002.gguf", &split(3));
    world.write("models/wrong-00002-of-00002.gguf", &split(2));
    world.write("models/many-00001-of-99999.gguf", &split(1));
    symlink("gone.gguf", world.path("models/link.gguf")).unwrap();
    insta::assert_snapshot!(world.shown(), @r"
    HOME/models/cut.gguf chat incomplete `cut.gguf` is cut short: tensor `output.weight` ends at byte 416, the file has 400; download it again (16 B to fetch)
    HOME/models/empty.gguf chat incomplete `empty.gguf` is empty
    HOME/models/link.gguf chat incomplete `link.gguf` is a link to a file that is gone
    HOME/models/many-00001-of-99999.gguf chat whole
    HOME/models/other.gguf chat damaged `other.gguf` is not a GGUF file, it begins with `<html>rate l`; name a .gguf file, or download it again
    HOME/models/pointer.gguf chat incomplete `pointer.gguf` is a Git LFS pointer, not the model itself; fetch it with `git lfs pull` (3.9 KiB to fetch)
    HOME/models/split-00001-of-00003.gguf chat incomplete `split-00002-of-00003.gguf` is not there
    HOME/models/wrong-00001-of-00002.gguf chat damaged `wrong-00001-of-00002.gguf` says that it is split into 3 files, its name 2
    ");
}

#[test]
fn a_classifier_ranks_only_where_it_knows_one_class() {
    let world = World::new();
    let config = |labels: &str| {
        format!(
            r#"{{"model_type":"bert","architectures":["BertForSequenceClassification"],"id2label":{labels}}}"#
        )
    };
    for (name, labels) in [("rank", r#"{"0":"LABEL_0"}"#), ("mood", r#"{"0":"sad","1":"glad"}"#)] {
        world.write(&format!("models/{name}/config.json"), config(labels).as_bytes());
        world.write(&format!("models/{name}/model.safetensors"), &safetensors());
    }
    insta::assert_snapshot!(world.shown(), @r"
    HOME/models/mood other whole
    HOME/models/rank rerank whole
    ");
}

#[test]
fn loops_hostile_names_and_closed_doors_are_one_line_each() {
    let world = World::new();
    world.write("models/a/model.gguf", &llama());
    symlink("..", world.path("models/a/up")).unwrap();
    symlink("self", world.path("models/a/self")).unwrap();
    symlink(world.path("models/a"), world.path("models/b")).unwrap();
    fs::create_dir_all(world.path("models/a/folder.gguf")).unwrap();
    mkfifo(&world.path("models/a/pipe.gguf"), Mode::S_IRWXU).unwrap();
    world.write("hub/models--broken/refs/main", &[0xff; 40]);
    world.write("hub/models--org--lost/refs/main", COMMIT.as_bytes());
    world.write("ollama/manifests/registry.ollama.ai/library/bad/latest", b"{");
    let shown = world.shown();
    insta::assert_snapshot!(shown, @r"
    HOME/models/a/model.gguf chat whole
    org/lost other incomplete `0123456789abcdef0123456789abcdef01234567` of `main` is not there, though the cache knows the branch
    `HOME/ollama/manifests/registry.ollama.ai/library/bad/latest` is no manifest of Ollama's
    ");
    let closed = world.path("models/closed");
    fs::create_dir_all(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&closed).is_err() {
        assert!(world.shown().contains("`HOME/models/closed` cannot be listed"));
    }
}

#[test]
fn headers_are_read_again_only_when_their_file_changed() {
    let world = World::new();
    let cache = world.path("cache");
    world.write("models/a.gguf", &llama());
    let look = || {
        let mut headers = Headers::load(&cache);
        let found = scan(&world.stores(), &mut headers, &[]);
        headers.save();
        found
            .models
            .into_iter()
            .map(|model| model.architecture.unwrap_or_default())
            .collect::<Vec<_>>()
    };
    assert_eq!(look(), ["llama"]);
    // The same length and time: the file is not opened.
    let path = world.path("models/a.gguf");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let other = gguf(&[("general.architecture", "gemma")], 1);
    fs::write(&path, &other).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(look(), ["llama"]);
    fs::write(&path, [other, vec![0]].concat()).unwrap();
    assert_eq!(look(), ["gemma"]);
    fs::write(cache.join("inventory.json"), "{").unwrap();
    assert_eq!(look(), ["gemma"], "a memory that cannot be read is as good as none");
    fs::remove_file(&path).unwrap();
    assert_eq!(look(), [""; 0]);
    let kept = fs::read_to_string(cache.join("inventory.json")).unwrap();
    assert!(!kept.contains("a.gguf"), "what is gone is forgotten: {kept}");
}

#[test]
fn shared_files_count_once_and_slots_are_found() {
    let world = World::new();
    world.write("models/a.gguf", &llama());
    fs::hard_link(world.path("models/a.gguf"), world.path("models/b.gguf")).unwrap();
    symlink(world.path("models/a.gguf"), world.path("link.gguf")).unwrap();
    let user = |slot: &str, path: &str, is_loaded| User {
        slot: slot.parse().unwrap(),
        path: world.path(path),
        is_loaded,
    };
    let users = [user("chat", "link.gguf", true), user("other", "c.gguf", false)];
    let found = scan(&world.stores(), &mut Headers::default(), &users);
    assert_eq!(found.size_bytes, Bytes(llama().len().try_into().unwrap()));
    let slots: Vec<_> =
        found.models.iter().flat_map(|model| &model.slots).map(SlotName::as_str).collect();
    assert_eq!((slots, found.models[1].is_loaded), (vec!["chat", "chat"], true), "by both names");
}

#[test]
fn hashes_are_those_that_files_are_called_by() {
    let world = World::new();
    // `printf hi | sha256sum`, `printf hi | git hash-object --stdin`.
    let sha256 = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";
    let git = "32f95c0d1244a78b2be1bab8de17906fabb2c4a8";
    world.cached("org/tiny", "model.safetensors", sha256, b"hi");
    world.cached("org/tiny", "config.json", git, b"hi");
    world.cached("org/tiny", "tokenizer.json", &"0".repeat(40), b"hi");
    let mut found = world.scan();
    found.models[0].set_gaps(Vec::new());
    let mut hashes = Hashes::default();
    hashes.check(&mut found.models[0]);
    assert_eq!((hashes.files, hashes.bytes), (3, 6));
    assert_eq!(found.models[0].state, Wholeness::Damaged);
    insta::assert_snapshot!(found.models[0].trouble().unwrap(), @"`tokenizer.json` has the content of `32f95c0d1244…`, and should be `000000000000…`; download it again");
}

#[test]
fn a_slot_is_told_what_its_model_lacks() {
    let world = World::new();
    let told = |source: &ModelSource| {
        let lacking = lacking(source, &world.path("hub"))?;
        let sum: Option<u64> = lacking.missing.iter().map(|gap| Some(gap.bytes?.0)).sum();
        assert!(lacking.missing.is_empty() || sum == lacking.missing_bytes.map(|bytes| bytes.0));
        Some(lacking.message.replace(&world.0.path().display().to_string(), "HOME"))
    };
    let hub = |repo: &str, quant: Option<&str>| ModelSource::Hub {
        repo: repo.to_owned(),
        quant: quant.map(str::to_owned),
        revision: None,
    };
    let file = |inside: &str| ModelSource::File {
        typed: inside.to_owned(),
        candidates: vec![world.path("nowhere"), world.path(inside)],
    };
    insta::assert_snapshot!(told(&hub("org/none", None)).unwrap(), @"model `org/none` has to be downloaded: it is not on this machine; fetch it with `slotd pull org/none`");

    world.cached("org/tiny-GGUF", "tiny-Q8_0.gguf", &"a".repeat(64), &llama());
    let leaf =
        |size: u64| json!({ "size": size, "blob_id": "7", "lfs_sha256": "7", "lfs_size": size });
    let whole = u64::try_from(llama().len()).unwrap();
    world.tree(
        "org/tiny-GGUF",
        &json!({ "tiny-Q8_0.gguf": leaf(whole),
        "tiny-BF16-00001-of-00002.gguf": leaf(5000), "tiny-BF16-00002-of-00002.gguf": leaf(600) }),
    );
    assert_eq!(told(&hub("org/tiny-GGUF", Some("Q8_0"))), None);
    assert_eq!(told(&hub("org/tiny-GGUF", None)), None);
    insta::assert_snapshot!(told(&hub("org/tiny-GGUF", Some("BF16"))).unwrap(), @"model `org/tiny-GGUF:BF16` has to be downloaded (5.4 KiB): `tiny-BF16-00001-of-00002.gguf` is not there, and 1 more; fetch it with `slotd pull org/tiny-GGUF:BF16`");
    insta::assert_snapshot!(told(&hub("org/tiny-GGUF", Some("Q2_K"))).unwrap(), @"model `org/tiny-GGUF:Q2_K` is not in the revision that is here, which has `tiny-BF16-00001-of-00002.gguf`, `tiny-Q8_0.gguf`; correct `model`, or fetch a newer revision with `slotd pull org/tiny-GGUF:Q2_K`");

    let split = gguf(&[("general.architecture", "llama")], 2);
    world.write("models/s-00001-of-00002.gguf", &split);
    insta::assert_snapshot!(told(&file("models/s-00001-of-00002.gguf")).unwrap(), @"model `models/s-00001-of-00002.gguf` has to be downloaded: `s-00002-of-00002.gguf` is not there; put it there");
    world.write("models/s-00002-of-00002.gguf", &split);
    assert_eq!(told(&file("models/s-00001-of-00002.gguf")), None);
    world.write("models/other.gguf", b"not a model");
    assert_eq!(told(&file("models/other.gguf")), None, "fetching mends nothing");
    assert_eq!(told(&file("models/absent.gguf")), None, "nobody knows where to fetch it");

    world.write("models/st/model-00001-of-00002.safetensors", &safetensors());
    world.write("models/st/config.json", b"{}");
    insta::assert_snapshot!(told(&file("models/st")).unwrap(), @"model `models/st` has to be downloaded: `model-00002-of-00002.safetensors` is not there; put it there");
    world.write("models/st/model-00002-of-00002.safetensors", &safetensors());
    assert_eq!(told(&file("models/st")), None);
}

const REPO: &str = "hub/models--org--tiny";

/// Names of blobs: of a model, of nothing, of a revision that no branch names.
fn blobs() -> [(&'static str, String); 3] {
    [("USED", "a".repeat(64)), ("LONE", "b".repeat(64)), ("OLD", "c".repeat(64))]
}

/// Leaves behind what programs leave behind. Returns the folder of a revision that no branch names, and
/// a lock that is held.
fn littered(world: &World) -> (PathBuf, fs::File) {
    let [(_, used), (_, lone), (_, old)] = blobs();
    world.cached("org/tiny", "model.gguf", &used, &llama());
    world.write(&format!("{REPO}/blobs/{lone}"), &[0; 50]);
    world.write(&format!("{REPO}/blobs/{used}.1a2b3c4d.incomplete"), &[0; 20]);
    // With one blob of its own and one that it shares.
    let detached = world.path(&format!("{REPO}/snapshots/{}", "f".repeat(40)));
    fs::create_dir_all(&detached).unwrap();
    world.write(&format!("{REPO}/blobs/{old}"), &[0; 70]);
    symlink(format!("../../blobs/{old}"), detached.join("old.gguf")).unwrap();
    symlink(format!("../../blobs/{used}"), detached.join("model.gguf")).unwrap();
    world.write(&format!("hub/.locks/models--org--tiny/{lone}.lock"), b"");
    let held = format!("hub/.locks/models--org--tiny/{used}.lock");
    world.write(&held, b"");
    let holder = fs::File::open(world.path(&held)).unwrap();
    fs2::FileExt::lock_exclusive(&holder).unwrap();
    world.write("models/m.gguf.part", &[0; 30]);
    world.write("models/n.gguf.part", &[0; 31]);
    world.write("ollama/blobs/sha256-0-partial", &[0; 32]);
    (detached, holder)
}

/// A plan of an age, and the same for people.
fn planned(
    world: &World,
    older_than: Duration,
    revisions: Revisions,
    served: &[PathBuf],
) -> (String, Plan) {
    let now = Duration::from_secs(1 << 40);
    let plan = clean_plan(&world.stores(), &Wish { older_than, revisions, now }, served);
    let shown = |it: &Removal| format!("{} {} {}", it.what.as_str(), it.bytes.0, it.path.display());
    let lines: Vec<_> = plan.removals.iter().map(shown).chain(plan.kept.clone()).collect();
    let me = fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let mut text = lines
        .join("\n")
        .replace(&world.0.path().display().to_string(), "HOME")
        .replace(&format!("pid {}", std::process::id()), "pid us")
        .replace(me.trim(), "us");
    for (name, blob) in blobs() {
        text = text.replace(&blob, name);
    }
    (text, plan)
}

#[test]
fn only_what_nobody_needs_may_go() {
    let world = World::new();
    let (detached, holder) = littered(&world);
    let open = fs::File::open(world.path("models/m.gguf.part")).unwrap();
    let plan_of =
        |older_than, revisions, served: &[PathBuf]| planned(&world, older_than, revisions, served);
    let week = Duration::from_hours(7 * 24);
    insta::assert_snapshot!(plan_of(week, Revisions::Stay, &[]).0, @r"
    partial 20 HOME/hub/models--org--tiny/blobs/USED.1a2b3c4d.incomplete
    blob 50 HOME/hub/models--org--tiny/blobs/LONE
    lock 0 HOME/hub/.locks/models--org--tiny/LONE.lock
    partial 31 HOME/models/n.gguf.part
    `HOME/hub/.locks/models--org--tiny/USED.lock` stays: somebody holds it
    `HOME/models/m.gguf.part` stays: `us` (pid us) has it open
    ");
    insta::assert_snapshot!(plan_of(week, Revisions::Go, &[]).0, @r"
    revision 0 HOME/hub/models--org--tiny/snapshots/ffffffffffffffffffffffffffffffffffffffff
    partial 20 HOME/hub/models--org--tiny/blobs/USED.1a2b3c4d.incomplete
    blob 50 HOME/hub/models--org--tiny/blobs/LONE
    blob 70 HOME/hub/models--org--tiny/blobs/OLD
    lock 0 HOME/hub/.locks/models--org--tiny/LONE.lock
    partial 31 HOME/models/n.gguf.part
    `HOME/hub/.locks/models--org--tiny/USED.lock` stays: somebody holds it
    `HOME/models/m.gguf.part` stays: `us` (pid us) has it open
    ");
    let (_, nothing) = plan_of(Duration::from_secs(1 << 40), Revisions::Go, &[]);
    assert!(nothing.removals.is_empty(), "all of it is younger: {nothing:?}");
    let (text, plan) = plan_of(week, Revisions::Go, &[detached.join("old.gguf")]);
    assert!(text.contains("a slot serves it") && !text.contains("revision "), "{text}");

    let locked: Vec<_> =
        plan.removals.iter().filter(|it| remove(it).is_err()).map(|it| it.what).collect();
    assert_eq!(locked, [Rubbish::Partial], "its lock is held by another");
    drop((holder, open));
    assert!(detached.exists() && world.path(&format!("{REPO}/blobs/{}", blobs()[2].1)).exists());
    assert!(!world.path(&format!("{REPO}/blobs/{}", blobs()[1].1)).exists());
    for removal in plan_of(week, Revisions::Go, &[]).1.removals {
        remove(&removal).unwrap();
    }
    let left: Vec<_> =
        fs::read_dir(world.path(&format!("{REPO}/blobs"))).unwrap().flatten().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(
        world.scan().models.iter().filter(|model| model.state == Wholeness::Whole).count(),
        1
    );
}

#[test]
fn stores_are_where_their_programs_keep_them() {
    let of = |variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let mut all = variables.iter();
            all.find(|(found, _)| *found == name).map(|(_, value)| value.into())
        };
        let stores = Stores::of(&variable, &[PathBuf::from("/srv/models")]).0;
        let shown =
            stores.iter().map(|(source, path)| format!("{} {}", source.as_str(), path.display()));
        shown.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(of(&[("HOME", "/home/me")]), @r"
    hub /home/me/.cache/huggingface/hub
    folder /srv/models
    llama-cpp /home/me/.cache/llama.cpp
    llama-cpp /home/me/Library/Caches/llama.cpp
    lm-studio /home/me/.lmstudio/models
    lm-studio /home/me/.cache/lm-studio/models
    ollama /home/me/.ollama/models
    ollama /usr/share/ollama/.ollama/models
    ");
    insta::assert_snapshot!(of(&[("HF_HOME", "/hf"), ("LLAMA_CACHE", "/llama"), ("OLLAMA_MODELS", "/o")]), @r"
    hub /llama
    hub /hf/hub
    folder /srv/models
    llama-cpp /llama
    ollama /o
    ollama /usr/share/ollama/.ollama/models
    ");
    assert_eq!(identity(Path::new("/nowhere")), None);
}

"""Fills a hub cache with the real `huggingface_hub` from the hub of tests, damages a copy of it in every way
below, and compares what `slotd models verify` says with what `hf cache verify` says.

`damage.py SLOTD HUB HF DOCUMENT`: the programs, and the document whose table is written. Fails with a list where
slotd saw not what it has to see. Standard library only.
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

MARKS = ("<!-- damage -->", "<!-- end damage -->")


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(parts=1, size=4096):
    """A GGUF file of one tensor."""
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    pairs.append(text("split.count") + struct.pack("<II", 4, parts))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs)
    head += text("output.weight") + struct.pack("<IQIQ", 1, size // 4, 0, 0)
    head += bytes(-len(head) % 32)
    return head + os.urandom(size)


def safetensors(name, size=4096):
    entry = {name: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    return text(json.dumps(entry)) + os.urandom(size)


def repositories(folder):
    st = folder / "org/weights/main"
    st.mkdir(parents=True)
    names = [f"model-{part:05}-of-00003.safetensors" for part in (1, 2, 3)]
    for place, name in enumerate(names):
        (st / name).write_bytes(safetensors(f"layer.{place}"))
    index = {"metadata": {"total_size": 3 * 4096}, "weight_map": {f"layer.{i}": n for i, n in enumerate(names)}}
    (st / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (st / "config.json").write_text(json.dumps(config))
    (st / "tokenizer.json").write_text('{"version": "1.0"}')
    gg = folder / "org/split-GGUF/main"
    gg.mkdir(parents=True)
    for part in (1, 2, 3):
        (gg / f"tiny-Q8_0-{part:05}-of-00003.gguf").write_bytes(gguf(parts=3))
    (gg / "README.md").write_text("# tiny\n")


class Cache:
    """One repository in a cache that is a copy."""

    def __init__(self, home, repo):
        self.folder = home / "hub" / ("models--" + repo.replace("/", "--"))
        self.commit = (self.folder / "refs/main").read_text()
        self.snapshot = self.folder / "snapshots" / self.commit

    def link(self, name):
        return self.snapshot / name

    def blob(self, name):
        return self.link(name).resolve()

    def change(self, name, how):
        blob = self.blob(name)
        blob.write_bytes(how(bytearray(blob.read_bytes())))


ST2 = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
GG1, GG2 = "tiny-Q8_0-00001-of-00003.gguf", "tiny-Q8_0-00002-of-00003.gguf"


def flip(place):
    def how(data):
        data[place] ^= 0x55
        return data

    return how


def to_partial(cache):
    blob = cache.blob(ST2)
    content = blob.read_bytes()
    blob.unlink()
    cache.link(ST2).unlink()
    blob.with_name(blob.name + ".1a2b3c4d.incomplete").write_bytes(content[:1000])


def swap(cache):
    one, other = cache.blob(GG1), cache.blob(GG2)
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)


def lose_tree(cache):
    shutil.rmtree(cache.folder / "trees")
    cache.link(ST2).unlink()


def to_folder(cache):
    cache.link(ST2).unlink()
    cache.link(ST2).mkdir()


def to_loop(cache):
    cache.link(ST2).unlink()
    cache.link(ST2).symlink_to(ST2)


def emptied(cache):
    shutil.rmtree(cache.snapshot)
    cache.snapshot.mkdir()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4180\n"
# What is done, to which repository, what slotd has to say, and whether that takes `--hash`.
DAMAGES = [
    ("none", "weights", lambda c: None, "whole", False),
    ("none, GGUF in three parts", "split-GGUF", lambda c: None, "whole", False),
    ("a shard's link is gone", "weights", lambda c: c.link(ST2).unlink(), "incomplete", False),
    ("a shard's blob is gone, its link is left", "weights", lambda c: c.blob(ST2).unlink(), "incomplete", False),
    ("a shard is empty", "weights", lambda c: c.change(ST2, lambda d: b""), "incomplete", False),
    ("a shard lacks its last byte", "weights", lambda c: c.change(ST2, lambda d: d[:-1]), "incomplete", False),
    ("a shard ends inside its header", "weights", lambda c: c.change(ST2, lambda d: d[:20]), "incomplete", False),
    ("a shard has one byte too many", "weights", lambda c: c.change(ST2, lambda d: d + b"x"), "damaged", False),
    ("one bit of a shard's header is another", "weights", lambda c: c.change(ST2, flip(9)), "damaged", False),
    ("one byte of a shard's tensor is another", "weights", lambda c: c.change(ST2, flip(-7)), "damaged", True),
    ("a shard is an error page", "weights", lambda c: c.change(ST2, lambda d: b"<html>429</html>".ljust(len(d))), "damaged", False),
    ("a shard is a Git LFS pointer", "weights", lambda c: c.change(ST2, lambda d: POINTER), "incomplete", False),
    ("the download of a shard was cut off", "weights", to_partial, "incomplete", False),
    ("a shard is a folder", "weights", to_folder, "incomplete", False),
    ("a shard is a link to itself", "weights", to_loop, "unreadable", False),
    ("the index is gone", "weights", lambda c: c.link(INDEX).unlink(), "incomplete", False),
    ("the index is cut off", "weights", lambda c: c.change(INDEX, lambda d: d[:40]), "incomplete", False),
    ("the index leads out of its folder", "weights", lambda c: c.change(INDEX, lambda d: bytes(d).replace(b"model-00002", b"../../model")), "damaged", False),
    ("`config.json` is gone", "weights", lambda c: c.link("config.json").unlink(), "incomplete", False),
    ("one byte of `config.json` is another", "weights", lambda c: c.change("config.json", lambda d: bytes(d).replace(b"Llama", b"Lhama")), "damaged", True),
    ("the revision's folder is empty", "weights", emptied, "incomplete", False),
    ("the revision is gone, its branch is left", "weights", lambda c: shutil.rmtree(c.snapshot), "incomplete", False),
    ("a shard and the hub's list are gone", "weights", lose_tree, "incomplete", False),
    ("a part of a GGUF model is gone", "split-GGUF", lambda c: c.link(GG2).unlink(), "incomplete", False),
    ("a part of a GGUF model is cut off", "split-GGUF", lambda c: c.change(GG2, lambda d: d[:1000]), "incomplete", False),
    ("a GGUF header claims 2⁶³ tensors", "split-GGUF", lambda c: c.change(GG1, lambda d: d[:8] + struct.pack("<Q", 1 << 63) + d[16:]), "damaged", False),
    ("two parts of a GGUF model are exchanged", "split-GGUF", swap, "damaged", True),
]


def environment(home, url):
    keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return {**keep, **quiet, "HOME": str(home.parent), "HF_HOME": str(home), "HF_ENDPOINT": url, "NO_COLOR": "1"}


def ask_slotd(slotd, repo, env, *flags):
    done = subprocess.run([slotd, "models", "verify", repo, "--json", *flags], env=env, capture_output=True, text=True)
    if done.returncode > 1:
        return {"state": "absent", "words": done.stderr.strip()}
    states = ["whole", "incomplete", "damaged", "unreadable"]
    models = json.loads(done.stdout)
    worst = max(models, key=lambda model: states.index(model["state"]))
    words = "; ".join(f"`{gap['file']}` {gap['message']}" for gap in worst["gaps"][:2])
    return {"state": worst["state"], "words": words, "bytes": worst["missing_bytes"]}


def ask_hf(hf, repo, env):
    command = [hf, "cache", "verify", repo, "--fail-on-missing-files"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return "all match"
    said = done.stdout + done.stderr
    for part, words in (("Missing files", "missing files"), ("Checksum verification failed", "checksum"), ("Error", "error")):
        if part.lower() in said.lower():
            return words
    return f"ended with {done.returncode}"


def main(slotd, hub, hf, document):
    wrong, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        repositories(folder / "repos")
        server = subprocess.Popen([hub, folder / "repos"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        url = server.stdout.readline().split()[0]
        whole = folder / "whole/hf"
        try:
            for repo in ("weights", "split-GGUF"):
                command = [hf, "download", f"org/{repo}"]
                subprocess.run(command, env=environment(whole, url), check=True, capture_output=True)
            for place, (what, name, damage, wanted, needs_hash) in enumerate(DAMAGES):
                home = folder / f"home{place}/hf"
                shutil.copytree(whole, home, symlinks=True)
                damage(Cache(home, f"org/{name}"))
                env = environment(home, url)
                quick = ask_slotd(slotd, f"org/{name}", env)
                full = ask_slotd(slotd, f"org/{name}", env, "--hash")
                theirs = ask_hf(hf, f"org/{name}", env)
                expected = "whole" if needs_hash else wanted
                if (quick["state"], full["state"]) != (expected, wanted):
                    wrong.append(f"{what}: {quick} and {full}, not {expected} and {wanted}")
                shown = full if needs_hash else quick
                state = f"{shown['state']}, with `--hash`" if needs_hash else shown["state"]
                lacks = shown.get("bytes")
                lacks = "–" if wanted != "incomplete" else "not known" if lacks is None else str(lacks)
                rows.append((what, state, shown["words"] or "–", lacks, theirs))
        finally:
            server.stdin.close()
            server.wait()
    table = ["| damage | `slotd models verify` | in words | bytes to fetch | `hf cache verify` |", "| --- | --- | --- | --- | --- |"]
    table += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    write(pathlib.Path(document), "\n".join(table))
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(rows) - len(wrong)} of {len(rows)} as they have to be")
    return 1 if wrong else 0


def write(document, table):
    before, rest = document.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    document.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What scripts/model and scripts/engine share: the cache, locks, hashes, pip. Standard library only."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


class Failure(Exception):
    """One sentence for a person, who can do something about it."""


def say(text):
    """Prints progress; stdout is for the path alone."""
    print(text, file=sys.stderr, flush=True)


def run(main):
    """Runs `main`, prints the path it returns, and ends with 1 and one sentence when it fails."""
    try:
        print(main())
    except Failure as failure:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {error}")


def cache_dir():
    """Returns where models and engines are kept: `SLOTD_CACHE`, else slotd's part of XDG's cache."""
    chosen = os.environ.get("SLOTD_CACHE")
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    desktop = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "")
    # The XDG specification: a relative path is to be ignored.
    base = desktop if desktop.is_absolute() else pathlib.Path.home() / ".cache"
    return base / "slotd"


@contextlib.contextmanager
def locked(path):
    """Holds a lock for as long as the block runs; a second process waits, and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(parent):
    """Makes a directory in `parent` that is gone after the block. The caller holds the lock: what
    stands there already was left by a process that was killed."""
    prefix = f".{pathlib.Path(sys.argv[0]).name}-"
    for left in parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    path = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield pathlib.Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sha256_of(path):
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def need_space(directory, needed):
    """Fails when fewer than `needed` bytes are free where `directory` is."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Failure(
            f"{directory} has {free >> 20} MiB free and {needed >> 20} MiB are needed; "
            "make room, or set SLOTD_CACHE to a directory on another disk"
        )


def pip(arguments, scratch_dir):
    """Runs pip with its temporary files in `scratch_dir`; its last word on failure becomes ours."""
    command = [sys.executable, "-m", "pip", *arguments]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    patience = ["--retries", "1", "--timeout", "20"]
    environment = {**os.environ, "TMPDIR": str(scratch_dir)}
    done = subprocess.run(
        [*command, *quiet, *patience],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failure(lines[-1] if lines else f"pip ended with {done.returncode}")


def pip_download(requirement, sha256, directory, *options):
    """Downloads one file by name, version and hash from the Python package index; returns its path."""
    wanted = directory / "requirements.txt"
    # With a hash in a requirements file pip looks at nothing inside a file that has another one.
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="ascii")
    target = directory / "download"
    pip(["download", "--no-deps", "--dest", str(target), *options, "-r", str(wanted)], directory)
    files = list(target.iterdir())
    if len(files) != 1:
        raise Failure(f"pip left {len(files)} files for {requirement}, one was expected")
    return files[0]


def sync_directory(directory):
    """Makes a rename in `directory` last through a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

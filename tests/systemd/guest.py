#!/usr/bin/env python3
"""What the shipped units must hold under a real systemd; runs as root inside the machine of
`scripts/test-systemd`, which puts it there. Prints `CHECK ok|FAILED|skipped NAME SECONDS DETAIL` for each check.

With names as arguments only the checks whose names contain one of them count; the others run all the
same where a later one needs what they leave.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import traceback

sys.dont_write_bytecode = True
from box import (  # noqa: E402
    Clients,
    Failed,
    Skipped,
    Unit,
    ask_slot,
    control,
    drop_in,
    engines_in,
    ensure,
    is_alive,
    journal,
    profile,
    run,
    slot,
    wait_until,
)

UNIT = Unit("slotd.service")
SOCKET = Unit("slotd.socket")
# A processor is emulated that knows no vector of more than two numbers.
REAL_S = 600


def main(wanted):
    passed = failed = skipped = 0
    for name, check in CHECKS:
        began = time.monotonic()
        # So many starts in ten minutes are a fault anywhere else.
        subprocess.run(["systemctl", "reset-failed", "slotd"], capture_output=True, check=False)
        counts = not wanted or any(word in name for word in wanted)
        try:
            detail, outcome = check() or "", "ok"
        except Skipped as reason:
            detail, outcome = str(reason), "skipped"
        except Failed as failure:
            detail, outcome = str(failure), "FAILED"
        except Exception:  # A fault of the check itself is told like any other.
            detail, outcome = traceback.format_exc(), "FAILED"
        took = time.monotonic() - began
        lines = detail.splitlines() or [""]
        say(f"CHECK {outcome} {name} {took:.1f} {lines[0]}")
        for line in lines[1:]:
            say(f"NOTE {line}")
        if outcome == "FAILED":
            for line in journal().splitlines()[-40:]:
                say(f"NOTE | {line}")
        passed += counts and outcome == "ok"
        failed += counts and outcome == "FAILED"
        skipped += outcome == "skipped"
    say(f"DONE {passed} passed, {failed} failed, {skipped} skipped")


def say(line):
    print(line, flush=True)


# --- The units as they are shipped -------------------------------------------------------------


def a_start_is_over_only_when_the_daemon_is_ready():
    run("systemd-sysusers")
    run("systemctl", "daemon-reload")
    for name, script, keys in (
        ("kept", "", 'on_exit = "keep"\nautostart = true'),
        ("stopped", "", "autostart = true"),
        ("rude", "ignore=TERM fork setsid", 'autostart = true\nstop_timeout = "1s"'),
        ("hungry", "alloc=64MiB alloc_at=request", "autostart = true"),
    ):
        profile(name, script, keys)
    run("systemctl", "start", "--no-block", "slotd")
    pid = wait_until("a main process", UNIT.main_pid)
    held = is_alive(pid) and send(pid, signal.SIGSTOP)
    ensure(held, "the main process was gone")
    # Longer than a start takes: who took a process that runs for one that is ready would say so.
    time.sleep(1.5)
    state = UNIT.show("ActiveState")
    send(pid, signal.SIGCONT)
    ensure(state == "activating", f"a daemon that was held before READY=1 was `{state}`")
    wait_until("active", UNIT.is_active)
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    text = wait_until("a status text", lambda: UNIT.show("StatusText"))
    wait_until("a full status text", lambda: UNIT.show("StatusText") == "4/4 ready")
    return f"activating, then active; first status `{text}`, then `4/4 ready`"


ALL = ("kept", "stopped", "rude", "hungry")


def send(pid, number):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def nothing_runs_with_privileges():
    told = []
    for name, pid in (("slotd", UNIT.main_pid()), ("engine", slot("kept")["pid"])):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        user = run("id", "-un", facts["Uid"].split()[0]).strip()
        ensure(user == "slotd", f"{name} runs as {user}")
        ensure(int(facts["CapEff"], 16) == 0, f"{name} has capabilities {facts['CapEff']}")
        ensure(facts["NoNewPrivs"] == "1", f"{name} may gain privileges")
        ensure(facts["Seccomp"] == "2", f"{name} has no system call filter")
        told.append(name)
    score = pathlib.Path(f"/proc/{slot('kept')['pid']}/oom_score_adj").read_text().strip()
    ensure(score == "500", f"the engine's oom_score_adj is {score}")
    status, _ = ask_slot("kept")
    ensure(status == 200, f"the engine answered {status}")
    return f"{' and '.join(told)} run as slotd without capabilities, and answer"


def each_engine_has_a_cgroup_with_memory_counters():
    own = cgroup_of(UNIT.main_pid())
    ensure(own.name.startswith("supervisor"), f"the daemon is in {own}, not in a leaf of its own")
    for name in ALL:
        cell = cgroup_of(slot(name)["pid"])
        ensure(cell.parent == own.parent, f"{name} is in {cell}")
        ensure(cell.name.startswith("slotd-"), f"{name} is in {cell}")
        for file in ("memory.events", "memory.max", "pids.max", "cgroup.kill"):
            ensure((cell / file).exists(), f"{cell} has no {file}")
    return f"{len(ALL)} beside {own.name}, with memory and pids"


def cgroup_of(pid):
    text = pathlib.Path(f"/proc/{pid}/cgroup").read_text()
    return pathlib.Path("/sys/fs/cgroup" + text.strip().removeprefix("0::"))


def an_engine_that_the_kernel_kills_for_memory_leaves_the_daemon_up():
    ensure(UNIT.show("OOMPolicy") == "continue", f"OOMPolicy is {UNIT.show('OOMPolicy')}")
    return oom("hungry", ("certain",))


def oom(name, confidences):
    main, restarts = UNIT.main_pid(), UNIT.show("NRestarts")
    before = slot(name)
    cell = cgroup_of(before["pid"])
    (cell / "memory.max").write_text("32M")
    status, _ = ask_slot(name)
    # The next engine, without that limit, is given what this one could not answer.
    ensure(status == 200, f"the request was answered with {status}")
    shown = wait_until("a death", lambda: died(name, before["generation"]))
    death = shown["deaths"][-1]
    evidence = death["evidence"]
    ensure(death["verdict"] == "oom-host", f"{death['verdict']}: {death['reason']}\n{evidence}")
    ensure(death["confidence"] in confidences, f"only {death['confidence']}: {death['reason']}")
    ensure((evidence["oom_kills"] or 0) > 0, f"its cgroup counted {evidence['oom_kills']}")
    limit = evidence["memory"]["limit_bytes"]
    ensure(limit == 32 << 20, f"the limit in the evidence is {limit}")
    ensure(not cell.exists(), f"{cell} is still there")
    ensure(UNIT.main_pid() == main, "the daemon was restarted")
    ensure((UNIT.show("NRestarts"), UNIT.show("Result")) == (restarts, "success"), "the unit failed")
    wait_until("the next one ready", lambda: slot(name)["state"] == "ready")
    return f"{death['verdict']}, {death['confidence']}, {evidence['oom_kills']} OOM kill counted"


def died(name, generation):
    shown = slot(name)
    deaths = [death for death in shown["deaths"] if death["generation"] == generation]
    return shown if deaths and deaths[-1]["evidence"] else None


def the_journal_has_each_time_and_level_once():
    entries = journal("json")
    ours = [entry for entry in entries if entry.get("_COMM") == "slotd"]
    ensure(ours, "the daemon wrote nothing to the journal")
    for entry in ours:
        text = entry["MESSAGE"]
        ensure(isinstance(text, str), f"the journal took this for no text: {text!r}")
        ensure(not re.match(r"\s*\d{4}-\d\d-\d\dT", text), f"a second time: {text}")
        ensure(not re.match(r"\s*(TRACE|DEBUG|INFO|WARN|ERROR)\b", text), f"a second level: {text}")
        ensure("\x1b" not in text, f"colours: {text!r}")
    levels = {entry["PRIORITY"] for entry in ours if "engine died" in entry["MESSAGE"]}
    ensure(levels and levels <= {"4", "3"}, f"deaths of engines have the priorities {levels}")
    plain = {entry["PRIORITY"] for entry in ours if "daemon started" in entry["MESSAGE"]}
    ensure(plain == {"6"}, f"the start has the priority {plain}")
    return f"{len(ours)} lines; `journalctl -p warning` finds the deaths"


def a_reload_reads_the_profiles_and_nothing_restarts():
    main, pid = UNIT.main_pid(), slot("kept")["pid"]
    profile("hungry", "alloc=64MiB alloc_at=request", 'autostart = true\nstop_timeout = "7s"')
    run("systemctl", "reload", "slotd")
    ensure(UNIT.is_active(), f"it is {UNIT.show('ActiveState')}")
    profile("late", "", "")
    run("systemctl", "reload", "slotd")
    wait_until("the new slot", lambda: any(one["slot"] == "late" for one in control("/v1/slots")))
    wait_until("active", UNIT.is_active)
    ensure((UNIT.main_pid(), slot("kept")["pid"]) == (main, pid), "something was restarted")
    return f"main process {main} and its engines stay"


def an_upgrade_keeps_the_process_and_refuses_nobody():
    main, pid = UNIT.main_pid(), slot("kept")["pid"]
    with Clients("kept") as clients:
        said = run("slotd", "upgrade").strip()
        wait_until("active", UNIT.is_active)
        wait_until("the next image", lambda: control("/v1/daemon")["images"] == 1)
        wait_until("an answer after it", clients.answers_more)
    ensure(UNIT.main_pid() == main, "the main process is another one")
    ensure(slot("kept")["pid"] == pid, "the kept engine was restarted")
    ensure(UNIT.show("NRestarts") == "0", "the unit was restarted")
    wait_until("a full status text", lambda: UNIT.show("StatusText").startswith("4/5 ready"))
    return f"{said}; {clients.told()}"


def a_restart_refuses_nobody():
    main = UNIT.main_pid()
    with Clients("stopped") as clients:
        run("systemctl", "restart", "slotd")
        ensure(UNIT.is_active(), "it is not active")
        wait_until("an answer after it", clients.answers_more)
    ensure(UNIT.main_pid() != main, "the main process is the same")
    return clients.told()


def a_killed_daemon_comes_back_and_nothing_is_left_of_its_engines():
    kept = slot("kept")["pid"]
    profile("kept", "", "autostart = true")  # Until `a_restart_keeps_engines…`.
    wait_until("one that is not kept", lambda: slot("kept")["pid"] not in (None, kept))
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    before = {name: slot(name)["pid"] for name in ALL}
    everything = engines_in()
    main = UNIT.main_pid()
    with Clients("stopped") as clients:
        send(main, signal.SIGKILL)
        wait_until("another main process", lambda: UNIT.main_pid() not in (0, main))
        wait_until("active", UNIT.is_active)
        wait_until("an answer after it", clients.answers_more)
    wait_until("the end of all", lambda: not any(is_alive(pid) for pid in everything))
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    after = {name: slot(name)["pid"] for name in ALL}
    ensure(not set(before.values()) & set(after.values()), "an engine is still there")
    return f"{len(everything)} processes of engines ended; {clients.told()}"


def a_stop_leaves_no_process_where_none_is_kept():
    everything = [*engines_in(), UNIT.main_pid()]
    ensure(len(everything) > len(ALL) + 1, f"only {len(everything)} processes")
    run("systemctl", "stop", "slotd")
    ensure(UNIT.show("ActiveState") == "inactive", f"it is {UNIT.show('ActiveState')}")
    ensure(UNIT.show("Result") == "success", f"its result is {UNIT.show('Result')}")
    left = [pid for pid in everything if is_alive(pid)]
    ensure(not left, f"left: {[pathlib.Path(f'/proc/{pid}/cmdline').read_text() for pid in left]}")
    ensure(not engines_in(), "engines are left")
    ensure(not UNIT.cgroup().exists(), f"{UNIT.cgroup()} is still there")
    return f"{len(everything)} processes ended, the cgroup is gone"


def a_bad_setting_is_not_tried_again():
    settings = pathlib.Path("/etc/slotd/slotd.toml")
    settings.write_text('listen = "0.0.0.0:7568"\n')
    done = subprocess.run(["systemctl", "start", "slotd"], capture_output=True, check=False)
    ensure(done.returncode != 0, "it started")
    time.sleep(1)  # Twice RestartSec.
    ensure(UNIT.show("ActiveState") == "failed", f"it is {UNIT.show('ActiveState')}")
    ensure(UNIT.show("NRestarts") == "0", f"it was tried {UNIT.show('NRestarts')} times more")
    code = UNIT.show("ExecMainStatus")
    ensure(code == "78", f"it ended with {code}")
    settings.unlink()
    return "exit code 78, failed at once"


# --- Engines that are kept ---------------------------------------------------------------------


def a_restart_keeps_engines_and_refuses_nobody():
    profile("kept", "", 'on_exit = "keep"\nautostart = true')
    run("systemctl", "start", "slotd")
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    before = {name: slot(name) for name in ALL}
    main = UNIT.main_pid()
    with Clients("kept") as clients:
        run("systemctl", "restart", "slotd")
        wait_until("an answer after it", clients.answers_more)
    ensure(UNIT.main_pid() != main, "the main process is the same")
    same_engine(before["kept"])
    for name in ALL[1:]:
        ensure(not is_alive(before[name]["pid"]), f"the engine of {name} is still there")
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    return f"engine {before['kept']['pid']} is still the same; {clients.told()}"


def same_engine(before):
    shown = slot(before["slot"])
    ensure(is_alive(before["pid"]), f"the kept engine {before['pid']} is gone")
    now = (shown["state"], shown["pid"], shown["generation"])
    ensure(now == ("ready", before["pid"], before["generation"]), f"the kept slot is {now}")
    cell = cgroup_of(before["pid"])
    ensure((cell / "memory.events").exists(), f"{cell} has lost its counters")


def what_a_kept_engine_has_in_tmp_and_in_shared_memory_stays():
    before = slot("kept")
    # As the engine sees them.
    seen = pathlib.Path(f"/proc/{before['pid']}/root")
    user = pathlib.Path(f"/proc/{before['pid']}").stat().st_uid
    folders = [seen / "tmp", seen / "var/tmp", seen / "dev/shm"]
    for folder in folders:
        (folder / "probe").write_text("of an engine")
        os.chown(folder / "probe", user, -1)
    for host in ("/tmp/probe", "/var/tmp/probe"):
        ensure(not pathlib.Path(host).exists(), f"{host} is seen by all")
    run("systemctl", "restart", "slotd")
    same_engine(before)
    for folder in folders:
        ensure((folder / "probe").exists(), f"{folder}/probe is gone")
        (folder / "another").write_text("")
        for name in ("probe", "another"):
            (folder / name).unlink()
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    return "files stay, new ones can be made, nobody else sees /tmp"


def a_killed_daemon_adopts_what_is_kept_and_ends_the_rest():
    before = {name: slot(name) for name in ALL}
    everything = engines_in()
    main = UNIT.main_pid()
    (cgroup_of(before["kept"]["pid"]) / "memory.max").write_text("900M")
    with Clients("kept") as clients:
        send(main, signal.SIGKILL)
        wait_until("another main process", lambda: UNIT.main_pid() not in (0, main))
        wait_until("active", UNIT.is_active)
        wait_until("an answer after it", clients.answers_more)
    same_engine(before["kept"])
    limit = (cgroup_of(before["kept"]["pid"]) / "memory.max").read_text().strip()
    # Where slotd had to make the leaf the controllers were taken back for a moment.
    has_leaf = cgroup_of(UNIT.main_pid()).name == "supervisor"
    ensure(not has_leaf or limit == str(900 << 20), f"its limit became {limit}")
    rest = [pid for pid in everything if pid != before["kept"]["pid"]]
    wait_until("the end of the rest", lambda: not any(is_alive(pid) for pid in rest))
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    return f"engine {before['kept']['pid']} adopted, {len(rest)} others ended; {clients.told()}"


def a_daemon_that_stands_still_is_killed_and_restarted():
    drop_in("watchdog.conf", "[Service]\nWatchdogSec=10\n")
    run("systemctl", "restart", "slotd")
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    time.sleep(11)  # A daemon that pats it stays.
    before = {name: slot(name) for name in ALL}
    restarts = int(UNIT.show("NRestarts"))
    ensure(restarts == 0, f"a healthy daemon was restarted {restarts} times")
    main = UNIT.main_pid()
    began = time.monotonic()
    send(main, signal.SIGSTOP)
    wait_until("another main process", lambda: UNIT.main_pid() not in (0, main))
    wait_until("active", UNIT.is_active)
    took = time.monotonic() - began
    said = "Watchdog timeout" in journal()
    ensure(said, "systemd says nothing of its watchdog")
    same_engine(before["kept"])
    wait_until("the end of the rest", lambda: not any(is_alive(before[name]["pid"]) for name in ALL[1:]))
    wait_until("all ready", lambda: all(slot(name)["state"] == "ready" for name in ALL))
    drop_in("watchdog.conf", None)
    return f"back after {took:.1f} s of WatchdogSec=10, the kept engine is the same"


def an_adopted_engine_that_dies_for_memory_is_told_apart():
    profile("adopted", "alloc=64MiB alloc_at=request", 'autostart = true\non_exit = "keep"')
    wait_until("the slot", lambda: any(one["slot"] == "adopted" for one in control("/v1/slots")))
    ask_slot("late")  # Anything: time for the automatic start is not waited for otherwise.
    wait_until("ready", lambda: slot("adopted")["state"] == "ready")
    before = slot("adopted")
    run("systemctl", "restart", "slotd")
    same_engine(before)
    # Before Linux 6.15 nobody can read how a process ended that is not one's child.
    return oom("adopted", ("likely", "certain"))


def a_stop_leaves_only_what_is_kept():
    before, adopted = slot("kept"), slot("adopted")
    run("systemctl", "stop", "slotd")
    wait_until("two processes", lambda: set(engines_in()) == {before["pid"], adopted["pid"]})
    run("systemctl", "start", "slotd")
    same_engine(before)
    pathlib.Path("/etc/slotd/profiles/adopted.toml").unlink()
    wait_until("its end", lambda: not is_alive(adopted["pid"]))
    return "the next start adopts it"


# --- The socket unit ---------------------------------------------------------------------------


def the_first_client_starts_the_daemon():
    run("systemctl", "stop", "slotd")
    run("systemctl", "start", "slotd.socket")
    ensure(UNIT.show("ActiveState") == "inactive", f"it is {UNIT.show('ActiveState')} already")
    status, _ = ask_slot("kept")
    ensure(status == 200, f"the first client got {status}")
    ensure(UNIT.is_active(), "it is not active")
    return "inactive, then answered"


def with_the_socket_unit_a_restart_refuses_nobody():
    with Clients("kept") as clients:
        run("systemctl", "restart", "slotd")
        wait_until("an answer after it", clients.answers_more)
    return clients.told()


def with_the_socket_unit_a_killed_daemon_refuses_nobody():
    main = UNIT.main_pid()
    with Clients("kept") as clients:
        send(main, signal.SIGKILL)
        wait_until("another main process", lambda: UNIT.main_pid() not in (0, main))
        wait_until("active", UNIT.is_active)
        wait_until("an answer after it", clients.answers_more)
    run("systemctl", "stop", "slotd.socket", "slotd.service")
    ensure(SOCKET.show("ActiveState") == "inactive", "the socket is still there")
    return clients.told()


# --- A real engine -----------------------------------------------------------------------------


def a_real_engine_runs_under_the_hardening():
    model = pathlib.Path("/var/cache/slotd/models/model.gguf")
    if not model.exists():
        raise Skipped("set SLOTD_TEST_MODEL to put a model into the machine")
    text = 'engine = "candle"\nmodel = "model.gguf"\nautostart = true\ncontext = 256\nparallel = 1\n'
    pathlib.Path("/etc/slotd/profiles/real.toml").write_text(text)
    run("systemctl", "start", "slotd")
    wait_until("the real engine", lambda: slot("real")["state"] in ("ready", "failed"), REAL_S)
    shown = slot("real")
    ensure(shown["state"] == "ready", f"{shown['reason']}")
    status, body = ask_slot("real", 2, REAL_S)
    ensure(status == 200, f"it answered {status}: {body}")
    return f"loaded in {shown['loads_ms'][-1] / 1000:.1f} s under emulation, and answered"


CHECKS = [
    (check.__name__, check)
    for check in (
        a_start_is_over_only_when_the_daemon_is_ready,
        nothing_runs_with_privileges,
        each_engine_has_a_cgroup_with_memory_counters,
        an_engine_that_the_kernel_kills_for_memory_leaves_the_daemon_up,
        the_journal_has_each_time_and_level_once,
        a_reload_reads_the_profiles_and_nothing_restarts,
        an_upgrade_keeps_the_process_and_refuses_nobody,
        a_restart_refuses_nobody,
        a_killed_daemon_comes_back_and_nothing_is_left_of_its_engines,
        a_stop_leaves_no_process_where_none_is_kept,
        a_bad_setting_is_not_tried_again,
        a_restart_keeps_engines_and_refuses_nobody,
        what_a_kept_engine_has_in_tmp_and_in_shared_memory_stays,
        a_killed_daemon_adopts_what_is_kept_and_ends_the_rest,
        an_adopted_engine_that_dies_for_memory_is_told_apart,
        a_daemon_that_stands_still_is_killed_and_restarted,
        a_stop_leaves_only_what_is_kept,
        the_first_client_starts_the_daemon,
        with_the_socket_unit_a_restart_refuses_nobody,
        with_the_socket_unit_a_killed_daemon_refuses_nobody,
        a_real_engine_runs_under_the_hardening,
    )
]

if __name__ == "__main__":
    main(sys.argv[1:])

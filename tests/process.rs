//! Real processes: how they start, how they end, and that nothing of them is left. They are looked
//! at through `/proc`, which Linux has.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "process/support.rs"]
mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use slotd::{
    process::{Cgroups, SpawnFault, TAIL_BYTES, tail},
    sensor::Members,
    spec::death::ExitStatus,
    supervisor::StopSignal,
};
use support::{Bench, Host, cgroup_dirs, is_alive, program, state, until};

const BOTH: [Cgroups; 2] = [Cgroups::Detect, Cgroups::Off];

#[tokio::test]
async fn each_way_to_end_is_told_from_the_others() {
    for cgroups in BOTH {
        let bench = Bench::new(cgroups);
        let ways = [
            ("die_at_start=7", ExitStatus::Code(7)),
            ("die_at_start=0", ExitStatus::Code(0)),
            ("abort", ExitStatus::Signal(6)),
            ("segv", ExitStatus::Signal(11)),
        ];
        for (way, status) in ways {
            let mut child = bench.spawn(&[way]).await;
            assert_eq!(child.wait().await, status, "{way}");
            assert_eq!(child.wait().await, status, "{way}, asked twice");
            child.reap().await;
            assert_eq!(child.wait().await, status, "{way}, asked after the end");
        }
    }
}

#[tokio::test]
async fn a_child_starts_with_nothing_that_it_was_not_given() {
    let bench = Bench::new(Cgroups::Detect);
    let dump = bench.dir().join("dump");
    let mut child = bench.spawn(&[&format!("dump={}", dump.display()), "die_at_start=0"]).await;
    assert_eq!(child.wait().await, ExitStatus::Code(0));
    let log = fs::canonicalize(bench.log(1)).unwrap();
    let found = fs::read_to_string(&dump).unwrap();
    for expected in [
        "fd 0 /dev/null".to_owned(),
        format!("fd 1 {}", log.display()),
        format!("fd 2 {}", log.display()),
        "env GIVEN=1".to_owned(),
        "oom_score_adj 500".to_owned(),
        "SigBlk 0000000000000000".to_owned(),
        "Umask 0077".to_owned(),
    ] {
        assert!(found.lines().any(|line| line == expected), "no `{expected}` in:\n{found}");
    }
    let count = |start: &str| found.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!((count("fd "), count("env ")), (3, 1), "{found}");
    assert!(found.lines().any(|line| line.starts_with("Max core") && line.contains(" 0 ")));
    let ignored = found.lines().find_map(|line| line.strip_prefix("SigIgn ")).unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff;
    assert_eq!(ignored, 0x1000, "Rust's own SIGPIPE alone is ignored by the fake engine");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    child.reap().await;
}

#[tokio::test]
async fn a_grandchild_ends_with_the_group() {
    for cgroups in BOTH {
        let bench = Bench::new(cgroups);
        let mut child = bench.spawn(&["fork"]).await;
        let grandchild = bench.grandchild(1).await;
        child.stop_handle().signal(StopSignal::Kill);
        assert_eq!(child.wait().await, ExitStatus::Signal(9));
        child.reap().await;
        assert!(!is_alive(grandchild), "{cgroups:?}");
    }
}

#[tokio::test]
async fn a_grandchild_that_outlives_the_leader_is_killed_by_reaping() {
    for cgroups in BOTH {
        let bench = Bench::new(cgroups);
        let mut child = bench.spawn(&["fork", "die_at_start=1"]).await;
        assert_eq!(child.wait().await, ExitStatus::Code(1));
        let grandchild = bench.grandchild(1).await;
        assert!(is_alive(grandchild), "the end of the leader alone kills nobody");
        child.reap().await;
        assert!(!is_alive(grandchild), "{cgroups:?}");
        // Nothing is left that a late signal could hit.
        child.stop_handle().signal(StopSignal::Kill);
    }
}

#[tokio::test]
async fn a_grandchild_with_its_own_session_ends_where_there_are_cgroups() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&["setsid", "die_at_start=1"]).await;
    let has_cgroup = !cgroup_dirs(child.pid()).is_empty();
    child.wait().await;
    let grandchild = bench.grandchild(1).await;
    child.reap().await;
    if has_cgroup {
        assert!(!is_alive(grandchild));
    } else {
        kill(grandchild, Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn a_child_that_ignores_term_ends_by_kill() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&["ignore=TERM"]).await;
    bench.line(1, "ready").await;
    let stop = child.stop_handle();
    stop.signal(StopSignal::Terminate);
    let pid = child.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("ShdPnd:\t0000000000004000"), "TERM is not pending:\n{status}");
    stop.signal(StopSignal::Kill);
    assert_eq!(child.wait().await, ExitStatus::Signal(9));
    child.reap().await;
}

#[tokio::test]
async fn a_stopped_child_hears_that_it_should_terminate() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&[]).await;
    bench.line(1, "ready").await;
    let pid = Pid::from_raw(child.pid().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    until("the child is stopped", || state(pid) == Some('T')).await;
    child.stop_handle().signal(StopSignal::Terminate);
    assert_eq!(child.wait().await, ExitStatus::Signal(15));
    child.reap().await;
}

#[tokio::test]
async fn a_grandchild_that_holds_stdout_does_not_delay_the_notice() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&["hold_stdout", "die_at_start=3"]).await;
    let limit = Duration::from_secs(2);
    let status = tokio::time::timeout(limit, child.wait()).await.expect("the notice was delayed");
    assert_eq!(status, ExitStatus::Code(3));
    let grandchild = bench.grandchild(1).await;
    assert!(is_alive(grandchild));
    child.reap().await;
    assert!(!is_alive(grandchild));
}

#[tokio::test]
async fn reaping_removes_the_cgroup_and_the_socket() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&[&format!("socket={}", bench.socket().display())]).await;
    bench.line(1, "ready").await;
    let dirs = cgroup_dirs(child.pid());
    assert!(bench.socket().exists() && dirs.iter().all(|dir| dir.is_dir()), "{dirs:?}");
    child.stop_handle().signal(StopSignal::Kill);
    child.reap().await;
    assert!(!bench.socket().exists());
    assert!(!dirs.iter().any(|dir| dir.is_dir()), "{dirs:?}");
}

#[tokio::test]
async fn a_dropped_child_is_ended_and_reaped() {
    let bench = Bench::new(Cgroups::Detect);
    let child = bench.spawn(&["fork"]).await;
    let (pid, grandchild) =
        (Pid::from_raw(child.pid().try_into().unwrap()), bench.grandchild(1).await);
    let dirs = cgroup_dirs(child.pid());
    drop(child);
    until("nothing is left", || {
        state(pid).is_none() && !is_alive(grandchild) && !dirs.iter().any(|dir| dir.is_dir())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let bench = Bench::new(Cgroups::Detect);
    let file = |name: &str, text: &str, mode| {
        let path = bench.dir().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let cases = [
        (bench.dir().join("none"), "there is no such file"),
        (file("plain", "text", 0o600), "the file cannot be executed"),
        (file("script", "#!/no/such/interpreter\n", 0o700), "the file cannot be executed"),
    ];
    for (program, expected) in cases {
        let mut spec = bench.spec(&[]);
        spec.program.clone_from(&program);
        let fault = bench.spawner.spawn(spec).await.unwrap_err();
        assert!(!fault.is_temporary(), "{fault:?}");
        let text = format!("start engine `{}`: {expected}", program.display());
        assert_eq!(fault.to_string(), text);
    }
    let mut spec = bench.spec(&[]);
    spec.working_dir = bench.dir().join("none");
    let fault = bench.spawner.spawn(spec).await.unwrap_err();
    assert!(matches!(fault, SpawnFault::WorkingDir { .. }), "{fault:?}");
}

#[tokio::test]
async fn a_program_that_is_being_replaced_is_worth_another_try() {
    let bench = Bench::new(Cgroups::Detect);
    let mut spec = bench.spec(&["die_at_start=0"]);
    let copy = bench.dir().join("engine");
    fs::copy(&spec.program, &copy).unwrap();
    spec.program.clone_from(&copy);
    let writer = fs::OpenOptions::new().append(true).open(&copy).unwrap();
    let fault = bench.spawner.spawn(spec.clone()).await.unwrap_err();
    assert!(fault.is_temporary(), "{fault:?}");
    drop(writer);
    let mut child = bench.spawner.spawn(spec).await.unwrap();
    assert_eq!(child.wait().await, ExitStatus::Code(0));
    child.reap().await;
}

#[tokio::test]
async fn the_last_words_are_kept() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&["say=\u{1b}[31mout of memory", "die_at_start=1"]).await;
    child.wait().await;
    assert_eq!(tail(&bench.log(1), 20, TAIL_BYTES), ["out of memory"]);
    child.reap().await;
}

#[tokio::test]
async fn an_oom_kill_is_counted_and_an_admins_kill_is_not() {
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&[]).await;
    bench.line(1, "ready").await;
    let Some(counted) = child.oom_kills() else { return };
    assert_eq!(counted, 0);
    kill(Pid::from_raw(child.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().await, ExitStatus::Signal(9));
    child.reap().await;
    assert_eq!(child.oom_kills(), Some(0), "a kill is no OOM kill");

    let socket = format!("socket={}", bench.socket().display());
    let mut child = bench.spawn(&["alloc=256MiB", "alloc_at=request", &socket]).await;
    bench.line(2, "ready").await;
    assert!(support::limit_memory(child.pid(), 64 << 20), "the limit was refused");
    support::post_completion(&bench.socket());
    assert_eq!(child.wait().await, ExitStatus::Signal(9));
    assert!(child.oom_kills() > Some(0), "{:?}", child.oom_kills());
    child.reap().await;
    assert!(child.oom_kills() > Some(0), "the figure is gone after the end");
}

#[tokio::test]
async fn a_killed_daemon_leaves_nothing() {
    for cgroups in ["detect", "off"] {
        let host = Host::start(cgroups, &[&["fork"], &["ignore=TERM", "fork"], &["setsid"]]).await;
        let has_cgroup = host.children.iter().all(|pid| !cgroup_dirs(*pid).is_empty());
        let mut left = host.pids();
        left.push(host.guard().await);
        if !has_cgroup {
            // A session of its own escapes the process group.
            let escaped = host.grandchild(2).await;
            left.retain(|pid| *pid != escaped);
            host.kill();
            until("all but the escaped one are gone", || !left.iter().any(|pid| is_alive(*pid)))
                .await;
            kill(escaped, Signal::SIGKILL).unwrap();
            continue;
        }
        let dirs: Vec<_> = host.children.iter().flat_map(|pid| cgroup_dirs(*pid)).collect();
        host.kill();
        until("all are gone", || !left.iter().any(|pid| is_alive(*pid))).await;
        until("no directory is left", || !dirs.iter().any(|dir| dir.is_dir())).await;
    }
}

#[tokio::test]
async fn the_guard_holds_nothing_and_hears_only_the_end_of_its_pipe() {
    let host = Host::start("detect", &[&["fork"]]).await;
    let guard = host.guard().await;
    let fds = fs::read_dir(format!("/proc/{guard}/fd")).unwrap();
    let mut fds: Vec<_> = fds.map(|entry| entry.unwrap().file_name()).collect();
    fds.sort();
    assert_eq!(fds, ["0", "1", "2"]);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(guard, signal).unwrap();
    }
    let left = host.pids();
    host.kill();
    until("all are gone", || !left.iter().any(|pid| is_alive(*pid)) && !is_alive(guard)).await;
}

#[tokio::test]
async fn a_killed_guard_is_replaced_and_knows_everything() {
    let host = Host::start("off", &[&["fork"]]).await;
    let first = host.guard().await;
    kill(first, Signal::SIGKILL).unwrap();
    until("the guard is replaced", || host.guard_now().is_some_and(|guard| guard != first)).await;
    let left = host.pids();
    assert!(left.iter().all(|pid| is_alive(*pid)), "the guard's end ended a child");
    host.kill();
    until("all are gone", || !left.iter().any(|pid| is_alive(*pid))).await;
}

#[tokio::test]
async fn what_a_dead_daemon_left_in_cgroups_is_ended_by_the_next() {
    let host = Host::start("detect", &[&["setsid"]]).await;
    let dirs = cgroup_dirs(host.children[0]);
    let grandchild = host.grandchild(0).await;
    kill(host.guard().await, Signal::SIGKILL).unwrap();
    host.kill();
    if dirs.is_empty() {
        kill(grandchild, Signal::SIGKILL).unwrap();
        return;
    }
    // The next daemon may also be that of another test, at the same time.
    let bench = Bench::new(Cgroups::Detect);
    let mut child = bench.spawn(&["die_at_start=0"]).await;
    until("it is ended", || !is_alive(grandchild) && !dirs.iter().any(|dir| dir.is_dir())).await;
    child.wait().await;
    child.reap().await;
}

#[tokio::test]
async fn a_hundred_spawns_leave_no_file_and_no_zombie() {
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let bench = Bench::with_guard(Cgroups::Detect);
    let mut child = bench.spawn(&["die_at_start=0"]).await;
    child.reap().await;
    drop(child);
    let before = count();
    for _ in 0..100 {
        let mut child = bench.spawn(&["die_at_start=0"]).await;
        child.reap().await;
        assert_eq!(state(Pid::from_raw(child.pid().try_into().unwrap())), None);
    }
    until("no file is open that was not before", || count() <= before).await;
}

#[test]
fn the_programs_of_these_tests_are_there() {
    for name in ["fake_engine", "spawner_host"] {
        let path = program(name);
        assert!(
            Path::new(&path).is_file(),
            "{}: `cargo build --examples` makes it",
            path.display()
        );
    }
}

#[tokio::test]
async fn who_shares_a_cgroup_that_was_not_made_for_an_engine_is_not_of_it() {
    let (bench, stranger) = (Bench::new(Cgroups::Detect), Bench::new(Cgroups::Off));
    let (engine, stranger) = (bench.spawn(&[]).await, stranger.spawn(&[]).await);
    // As two programs of one session are, which is not the daemon's.
    for dir in cgroup_dirs(engine.pid()) {
        fs::write(dir.join("cgroup.procs"), stranger.pid().to_string()).unwrap();
    }
    let without = Members { group: engine.pid(), cell: None };
    assert!(without.have(engine.pid()));
    assert!(!without.have(stranger.pid()), "it shares the cgroup alone");
    if let Some(cell) = engine.counters().cgroup_name().map(str::to_owned) {
        let with = Members { cell: Some(cell), ..without };
        assert!(with.have(engine.pid()) && with.have(stranger.pid()));
        assert!(!with.have(std::process::id()));
    }
}

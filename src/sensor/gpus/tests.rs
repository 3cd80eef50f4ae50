//! A library made here is loaded by the real wrapper.

use std::{fs, path::Path, process::Command};

use super::*;
use crate::spec::gpu::Xid;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sensor/gpus/fake_nvml.c");
/// Far above what a look takes, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(1);

/// A driver with the GPUs of a file.
struct Driver(tempfile::TempDir);

impl Driver {
    fn new(lines: &str) -> Self {
        let driver = Self(tempfile::tempdir().unwrap());
        driver.set(lines);
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(driver.library())
            .arg(format!("-DCONTROL=\"{}\"", driver.control().display()))
            .arg(SOURCE)
            .status();
        assert!(status.unwrap().success());
        driver
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("libnvidia-ml.so.1")
    }

    fn control(&self) -> PathBuf {
        self.0.path().join("gpus")
    }

    /// At once for those who read at the same time.
    fn set(&self, lines: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, self.control()).unwrap();
    }

    fn gpus(&self) -> Gpus {
        start(&self.library())
    }
}

fn start(library: &Path) -> Gpus {
    Gpus::start(&GpuOptions {
        library: Some(library.to_owned()),
        period: Duration::from_millis(5),
        deadline: PATIENCE,
        wall_clock: || 7,
        ..GpuOptions::default()
    })
}

/// Looks until it is as `wanted`: nobody tells when a driver was asked.
fn until(
    gpus: &Gpus,
    wanted: impl Fn(&BTreeMap<u32, GpuReading>) -> bool,
) -> BTreeMap<u32, GpuReading> {
    let begun = Instant::now();
    loop {
        let seen = gpus.look(Instant::now());
        if wanted(&seen) {
            return seen;
        }
        assert!(Instant::now() < begun + PATIENCE, "{seen:?}");
        thread::yield_now();
    }
}

fn room(total: u64, free: u64) -> Room {
    Room { total: Bytes(total << 20), free: Bytes(free << 20) }
}

fn is_present(seen: &BTreeMap<u32, GpuReading>, index: u32) -> bool {
    matches!(seen.get(&index), Some(GpuReading { state: GpuState::Present(_), .. }))
}

#[test]
fn eight_gpus_are_read_and_one_more_is_found() {
    let eight: Vec<String> = (0..8).map(|at| format!("present 81920 {}\n", 80_000 - at)).collect();
    let driver = Driver::new(&eight.concat());
    let gpus = driver.gpus();
    let seen = until(&gpus, |seen| (0..8).all(|index| is_present(seen, index)));
    assert_eq!(seen[&7].state, GpuState::Present(room(81_920, 79_993)));
    assert_eq!((seen[&7].uuid.as_str(), seen[&7].name.as_str()), ("GPU-00000007", "Fake 7"));
    assert_eq!(gpus.uses(Instant::now())[&3].busy_percent, Some(30));
    driver.set(&(eight.concat() + "present 24576 1\n"));
    until(&gpus, |seen| is_present(seen, 8));
}

#[test]
fn one_that_hangs_is_silent_with_what_was_read_last_and_the_others_go_on() {
    let driver = Driver::new("present 100 50\npresent 100 60\n");
    let gpus = driver.gpus();
    until(&gpus, |seen| is_present(seen, 0) && is_present(seen, 1));
    driver.set("hang\npresent 100 70\n");
    let fresh = GpuState::Present(room(100, 70));
    until(&gpus, |seen| seen[&1].state == fresh);
    // What was read of it grows old while nobody comes back from the driver.
    let later = Instant::now() + PATIENCE + PATIENCE;
    assert_eq!(gpus.look(later)[&0].state, GpuState::Silent { last: Some(room(100, 50)) });
    assert_eq!(gpus.uses(later).len(), 0);
    driver.set("present 100 10\npresent 100 70\n");
    until(&gpus, |seen| seen[&0].state == GpuState::Present(room(100, 10)));
}

#[test]
fn a_driver_that_hangs_from_the_start_is_no_reading_and_keeps_nobody_waiting() {
    let driver = Driver::new(&"hang\n".repeat(8));
    let gpus = driver.gpus();
    let seen = until(&gpus, |seen| seen.len() == 8);
    assert!(seen.values().all(|gpu| gpu.state == GpuState::Silent { last: None }), "{seen:?}");
    // Its threads must find their way out before the library goes.
    driver.set("");
    until(&gpus, |seen| seen.values().all(|gpu| matches!(gpu.state, GpuState::Lost { .. })));
}

#[test]
fn one_that_is_lost_keeps_its_place_and_comes_back() {
    let driver = Driver::new("present 100 50\npresent 200 60\n");
    let gpus = driver.gpus();
    until(&gpus, |seen| is_present(seen, 1));
    driver.set("lost\npresent 200 60\n");
    let seen = until(&gpus, |seen| matches!(seen[&0].state, GpuState::Lost { .. }));
    assert_eq!(seen[&1].state, GpuState::Present(room(200, 60)));
    driver.set("present 100 90\npresent 200 60\n");
    until(&gpus, |seen| seen[&0].state == GpuState::Present(room(100, 90)));
    // The driver lists one only: the other is gone.
    driver.set("present 100 90\n");
    until(&gpus, |seen| matches!(seen[&1].state, GpuState::Lost { .. }));
}

#[test]
fn without_a_library_there_are_no_gpus() {
    let gpus = start(Path::new("/nonexistent/libnvidia-ml.so.1"));
    assert_eq!(gpus.look(Instant::now()), BTreeMap::new());
}

#[test]
fn a_driver_that_hangs_before_it_counts_is_not_one_that_has_none() {
    let driver = Driver::new("hang-init\n");
    let gpus = Gpus::start(&GpuOptions {
        library: Some(driver.library()),
        deadline: Duration::from_millis(20),
        ..GpuOptions::default()
    });
    let begun = Instant::now();
    let seen = loop {
        let seen = gpus.look_now();
        if !seen.is_empty() {
            break seen;
        }
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    };
    assert!(matches!(seen[&0].state, GpuState::Silent { last: None }), "{seen:?}");
    driver.set("present 8000 6000\npresent 8000 7000\n");
    let seen = until(&gpus, |seen| seen.len() == 2);
    assert!(seen.contains_key(&1));
}

#[test]
fn gpus_that_a_person_keeps_from_us_do_not_count() {
    let driver = Driver::new("present 8000 6000\npresent 8000 7000\n");
    let gpus = Gpus::start(&GpuOptions {
        library: Some(driver.library()),
        visible: Some("GPU-00000001".to_owned()),
        period: Duration::from_millis(5),
        deadline: PATIENCE,
        ..GpuOptions::default()
    });
    let seen = until(&gpus, |seen| is_present(seen, 1));
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(gpus.uses(Instant::now()).keys().collect::<Vec<_>>(), [&1]);
}

/// Looks until the faults of GPUs are as `wanted`.
fn until_xids(gpus: &Gpus, wanted: impl Fn(&GpuFigures) -> bool) -> GpuFigures {
    let begun = Instant::now();
    loop {
        let seen = gpus.figures(Instant::now());
        if wanted(&seen) {
            return seen;
        }
        assert!(Instant::now() < begun + PATIENCE, "{seen:?}");
        thread::yield_now();
    }
}

fn xids(figures: &GpuFigures, index: u32) -> Option<&Xids> {
    figures.get(&index)?.xids.as_ref()
}

#[test]
fn an_xid_is_heard_once_with_its_gpu_and_its_time() {
    let driver = Driver::new("present 100 50\npresent 100 50\n");
    let gpus = driver.gpus();
    until_xids(&gpus, |seen| xids(seen, 0).is_some() && xids(seen, 1).is_some());
    driver.set("present 100 50\npresent 100 60 xid 31 1\n");
    let heard = until_xids(&gpus, |seen| xids(seen, 1).unwrap().count == 1);
    assert_eq!(xids(&heard, 1).unwrap().last, [Xid { code: 31, at_unix_ms: 7 }]);
    assert_eq!(xids(&heard, 0), Some(&Xids::default()));
    // The same one goes on standing there; another one comes.
    driver.set("present 100 50\npresent 100 70 xid 13 2\n");
    let heard = until_xids(&gpus, |seen| xids(seen, 1).unwrap().count > 1);
    let codes: Vec<_> = xids(&heard, 1).unwrap().last.iter().map(|xid| xid.code).collect();
    assert_eq!(codes, [31, 13]);

    let (first, now) = (BTreeSet::from(["GPU-00000000".to_owned()]), Instant::now());
    let all = ["GPU-00000000", "GPU-00000001"].map(str::to_owned).into();
    let near: Vec<_> =
        gpus.xids_on(&all, PATIENCE, now).iter().map(|xid| (xid.gpu, xid.code)).collect();
    assert_eq!(near, [(1, 31), (1, 13)]);
    assert_eq!(gpus.xids_on(&first, PATIENCE, now), []);
    assert_eq!(gpus.xids_on(&all, PATIENCE, now + PATIENCE + PATIENCE), []);
}

#[test]
fn a_gpu_that_fell_off_the_bus_is_lost_whatever_its_driver_answers_next() {
    let driver = Driver::new("present 100 50\n");
    let gpus = driver.gpus();
    until_xids(&gpus, |seen| xids(seen, 0).is_some());
    driver.set("present 100 50 xid 79 1\n");
    let seen = until(&gpus, |seen| matches!(seen[&0].state, GpuState::Lost { .. }));
    let reason = "the driver reports Xid 79 (the GPU has fallen off the bus)".to_owned();
    assert_eq!(seen[&0].state, GpuState::Lost { reason });
    assert!(!is_present(&gpus.look(Instant::now()), 0));
}

#[test]
fn faults_are_unknown_where_the_driver_cannot_tell_of_any() {
    let driver = Driver::new("present 100 50 no-events\n");
    let gpus = driver.gpus();
    until(&gpus, |seen| is_present(seen, 0));
    assert_eq!(xids(&gpus.figures(Instant::now()), 0), None);
}

#[test]
fn what_processes_hold_is_told_of_each_gpu_or_of_none() {
    let driver =
        Driver::new("present 100 50 pid 10 7 pid 11 5 pid 20 3\npresent 100 50 pid 10 2\n");
    let gpus = driver.gpus();
    let both = ["GPU-00000000", "GPU-00000001"].map(str::to_owned);
    let held = |devices: &[String]| {
        let held = gpus.held(devices, |pid| pid < 20, Instant::now());
        held.map(|held| held.values().map(|bytes| bytes.0 >> 20).collect::<Vec<_>>())
    };
    until(&gpus, |seen| is_present(seen, 0) && is_present(seen, 1));
    assert_eq!(held(&both), Some(vec![12, 2]));
    assert_eq!(held(&[]), Some(vec![12, 2]), "where it is not told, it is where it is");
    driver.set("present 100 51 pid 10 7\npresent 100 51 pid 10 -\n");
    until(&gpus, |seen| seen.values().all(|gpu| gpu.state == GpuState::Present(room(100, 51))));
    assert_eq!(held(&both), None, "one of them is not told");
    driver.set("present 100 52 pid 10 7\npresent 100 52\n");
    until(&gpus, |seen| seen.values().all(|gpu| gpu.state == GpuState::Present(room(100, 52))));
    assert_eq!((held(&both), held(&both[..1])), (None, Some(vec![7])));
    driver.set("lost\npresent 100 53 pid 10 -\n");
    until(&gpus, |seen| !is_present(seen, 0) && seen[&1].state == GpuState::Present(room(100, 53)));
    assert_eq!(
        gpus.with(|pid| pid < 20),
        both.into(),
        "where they were last, and where it is not told"
    );
    assert_eq!(gpus.with(|pid| pid > 20), BTreeSet::new());
}

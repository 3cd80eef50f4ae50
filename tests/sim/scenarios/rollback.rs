//! Edits whose engine does not become ready are undone.

use slotd::{
    spec::edit::Rejected,
    supervisor::{Memory, Supervisor},
};

use super::*;

/// Served with the plain profile, and now spawns the engine of an edit.
fn edited(profile: Profile, edit: &Profile) -> Stage {
    let mut stage = Stage::serving(profile);
    stage.take(profiles_changed([edit.clone()]));
    stage.child(ChildEvent::Drained);
    stage.die(ended(ExitStatus::Signal(15)));
    assert_eq!(stage.state(), "starting");
    stage
}

fn edit() -> Profile {
    Profile { context: Some(4096), ..profile("chat") }
}

fn spawned_profile(commands: &[Command]) -> Option<(&Profile, usize)> {
    commands.iter().find_map(|command| match command {
        Command::Spawn { profile, rung, .. } => Some((&**profile, *rung)),
        _ => None,
    })
}

fn rejected(stage: &Stage) -> Option<&Rejected> {
    stage.view().edits.rejected.as_ref()
}

/// The edit's engine has died, and the engine before it is spawned again.
fn rolled_back() -> Stage {
    let mut stage = edited(profile("chat"), &edit());
    stage.spawn();
    let commands = stage.die(ended(ExitStatus::Code(1)));
    assert_eq!(spawned_profile(&commands), Some((&profile("chat"), 0)), "{commands:?}");
    stage
}

fn sized_profile(commands: &[Command]) -> Option<&Profile> {
    commands.iter().find_map(|command| match command {
        Command::Size { profile, .. } => Some(&**profile),
        _ => None,
    })
}

#[test]
fn an_edit_whose_engine_dies_while_starting_is_undone_at_once() {
    let stage = rolled_back();
    let undone = rejected(&stage).unwrap();
    assert_eq!(*undone.profile, edit());
    assert_eq!((undone.verdict, undone.generation.0), (Verdict::UnexpectedExit, 2));
    assert_eq!(stage.view().tally, 0, "the profile that worked begins without deaths");
    let reason = &stage.view().deaths.last().unwrap().reason;
    assert!(reason.ends_with("; the profile that worked before is in force again"), "{reason}");
}

#[test]
fn an_edit_that_cannot_even_be_spawned_is_undone_and_who_waits_is_served() {
    let mut stage = edited(profile("chat"), &edit());
    stage.demand();
    let failed = ChildEvent::SpawnFailed {
        verdict: Verdict::MissingFile,
        reason: "it is not there".to_owned(),
        at_unix_ms: 7,
        engine: None,
    };
    let commands = stage.child(failed);
    assert_eq!(spawned_profile(&commands), Some((&profile("chat"), 0)), "{commands:?}");
    assert_eq!(refusals(&commands), Vec::<&Refusal>::new());
    stage.spawn();
    let commands = stage.child(ChildEvent::BecameReady);
    assert!(matches!(commands[..], [Command::Grant { .. }]), "{commands:?}");
}

#[test]
fn an_edit_that_never_becomes_ready_is_undone_when_its_time_is_over() {
    let mut stage = edited(profile("chat"), &edit());
    stage.spawn();
    let told = stage.pass(Duration::from_mins(2));
    assert_eq!(signals(&told), [StopSignal::Kill]);
    assert_eq!(rejected(&stage).unwrap().at_unix_ms, 0);
    let commands = stage.die(ended(ExitStatus::Signal(9)));
    assert_eq!(spawned_profile(&commands), Some((&profile("chat"), 0)), "{commands:?}");
    let undone = rejected(&stage).unwrap();
    assert_eq!((undone.verdict, undone.at_unix_ms), (Verdict::StartTimeout, 1_700_000_000_000));
}

#[test]
fn an_edit_that_lacks_memory_comes_down_its_ladder_before_it_is_undone() {
    let out_of_memory = || Evidence { oom_kills: Some(1), ..ended(ExitStatus::Signal(9)) };
    let mut stage = edited(profile("chat"), &edit());
    for rung in 1..3 {
        stage.spawn();
        let commands = stage.die(out_of_memory());
        assert_eq!(spawned_profile(&commands), Some((&edit(), rung)), "{commands:?}");
    }
    stage.spawn();
    let commands = stage.die(out_of_memory());
    assert_eq!(spawned_profile(&commands), Some((&profile("chat"), 0)), "{commands:?}");
}

#[test]
fn the_profile_that_worked_comes_back_on_the_rung_on_which_it_worked() {
    let mut stage = Stage::on_demand();
    stage.demand();
    stage.spawn();
    stage.die(Evidence { oom_kills: Some(1), ..ended(ExitStatus::Signal(9)) });
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    stage.take(profiles_changed([edit()]));
    stage.child(ChildEvent::Drained);
    let commands = stage.die(ended(ExitStatus::Signal(15)));
    assert_eq!(spawned_profile(&commands), Some((&edit(), 0)));
    stage.spawn();
    let commands = stage.die(ended(CRASH));
    assert_eq!(spawned_profile(&commands), Some((&profile("chat"), 1)), "{commands:?}");
}

#[test]
fn an_undone_edit_is_left_alone_while_its_file_says_the_same() {
    let mut stage = rolled_back();
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    assert_eq!(stage.take(profiles_changed([edit(), profile("other")])), []);
    assert_eq!(stage.state(), "ready");
    assert!(rejected(&stage).is_some());
}

#[test]
fn a_new_edit_is_tried_and_going_back_by_hand_disturbs_nobody() {
    let mut stage = rolled_back();
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    let better = Profile { context: Some(8192), ..profile("chat") };
    let commands = stage.take(profiles_changed([better]));
    assert!(matches!(commands[..], [Command::Drain { .. }]), "{commands:?}");
    assert_eq!(rejected(&stage), None);

    let mut stage = rolled_back();
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    assert_eq!(stage.take(profiles_changed([profile("chat")])), []);
    assert_eq!((stage.state(), rejected(&stage)), ("ready", None));
}

#[test]
fn a_restart_by_a_person_tries_the_edit_once_more() {
    let mut stage = rolled_back();
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    stage.ask(SlotEvent::RestartRequested);
    stage.child(ChildEvent::Drained);
    let commands = stage.die(ended(ExitStatus::Signal(15)));
    assert_eq!(spawned_profile(&commands), Some((&edit(), 0)), "{commands:?}");
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    assert_eq!((stage.state(), rejected(&stage)), ("ready", None));
}

#[test]
fn an_edit_that_became_ready_is_kept_whatever_comes_later() {
    let mut stage = edited(profile("chat"), &edit());
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    let commands = stage.die(ended(CRASH));
    assert_eq!(spawned_profile(&commands), Some((&edit(), 0)), "{commands:?}");
}

#[test]
fn a_profile_that_gave_up_is_nothing_to_go_back_to() {
    let mut stage = Stage::serving(profile("chat"));
    stage.die(ended(CRASH));
    stage.spawn();
    stage.die(logged(ExitStatus::Code(1), LogCause::BadModel));
    assert_eq!(stage.state(), "failed");
    stage.take(profiles_changed([edit()]));
    stage.demand();
    stage.spawn();
    stage.die(logged(ExitStatus::Code(1), LogCause::BadModel));
    assert_eq!((stage.state(), rejected(&stage)), ("failed", None));
}

#[test]
fn a_name_that_the_edit_gives_up_is_not_taken_back() {
    let named = |names: &[&str], context| Profile {
        aliases: names.iter().map(|name| (*name).to_owned()).collect(),
        context,
        ..profile("chat")
    };
    let mut stage = edited(named(&["old", "both"], None), &named(&["both", "new"], Some(4096)));
    stage.spawn();
    stage.die(ended(CRASH));
    assert_eq!(stage.view().profile.aliases, ["both"]);
}

#[test]
fn a_daemon_that_starts_goes_on_with_the_profile_that_worked_while_the_file_is_the_same() {
    let mut stage = rolled_back();
    stage.spawn();
    stage.child(ChildEvent::BecameReady);
    let edits = stage.view().edits.clone();
    for (on_disk, expected) in [
        (edit(), profile("chat")),
        (Profile { context: Some(8192), ..edit() }, Profile { context: Some(8192), ..edit() }),
    ] {
        let memory = Memory { edits: edits.clone(), ..Memory::default() };
        let mut core = Supervisor::new(Policy::default(), 7, [(slot("chat"), memory)].into());
        let mut commands = Vec::new();
        core.handle(Monotime::default(), profiles_changed([on_disk]), &mut commands);
        let demand = SlotEvent::Demanded { waiter: WaiterId(1) };
        core.handle(Monotime::default(), of_slot(&slot("chat"), demand), &mut commands);
        let sized = sized_profile(&commands);
        assert_eq!(sized, Some(&expected), "{commands:?}");
    }
}

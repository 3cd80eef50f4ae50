//! Nothing that can be typed takes the loader down.

use std::path::Path;

use proptest::prelude::*;

use super::{super::disk, Context, Folder, read};

/// A line that is likely to reach the checks: a known key, and a value of any type.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        proptest::sample::select(super::super::file::KEYS.to_vec()).prop_map(str::to_owned),
        "[a-z_]{1,8}",
        "\"[^\"\\\\\n]{0,6}\"",
    ];
    let word = prop_oneof![
        "\\PC{0,12}",
        "[a-z]{1,8}(/[a-z]{1,8})?",
        "[0-9]{1,30}(ms|s|m|h|d|GiB)?",
        "\\{[a-z{}]{0,8}\\}"
    ];
    let scalar = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        word.prop_map(|text| format!("{text:?}")),
        "\\PC{0,10}",
    ];
    let value = scalar.clone().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            ("[a-z]{1,4}", inner).prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    });
    (key, value).prop_map(|(key, value)| format!("{key} = {value}"))
}

/// A profile without a fault.
fn good() -> impl Strategy<Value = String> {
    (256_u32..=1_048_576, 1_u32..=256, 0_u32..=1000, any::<bool>(), "[a-zA-Z0-9._/:@+-]{1,128}", 1_u32..=600).prop_map(
        |(context, parallel, restarts, flag, alias, seconds)| {
            format!(
                "model = 'a.gguf'\ncontext = {context}\nparallel = {parallel}\nmax_restarts = {restarts}\n\
                 autostart = {flag}\naliases = ['{alias}-']\nstart_timeout = '{seconds}s'\n"
            )
        },
    ).prop_filter("an alias has at most 128 bytes", |text| !text.lines().any(|line| line.starts_with("aliases") && line.len() > 128 + "aliases = ['']".len()))
}

proptest! {
    #[test]
    fn no_bytes_take_the_loader_down(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let folder = Folder::with(&[]);
        std::fs::write(folder.path("qwen.toml"), &bytes).unwrap();
        let loaded = folder.load();
        prop_assert_eq!(loaded.profiles.is_empty(), !loaded.faults.is_empty());
    }

    #[test]
    fn no_text_takes_the_loader_down(lines in proptest::collection::vec(line(), 0..12)) {
        let text = lines.join("\n");
        let reading = read(&text);
        prop_assert_eq!(reading.profile.is_none(), !reading.faults.is_empty());
        for fault in &reading.faults {
            let last = text.split('\n').count();
            prop_assert!(fault.line.is_none_or(|line| (1..=last).contains(&line)), "{fault} lies outside");
            prop_assert_eq!(fault.to_string().lines().count(), 1 + usize::from(fault.hint.is_some()));
        }
    }

    #[test]
    fn a_good_profile_survives_remarks_and_order(text in good(), seed in any::<u64>()) {
        let before = read(&text).profile;
        prop_assert!(before.is_some(), "{}", super::faults(&text));
        let mut lines: Vec<_> = text.lines().map(|line| format!("{line} # remark\n\n")).collect();
        let middle = usize::try_from(seed % 7).unwrap();
        lines.rotate_left(middle);
        prop_assert_eq!(read(&lines.concat()).profile, before);
    }

    #[test]
    fn one_bad_line_is_one_more_fault(text in good(), line in "[a-z]{12,20}") {
        let reading = read(&format!("{text}{line} = 1\n"));
        prop_assert_eq!(reading.faults.len(), 1);
        prop_assert_eq!(reading.faults[0].line, Some(8));
    }

    #[test]
    fn any_model_text_is_answered(typed in "\\PC{0,40}") {
        let answer = super::super::model::read(&typed, Path::new("/nowhere"), &Context::default());
        if let Ok(source) = answer {
            prop_assert_eq!(source.typed(), typed);
        }
    }
}

#[test]
fn what_is_listed_is_what_is_read() {
    let folder = Folder::with(&[("a.toml", "")]);
    let listed = disk::list(&folder.path("")).unwrap();
    assert_eq!(listed, [folder.path("a.toml")]);
}

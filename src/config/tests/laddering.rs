//! The key `ladder`.

use insta::assert_snapshot;

use super::{faults, read};
use crate::spec::ladder::{CacheType, LadderChoice, Rung};

fn ladder(text: &str) -> LadderChoice {
    let text = format!("model = 'a.gguf'\n{text}\n");
    read(&text).profile.unwrap_or_else(|| panic!("{}", faults(&text))).ladder
}

#[test]
fn a_ladder_is_left_to_slotd_or_listed_or_off() {
    assert_eq!(ladder(""), LadderChoice::Unsaid);
    assert_eq!(ladder("ladder = 'auto'"), LadderChoice::Auto);
    assert_eq!(ladder("ladder = 'off'"), LadderChoice::Off);
    let listed = ladder(
        "[[ladder]]\ncontext = 2048\ncache_type = 'q8_0'\n[[ladder]]\nname = 'CPU'\ngpu_layers = 0\nparallel = 1",
    );
    let rungs = [
        Rung { context: Some(2048), cache_type: Some(CacheType::Q8_0), ..Rung::default() },
        Rung {
            name: Some("CPU".to_owned()),
            gpu_layers: Some(0),
            parallel: Some(1),
            ..Rung::default()
        },
    ];
    assert_eq!(listed, LadderChoice::Rungs(rungs.to_vec()));
    assert_eq!(
        ladder("ladder = [{ context = 512 }, { context = 256, pinned = true }]"),
        LadderChoice::Pinned(Rung { context: Some(256), ..Rung::default() })
    );
}

#[test]
fn every_fault_of_a_ladder_is_told_with_its_place() {
    let model = "model = 'a.gguf'\n";
    let shown: Vec<_> = [
        "ladder = [{ contxt = 1 }, { context = 0, cache_type = 'q9' }, 7, { name = 'x' }]",
        "ladder = 'on'",
        "ladder = []",
        "ladder = 3",
        "[ladder]\ncontext = 512",
        "engine = 'candle'\nladder = [{ cache_type = 'q8_0' }]",
        "ladder = [{ parallel = 1, pinned = true }, { parallel = 2, pinned = true }]",
    ]
    .iter()
    .map(|text| faults(&format!("{model}{text}")))
    .collect();
    assert_snapshot!(shown.join("\n"), @r#"
    qwen.toml:2:11: ladder[0]: changes nothing
      hint: set one of `gpu_layers`, `context`, `parallel`, `cache_type`; the profile itself is the first rung
    qwen.toml:2:13: ladder[0].contxt: unknown key
      hint: did you mean `context`?
    qwen.toml:2:39: ladder[1].context: `0` is out of range, expected 256..=1048576
      hint: leave the key out to use the engine's own default
    qwen.toml:2:55: ladder[1].cache_type: `q9` is not one of `f16`, `q8_0`, `q4_0`
      hint: leave it out to use the default
    qwen.toml:2:63: ladder[2]: expected a table, found a whole number
      hint: write `[[ladder]]` above each
    qwen.toml:2:66: ladder[3]: changes nothing
      hint: set one of `gpu_layers`, `context`, `parallel`, `cache_type`; the profile itself is the first rung
    qwen.toml:2:10: ladder: `on` is not one of `auto`, `off`
      hint: leave it out to use the default
    qwen.toml:2:1: ladder: cannot be empty
      hint: for no ladder, write `ladder = "off"`
    qwen.toml:2:10: ladder: expected a string, found a whole number
      hint: put it in quotes: `"3"`
    qwen.toml:2:1: ladder: expected an array of tables, found a table
      hint: write `[[ladder]]` above each
    qwen.toml:3:1: ladder: the candle worker has no `cache_type`
      hint: take `cache_type` out of its rungs, or use llama-server
    qwen.toml:2:60: ladder: has more than one pinned rung, expected at most one
      hint: keep `pinned` on the rung that the slot shall stay on
    "#);
    let command = "engine = 'command'\ncommand = ['x', '{port}']\nladder = [{ parallel = 1 }]";
    assert_snapshot!(faults(command), @r#"
    qwen.toml:3:1: ladder: has no rungs with `engine = "command"`
      hint: take it out, or write `ladder = "off"`
    "#);
}

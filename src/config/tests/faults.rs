//! Each way to write a bad profile, and what is said.

use insta::assert_snapshot;

use super::faults;

#[test]
fn all_faults_of_a_file_come_at_once_in_its_order() {
    let text = r#"
contxt = 4096
engine = "lama-server"
context = 0
parallel = "4"
aliases = ["a b", "x", "x", "qwen", ""]
args = ["--verbose", "--host", "0.0.0.0"]
start_timeout = "10 minutes"
idle_timeout = 300
autostart = "yes"
env = { PATH = 1, "A=B" = "x" }
"#;
    assert_snapshot!(faults(text), @r#"
    qwen.toml:2:1: contxt: unknown key
      hint: did you mean `context`?
    qwen.toml:3:10: engine: `lama-server` is not one of `auto`, `llama-server`, `candle`, `command`, `external`
      hint: did you mean `llama-server`?
    qwen.toml:4:11: context: `0` is out of range, expected 256..=1048576
      hint: leave the key out to use the engine's own default
    qwen.toml:5:12: parallel: expected a whole number in 1..=256, found a string
      hint: leave the quotes out: `parallel = 4`
    qwen.toml:6:12: aliases[0]: ` ` does not fit, an alias is made of `a-z A-Z 0-9 . _ - / : @ +`
      hint: use the name that clients send as `model`, `gpt-4o-mini` say
    qwen.toml:6:24: aliases[2]: `x` is there twice
      hint: take one of the two out
    qwen.toml:6:29: aliases[3]: `qwen` is the slot's own name already
      hint: take it out
    qwen.toml:6:37: aliases[4]: cannot be empty
      hint: write what is meant between the quotes, or take it out
    qwen.toml:8:17: start_timeout: `10 minutes` has no unit that is known, use one of `ms`, `s`, `m`, `h`, `d`
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    qwen.toml:9:16: idle_timeout: expected a duration with a unit, in quotes, found a whole number
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    qwen.toml:10:13: autostart: expected `true` or `false`, found a string
      hint: write `autostart = true` or `autostart = false`, without quotes
    qwen.toml:11:16: env.PATH: expected a string, found a whole number
      hint: put it in quotes: `"1"`
    qwen.toml:11:19: env."A=B": is not the name of a variable, it cannot be empty or hold `=` or NUL
      hint: write `env = { NAME = "value" }`
    "#);
}

#[test]
fn the_model_is_the_one_thing_that_must_be_there() {
    assert_snapshot!(faults(""), @r#"
    qwen.toml: model: missing, a profile names its model
      hint: add `model = "FILE.gguf"` or `model = "org/repo:QUANT"`
    "#);
    assert_snapshot!(faults("model = ''"), @r#"
    qwen.toml:1:9: model: cannot be empty
      hint: write what is meant between the quotes, or take it out
    "#);
    assert_snapshot!(faults("model = 'llama'"), @r#"
    qwen.toml:1:9: model: `llama` names no model, expected a file (`….gguf`, `/…`, `./…`, `~/…`) or a hub repository (`org/repo`, `org/repo:QUANT`, either with `@REVISION`)
      hint: for a file beside the profile, write `llama.gguf` or `./llama`
    "#);
    assert_snapshot!(faults("model = '~/a.gguf'"), @r#"
    qwen.toml:1:9: model: `~/a.gguf` starts in a home directory, and there is none
      hint: write the whole path, or set `HOME` for the daemon
    "#);
    assert_snapshot!(faults("model = ['a.gguf']"), @r#"
    qwen.toml:1:9: model: expected a string, found an array
      hint: write `model = "…"`
    "#);
}

#[test]
fn syntax_errors_are_all_named_and_spare_their_line() {
    let text = "model = a.gguf\ncontext 4096\nparallel = 0\nthreads = \nargs = [\"a\" \"b\"]\n";
    assert_snapshot!(faults(text), @r#"
    qwen.toml:1:9: bad TOML: string values must be quoted
      hint: text stands in quotes: `key = "value"`
    qwen.toml:2:9: bad TOML: key with no value, expected `=`
      hint: a line is `key = value`; a remark starts with `#`
    qwen.toml:3:12: parallel: `0` is out of range, expected 1..=256
      hint: leave the key out to use the engine's own default
    qwen.toml:4:11: bad TOML: string values must be quoted
      hint: text stands in quotes: `key = "value"`
    qwen.toml:5:13: bad TOML: missing comma between array elements, expected `,`
      hint: text stands in quotes, a list in brackets with commas: `key = ["a", "b"]`
    "#);
    assert_snapshot!(faults("model = \"a.gguf\nthreads = 0\n"), @r#"
    qwen.toml:1:16: bad TOML: invalid basic string, expected `"`
      hint: text stands in quotes, a list in brackets with commas: `key = ["a", "b"]`
    qwen.toml:2:11: threads: `0` is out of range, expected 1..=1024
      hint: leave the key out to use the engine's own default
    "#);
    assert_snapshot!(faults("model = 'a.gguf'\nmodel = 'b.gguf'"), @r#"
    qwen.toml:2:1: bad TOML: duplicate key
      hint: keep one of the two
    "#);
    assert_snapshot!(faults("model = 'a.gguf'\nargs = [\"--verbose\",\nthreads = 4\n"), @r#"
    qwen.toml:3:9: bad TOML: unexpected `=` in array
      hint: an array above is not closed: add `]`
    "#);
}

#[test]
fn a_command_belongs_to_its_engine() {
    assert_snapshot!(faults("model = 'a.gguf'\ncommand = ['x', '{port}']"), @r#"
    qwen.toml:2:1: command: is only used with `engine = "command"`
      hint: add `engine = "command"`, or take `command` out
    "#);
    assert_snapshot!(faults("engine = 'command'"), @r#"
    qwen.toml: command: missing, `engine = "command"` needs the program and its arguments
      hint: add `command = ["PROGRAM", "--port", "{port}"]`
    "#);
    assert_snapshot!(faults("engine = 'command'\ncommand = []"), @r#"
    qwen.toml:2:1: command: cannot be empty
      hint: write `command = ["PROGRAM", "--port", "{port}"]`
    "#);
    assert_snapshot!(faults("engine = 'command'\ncommand = ['', '{port}']"), @r#"
    qwen.toml:2:12: command[0]: cannot be empty
      hint: write the program's name or path
    "#);
    assert_snapshot!(
        faults("engine = 'command'\ncommand = ['x', '{port}']\ncontext = 4096"),
        @r#"
    qwen.toml:3:1: context: is not used with `engine = "command"`
      hint: write it into `command` in the program's own words
    "#
    );
}

#[test]
fn a_stop_command_belongs_to_a_command_and_needs_no_address() {
    let stop = |words: &str| {
        faults(&format!("engine = 'command'\ncommand = ['x', '{{port}}']\nstop_command = {words}"))
    };
    assert_eq!(stop("['docker', 'stop', 'coder']"), "");
    assert_eq!(stop("['x', '{port}', '{socket}']"), "");
    assert_snapshot!(stop("[]"), @r#"
    qwen.toml:3:1: stop_command: cannot be empty
      hint: write `stop_command = ["PROGRAM", "ARGUMENT"]`
    "#);
    assert_snapshot!(stop("['x', '{prot}', '{model}']"), @r#"
    qwen.toml:3:22: stop_command[1]: unknown placeholder `{prot}`, expected one of `{port}`, `{socket}`, `{model}`
      hint: did you mean `{port}`?
    qwen.toml:3:32: stop_command[2]: `{model}` has nothing to stand for
      hint: add `model = "…"`, or write the model into `stop_command`
    "#);
    assert_snapshot!(faults("model = 'a.gguf'\nstop_command = ['x']"), @r#"
    qwen.toml:2:1: stop_command: is only used with `engine = "command"`
      hint: take it out: slotd ends this engine itself
    "#);
}

#[test]
fn a_command_says_where_to_listen_once() {
    let command =
        |arguments: &str| faults(&format!("engine = 'command'\ncommand = ['x', {arguments}]"));
    assert_eq!(command("'--port={port}'"), "");
    assert_eq!(command("'{socket}', '{{kept}}', '{\"a\": 1}'"), "");
    assert_snapshot!(command("'serve'"), @r#"
    qwen.toml:2:1: command: has neither `{port}` nor `{socket}`, expected one of them
      hint: tell the program where to listen: `"--port", "{port}"` (on 127.0.0.1)
    "#);
    assert_snapshot!(command("'{port}', '{socket}'"), @r#"
    qwen.toml:2:1: command: has both `{port}` and `{socket}`, expected one of them
      hint: keep the one that the program can listen on
    "#);
    assert_snapshot!(command("'{prot}', '{port}', '{name}'"), @r#"
    qwen.toml:2:17: command[1]: unknown placeholder `{prot}`, expected one of `{port}`, `{socket}`, `{model}`
      hint: did you mean `{port}`?
    qwen.toml:2:37: command[3]: unknown placeholder `{name}`, expected one of `{port}`, `{socket}`, `{model}`
      hint: to pass it on as it is, double the braces: `{{name}}`
    "#);
    assert_snapshot!(command("'{port}', '{model}'"), @r#"
    qwen.toml:2:27: command[2]: `{model}` has nothing to stand for
      hint: add `model = "…"`, or write the model into `command`
    "#);
}

#[test]
fn what_slotd_sets_itself_is_refused_with_the_key_to_use() {
    let text =
        "model = 'a.gguf'\nargs = ['-m', 'b.gguf', '--port=80', '--alias', 'x', '--api-key', 'k']";
    assert_snapshot!(faults(text), @r#"
    qwen.toml:2:9: args[0]: `-m` is set by slotd
      hint: use the key `model`
    qwen.toml:2:25: args[2]: `--port` is set by slotd
      hint: take it out: the engine listens in private, clients use slotd's endpoint
    qwen.toml:2:38: args[3]: `--alias` is set by slotd
      hint: use the key `aliases`
    qwen.toml:2:54: args[5]: `--api-key` is set by slotd
      hint: take it out: only slotd can reach the engine
    "#);
}

#[test]
fn words_of_other_programs_are_understood() {
    assert_snapshot!(faults("model = 'a.gguf'\nctx_size = 1\nname = 'x'\nport = 1\nmax_body = 1\ncolour = 1"), @r#"
    qwen.toml:2:1: ctx_size: unknown key
      hint: did you mean `context`?
    qwen.toml:3:1: name: unknown key
      hint: the slot's name is the name of the file
    qwen.toml:4:1: port: unknown key
      hint: slotd picks where an engine listens: take the key out
    qwen.toml:5:1: max_body: unknown key
      hint: `max_body` is a key of the daemon's own file, `slotd.toml`
    qwen.toml:6:1: colour: unknown key
      hint: the keys are `model`, `engine`, `command`, `stop_command`, `url`, `args`, `env`, `aliases`, `routes`, `resume`, `capabilities`, `context`, `parallel`, `threads`, `gpu_layers`, `ladder`, `autostart`, `essential`, `max_restarts`, `start_timeout`, `stop_timeout`, `hang_timeout`, `idle_timeout`, `on_exit`, `pull`, `memory`, `gpu_memory`, `pinned`, `pressure_evict_only`, `priority`, `min_residency`, `when_full`, `restore`, `needs`, `lane`, `queue_timeout`, `on_client_gone`, `params`, `variants`
    "#);
}

#[test]
fn numbers_have_ranges_and_durations_have_units() {
    let text = "model = 'a.gguf'\nthreads = 1025\ngpu_layers = -1\nparallel = 1.5\nmax_restarts = 99999999999999999999999999999999999999999\ncontext = 0x10\nstop_timeout = '2h'\nstart_timeout = 'soon'\nidle_timeout = '5'";
    assert_snapshot!(faults(text), @r#"
    qwen.toml:2:11: threads: `1025` is out of range, expected 1..=1024
      hint: leave the key out to use the engine's own default
    qwen.toml:3:14: gpu_layers: `-1` is out of range, expected 0..=10000
      hint: leave the key out to use the engine's own default
    qwen.toml:4:12: parallel: expected a whole number in 1..=256, found a fraction
      hint: leave the key out to use the engine's own default
    qwen.toml:5:16: max_restarts: `99999999999999999999999999999999999999999` is out of range, expected 0..=1000
      hint: to never give up on the slot, set `essential = true`
    qwen.toml:6:11: context: `0x10` is out of range, expected 256..=1048576
      hint: leave the key out to use the engine's own default
    qwen.toml:7:16: stop_timeout: `2h` is out of range, expected 0s..=1h
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    qwen.toml:8:17: start_timeout: `soon` does not start with a number
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    qwen.toml:9:16: idle_timeout: `5` has no unit that is known, use one of `ms`, `s`, `m`, `h`, `d`
      hint: write a whole number and a unit: `"90s"`, `"5m"`
    "#);
}

#[test]
fn a_nul_and_a_line_break_are_shown_harmlessly() {
    assert_snapshot!(faults("model = 'a.gguf'\nargs = [\"\\u0000\"]\nengine = \"a\\nb\""), @r#"
    qwen.toml:2:9: args[0]: cannot hold a NUL character
      hint: no program can be given one: take the `\u0000` out
    qwen.toml:3:10: engine: `a␣b` is not one of `auto`, `llama-server`, `candle`, `command`, `external`
      hint: leave it out to use the default
    "#);
}

#[test]
fn a_file_full_of_nonsense_is_answered_at_once_and_in_short() {
    let junk = |line: &str| line.repeat(1_000_000 / line.len());
    for text in [
        junk("what is this\n"),
        junk("a = b\n"),
        junk("{"),
        format!("aliases = [{}]", junk("'a b',")),
        format!("engine = 'command'\ncommand = ['{}']", junk("{")),
        format!("{} = 1", junk("x")),
        (0..100_000).fold(String::new(), |text, number| text + &format!("k{number} = 1\n")),
    ] {
        let shown = faults(&text);
        assert!(shown.lines().count() < 250, "{} lines", shown.lines().count());
        assert!(shown.len() < 100_000, "{} bytes", shown.len());
    }
}

#[test]
fn an_engine_that_somebody_else_runs_has_an_address_and_nothing_to_start() {
    assert_snapshot!(faults("engine = 'external'\nautostart = true\ncontext = 4096"), @r#"
    qwen.toml: url: missing, `engine = "external"` needs to know where the engine is
      hint: write `url = "http://127.0.0.1:8080"`, or `url = "unix:/path/of/its.sock"`
    qwen.toml:2:1: autostart: is not used with `engine = "external"`
      hint: take it out: whoever runs the engine decides that
    qwen.toml:3:1: context: is not used with `engine = "external"`
      hint: take it out: whoever runs the engine decides that
    "#);
    assert_snapshot!(faults("engine = 'external'\nurl = 'https://127.0.0.1:1'"), @"
    qwen.toml:2:7: url: `https://127.0.0.1:1` needs TLS, which slotd does not speak to engines
      hint: use the engine's plain address, or a proxy on this machine that speaks TLS
    ");
    assert_snapshot!(faults("model = 'a.gguf'\nurl = 'http://127.0.0.1:1'"), @r#"
    qwen.toml:2:1: url: is only used with `engine = "external"`
      hint: add `engine = "external"`, or take `url` out
    "#);
    let whole = "engine = 'external'\nurl = 'http://127.0.0.1:1/v1'\nmodel = 'any name'\nparallel = 2\nstop_timeout = '5s'\naliases = ['b']\ncapabilities = ['chat']";
    assert_eq!(faults(whole), "");
}

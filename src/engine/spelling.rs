//! Options of llama-server that other versions spell in another way.

use super::Flags;

/// Each pair means the same. Source: `common/arg.cpp` of llama.cpp; the newer ones by the help of b11434.
const SPELLINGS: [(&[&str], &[&str]); 3] = [
    (&["--no-mmap"], &["--load-mode", "none"]),
    (&["--mlock"], &["--load-mode", "mmap+mlock"]),
    (&["--no-webui"], &["--no-ui"]),
];

/// Spells the arguments of a profile as this version does: an option that its help does not name, and
/// that it names under another spelling, is written in that one. All else stays as it is.
pub(super) fn spelled(args: &[String], flags: &Flags) -> Vec<String> {
    let mut rest = args;
    let mut spelled = Vec::new();
    while let Some((first, after)) = rest.split_first() {
        let found = SPELLINGS
            .iter()
            .flat_map(|(one, other)| [(*one, *other), (*other, *one)])
            .find(|(old, new)| {
                let names = |option: &[&str]| option.first().is_some_and(|it| flags.names(it));
                rest.len() >= old.len()
                    && rest.iter().zip(*old).all(|(found, wanted)| found == wanted)
                    && !names(old)
                    && names(new)
            });
        if let Some((old, new)) = found {
            spelled.extend(new.iter().map(|&word| word.to_owned()));
            rest = rest.get(old.len()..).unwrap_or_default();
        } else {
            spelled.push(first.clone());
            rest = after;
        }
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled_for(help: &str, args: &str) -> String {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        spelled(&args, &Flags::parse(help)).join(" ")
    }

    #[test]
    fn an_option_is_spelled_as_the_version_at_hand_does() {
        let (old, new) = ("--no-mmap\n--mlock\n--no-webui\n", "--load-mode MODE\n--ui, --no-ui\n");
        assert_eq!(spelled_for(new, "--no-mmap --jinja"), "--load-mode none --jinja");
        assert_eq!(spelled_for(old, "--jinja --load-mode none"), "--jinja --no-mmap");
        assert_eq!(spelled_for(new, "--mlock --no-webui"), "--load-mode mmap+mlock --no-ui");
        assert_eq!(spelled_for(old, "--no-mmap --no-webui"), "--no-mmap --no-webui");
        assert_eq!(spelled_for(old, "--load-mode mmap"), "--load-mode mmap", "no other spelling");
        assert_eq!(spelled_for("", "--no-mmap"), "--no-mmap", "without help nothing is known");
        assert_eq!(spelled_for(old, "--load-mode"), "--load-mode");
    }
}

//! The text of `model`: a file, or a repository of the hub.
//!
//! 1. A text with a path's look (`/…`, `./…`, `../…`, `~/…`), one that ends in `.gguf`, and one
//!    that names something beside the profile is a file.
//! 2. `org/repo` and `org/repo:QUANT`, either with `@REVISION`, name a repository of the Hugging Face hub.
//! 3. Anything else names nothing.

use std::path::Path;

use super::{Context, words::cut};
use crate::spec::profile::ModelSource;

/// Says why a text names no model, and what to write instead.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct NoModel {
    pub(super) message: String,
    pub(super) hint: String,
}

/// Reads the text of `model` in a profile of the folder `beside`. Looks whether a file of that name
/// lies there; whether a model is whole is not looked at.
pub(super) fn read(typed: &str, beside: &Path, context: &Context) -> Result<ModelSource, NoModel> {
    let file = |candidates| Ok(ModelSource::File { typed: typed.to_owned(), candidates });
    if let Some(rest) = typed.strip_prefix("~/") {
        return match &context.home {
            Some(home) => file(vec![home.join(rest)]),
            None => Err(no_home(typed)),
        };
    }
    if is_pathlike(typed) {
        // An absolute path replaces the folder.
        return file(vec![beside.join(typed)]);
    }
    if is_gguf(typed) || beside.join(typed).exists() {
        let others = context.model_dirs.iter().map(|folder| folder.join(typed));
        return file([beside.join(typed)].into_iter().chain(others).collect());
    }
    hub(typed).ok_or_else(|| nothing(typed)) // (2) (3)
}

fn is_pathlike(typed: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| typed.starts_with(start))
}

fn is_gguf(typed: &str) -> bool {
    Path::new(typed).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn hub(typed: &str) -> Option<ModelSource> {
    let (typed, revision) = match typed.split_once('@') {
        Some((typed, revision)) => (typed, Some(revision)),
        None => (typed, None),
    };
    let (repo, quant) = match typed.split_once(':') {
        Some((repo, quant)) => (repo, Some(quant)),
        None => (typed, None),
    };
    let (org, name) = repo.split_once('/')?;
    let is_legal = is_hub_name(org)
        && is_hub_name(name)
        && quant.is_none_or(is_hub_name)
        && revision.is_none_or(is_hub_revision);
    let owned = |part: Option<&str>| part.map(str::to_owned);
    let (quant, revision) = (owned(quant), owned(revision));
    is_legal.then(|| ModelSource::Hub { repo: repo.to_owned(), quant, revision })
}

/// Tells whether a revision can be a part of a URL and a path below `refs`: `v1.0`, `refs/pr/7`.
pub fn is_hub_revision(text: &str) -> bool {
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    (1..=255).contains(&text.len())
        && text.chars().all(is_allowed)
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// Tells whether a text can be a part of a repository's name.
/// Source: `validate_repo_id` of `huggingface_hub`: up to 96 characters of letters, digits, `-`, `_`
/// and `.`, none of `-` and `.` first or last, no `--` and no `..`.
pub fn is_hub_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&name.len())
        && name.chars().all(is_allowed)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !name.contains("--")
        && !name.contains("..")
}

fn no_home(typed: &str) -> NoModel {
    NoModel {
        message: format!("`{}` starts in a home directory, and there is none", cut(typed)),
        hint: "write the whole path, or set `HOME` for the daemon".to_owned(),
    }
}

fn nothing(typed: &str) -> NoModel {
    let typed = cut(typed);
    let message = format!(
        "`{typed}` names no model, expected a file (`….gguf`, `/…`, `./…`, `~/…`) or a hub repository \
         (`org/repo`, `org/repo:QUANT`, either with `@REVISION`)"
    );
    let hint = match typed.rsplit_once("huggingface.co/") {
        Some((_, rest)) => {
            let repo = rest.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
            format!("write the repository alone: `{repo}`")
        }
        None if typed.starts_with('~') => "write `~/…`, or the whole path".to_owned(),
        None if typed.contains('/') => {
            "for a folder or file, write the whole path or start with `./`".to_owned()
        }
        None => format!("for a file beside the profile, write `{typed}.gguf` or `./{typed}`"),
    };
    NoModel { message, hint }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn context() -> Context {
        Context { model_dirs: vec!["/models".into()], home: Some("/home/ada".into()), rules: None }
    }

    fn candidates(typed: &str) -> Vec<PathBuf> {
        match read(typed, Path::new("/etc/slotd/profiles"), &context()) {
            Ok(ModelSource::File { candidates, .. }) => candidates,
            other => panic!("`{typed}` is not a file: {other:?}"),
        }
    }

    #[test]
    fn a_bare_file_name_is_looked_up_beside_the_profile_then_in_the_model_directories() {
        let expected = ["/etc/slotd/profiles/a.gguf", "/models/a.gguf"].map(PathBuf::from);
        assert_eq!(candidates("a.gguf"), expected);
    }

    #[test]
    fn a_path_is_looked_up_where_it_points() {
        assert_eq!(candidates("/srv/a.gguf"), [PathBuf::from("/srv/a.gguf")]);
        assert_eq!(candidates("~/a.gguf"), [PathBuf::from("/home/ada/a.gguf")]);
        assert_eq!(candidates("./a"), [PathBuf::from("/etc/slotd/profiles/./a")]);
    }

    #[test]
    fn a_repository_may_name_its_quantisation() {
        let hub = |typed: &str| read(typed, Path::new("/nowhere"), &context());
        let source = |quant: Option<&str>| ModelSource::Hub {
            repo: "org/re.po".into(),
            quant: quant.map(Into::into),
            revision: None,
        };
        assert_eq!(hub("org/re.po"), Ok(source(None)));
        assert_eq!(hub("org/re.po:Q4_K_M"), Ok(source(Some("Q4_K_M"))));
    }

    #[test]
    fn a_repository_may_name_its_revision() {
        for typed in ["org/repo@v1.0", "org/repo:Q8_0@refs/pr/7", "o/r@0123456789abcdef"] {
            let read = read(typed, Path::new("/nowhere"), &context()).unwrap();
            let ModelSource::Hub { revision, .. } = &read else { panic!("{read:?}") };
            assert_eq!(revision.as_deref(), typed.split_once('@').map(|(_, revision)| revision));
            assert_eq!(read.typed(), typed);
        }
        for typed in ["o/r@", "o/r@../x", "o/r@a//b", "o/r@.x", "o/r@a b", "o/r@a@b"] {
            assert!(read(typed, Path::new("/nowhere"), &context()).is_err(), "{typed}");
        }
    }

    #[test]
    fn what_names_nothing_gets_the_way_to_write_it() {
        let hint = |typed: &str| read(typed, Path::new("/nowhere"), &context()).unwrap_err().hint;
        assert_eq!(
            hint("https://huggingface.co/org/repo/tree/main"),
            "write the repository alone: `org/repo`"
        );
        assert!(hint("llama").contains("`llama.gguf`"));
        for typed in ["a//b", "org/repo:", "org/repo:a:b", "-a/b", "a/b/c", "a b/c", "~"] {
            assert!(read(typed, Path::new("/nowhere"), &context()).is_err(), "{typed}");
        }
    }

    #[test]
    fn a_home_directory_is_needed_only_where_it_is_named() {
        let homeless = Context::default();
        assert!(read("~/a.gguf", Path::new("/nowhere"), &homeless).is_err());
        assert!(read("a.gguf", Path::new("/nowhere"), &homeless).is_ok());
    }
}

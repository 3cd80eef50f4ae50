//! Real edits on real files.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

use super::{super::watch::Watch, Context, Folder, load};

const GOOD: &str = "model = 'a.gguf'\n";

/// How long news may take at most before a test gives up.
const DEADLINE: Duration = Duration::from_secs(10);

/// A watch on `profiles` in a folder.
#[derive(Debug)]
struct Watched {
    folder: Folder,
    news: mpsc::Receiver<()>,
    _watch: Watch,
}

impl Watched {
    fn on(folder: Folder) -> Self {
        let (tx, news) = mpsc::channel(1);
        let watch = Watch::start(vec![folder.path("profiles")], tx).expect("the system can watch");
        Self { folder, news, _watch: watch }
    }

    fn model(&self) -> Option<String> {
        let loaded = load(&[self.folder.path("profiles")], &Context::default());
        Some(loaded.profiles.get("chat")?.model.as_ref()?.typed())
    }

    /// Reads again at each piece of news until `chat` has the model `expected`; counts the news.
    async fn until(&mut self, expected: Option<&str>) -> usize {
        let mut count = 0;
        loop {
            let news = timeout(DEADLINE, self.news.recv()).await;
            assert_eq!(news, Ok(Some(())), "`chat` has {:?}, expected {expected:?}", self.model());
            count += 1;
            if self.model().as_deref() == expected {
                return count;
            }
        }
    }
}

fn folder() -> Folder {
    Folder::with(&[("profiles/chat.toml", GOOD)])
}

#[tokio::test]
async fn a_write_is_seen() {
    let mut watched = Watched::on(folder());
    watched.folder.write("profiles/chat.toml", "model = 'b.gguf'");
    watched.until(Some("b.gguf")).await;
}

#[tokio::test]
async fn a_rename_over_is_seen() {
    let mut watched = Watched::on(folder());
    watched.folder.write("profiles/.chat.toml.new", "model = 'b.gguf'");
    fs::rename(
        watched.folder.path("profiles/.chat.toml.new"),
        watched.folder.path("profiles/chat.toml"),
    )
    .unwrap();
    watched.until(Some("b.gguf")).await;
}

#[tokio::test]
async fn a_file_that_is_half_written_is_seen_again_when_it_is_whole() {
    let mut watched = Watched::on(folder());
    let mut file = File::create(watched.folder.path("profiles/chat.toml")).unwrap();
    file.write_all(b"model = 'b.").unwrap();
    watched.until(None).await;
    file.write_all(b"gguf'").unwrap();
    watched.until(Some("b.gguf")).await;
}

#[tokio::test]
async fn a_new_file_and_a_deleted_one_are_seen() {
    let mut watched = Watched::on(folder());
    watched.folder.remove("profiles/chat.toml");
    watched.until(None).await;
    watched.folder.write("profiles/chat.toml", GOOD);
    watched.until(Some("a.gguf")).await;
}

#[tokio::test]
async fn many_quick_edits_are_few_looks_and_the_last_one_wins() {
    let mut watched = Watched::on(folder());
    for number in 0..100 {
        watched.folder.write("profiles/chat.toml", &format!("model = '{number}.gguf'"));
        // Let the watch run in between, as it would with an editor.
        tokio::task::yield_now().await;
    }
    let looks = watched.until(Some("99.gguf")).await;
    assert!(looks <= 10, "{looks} looks for 100 edits");
}

#[tokio::test]
async fn a_file_that_says_what_it_said_wakes_nobody() {
    let mut watched = Watched::on(folder());
    watched.folder.write("profiles/chat.toml", GOOD);
    watched.folder.write("profiles/notes.txt", "not a profile");
    watched.folder.write("profiles/.chat.toml.swp", "an editor's");
    // Had the touched file woken the reader, the model would still be the old one at the first news.
    let quiet = timeout(Duration::from_millis(400), watched.news.recv()).await;
    assert!(quiet.is_err(), "nothing changed, and yet: {quiet:?}");
    watched.folder.write("profiles/chat.toml", "model = 'b.gguf'");
    assert_eq!(watched.until(Some("b.gguf")).await, 1);
}

#[tokio::test]
async fn a_directory_that_is_made_later_is_seen() {
    let mut watched = Watched::on(Folder::with(&[]));
    watched.folder.write("profiles/chat.toml", GOOD);
    watched.until(Some("a.gguf")).await;
    watched.folder.write("profiles/chat.toml", "model = 'b.gguf'");
    watched.until(Some("b.gguf")).await;
}

#[tokio::test]
async fn a_directory_deep_in_one_that_is_made_later_is_seen() {
    let folder = Folder::with(&[]);
    let deep = folder.path("a/b/c/profiles");
    let (tx, mut news) = mpsc::channel(1);
    let _watch = Watch::start(vec![deep.clone()], tx).unwrap();
    folder.write("a/b/c/profiles/chat.toml", GOOD);
    loop {
        assert_eq!(timeout(DEADLINE, news.recv()).await, Ok(Some(())));
        if load(std::slice::from_ref(&deep), &Context::default()).profiles.len() == 1 {
            return;
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_seen_and_watched_on() {
    let mut watched = Watched::on(folder());
    watched.folder.write("next/chat.toml", "model = 'b.gguf'");
    fs::rename(watched.folder.path("profiles"), watched.folder.path("old")).unwrap();
    fs::rename(watched.folder.path("next"), watched.folder.path("profiles")).unwrap();
    watched.until(Some("b.gguf")).await;
    watched.folder.write("profiles/chat.toml", "model = 'c.gguf'");
    watched.until(Some("c.gguf")).await;
}

/// Points a link elsewhere in one step, as deployments do.
fn point(folder: &Folder, link: &str, target: PathBuf) {
    symlink(target, folder.path("new-link")).unwrap();
    fs::rename(folder.path("new-link"), folder.path(link)).unwrap();
}

#[tokio::test]
async fn a_link_to_a_directory_that_is_pointed_elsewhere_is_seen() {
    let folder = Folder::with(&[("v1/chat.toml", GOOD), ("v2/chat.toml", "model = 'b.gguf'")]);
    point(&folder, "profiles", folder.path("v1"));
    let mut watched = Watched::on(folder);
    point(&watched.folder, "profiles", watched.folder.path("v2"));
    watched.until(Some("b.gguf")).await;
    watched.folder.write("v2/chat.toml", "model = 'c.gguf'");
    watched.until(Some("c.gguf")).await;
}

#[tokio::test]
async fn an_edit_behind_a_link_to_a_file_is_seen() {
    let folder = Folder::with(&[("elsewhere/qwen.toml", GOOD), ("profiles/x.txt", "")]);
    symlink(folder.path("elsewhere/qwen.toml"), folder.path("profiles/chat.toml")).unwrap();
    let mut watched = Watched::on(folder);
    watched.folder.write("elsewhere/qwen.toml", "model = 'b.gguf'");
    watched.until(Some("b.gguf")).await;
}

#[tokio::test]
async fn dropping_the_watch_ends_it() {
    let folder = folder();
    let (tx, mut news) = mpsc::channel(1);
    let watch = Watch::start(vec![folder.path("profiles")], tx).unwrap();
    drop(watch);
    assert_eq!(timeout(DEADLINE, news.recv()).await, Ok(None));
}

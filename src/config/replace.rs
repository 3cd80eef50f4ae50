//! Files of people that slotd changes: one value alone, and never half of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::Path,
    process,
};

use toml::de::DeTable;

/// Returns the text of a profile with another `model`, everything else as it is; nothing where the
/// text has no such key, or has faults.
pub fn with_model(text: &str, model: &str) -> Option<String> {
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mark = text.len() - body.len();
    let table = DeTable::parse(body).ok()?;
    let value = table.get_ref().get("model")?;
    value.get_ref().as_str()?;
    let span = value.span();
    let (before, after) = (text.get(..mark + span.start)?, text.get(mark + span.end..)?);
    // The name of a model has no characters that TOML would want escaped.
    Some(format!("{before}\"{model}\"{after}"))
}

/// Replaces a file as a whole; a link stays one, owner and mode stay.
///
/// # Errors
/// Those of the files; what was there before is then still there.
pub fn replace_file(file: &Path, text: &str) -> io::Result<()> {
    let file = file.canonicalize()?;
    let metadata = fs::metadata(&file)?;
    let aside = file.with_extension(format!("{}.new", process::id()));
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let written = fchown(&new, Some(metadata.uid()), Some(metadata.gid()))
        .and_then(|()| new.set_permissions(metadata.permissions()))
        .and_then(|()| new.write_all(text.as_bytes()))
        .and_then(|()| new.sync_all())
        .and_then(|()| fs::rename(&aside, &file));
    if written.is_err() {
        // It is of no use, and the first fault is what counts.
        drop(fs::remove_file(&aside));
    }
    written?;
    // The name is on the disk once its folder is.
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_model_changes_nothing_else() {
        let text = "\u{feff}# \u{e9}: model = \"x\"\nengine = 'auto'\n  model='o/r:Q4' # pinned\n\n[env]\nmodel = \"m\"\n";
        let changed = with_model(text, "o/r:Q4@v2").unwrap();
        assert_eq!(changed, text.replace("'o/r:Q4'", "\"o/r:Q4@v2\""));
        let multiline = with_model("model = \"\"\"o/r\"\"\"\r\ncontext = 1\r\n", "o/r@v2").unwrap();
        assert_eq!(multiline, "model = \"o/r@v2\"\r\ncontext = 1\r\n");
    }

    #[test]
    fn a_text_without_a_model_or_with_faults_is_left_alone() {
        for text in ["", "[env]\nmodel = \"m\"\n", "model = 3\n", "model = \"o/r\"\nmodel ="] {
            assert_eq!(with_model(text, "o/r@v2"), None, "{text}");
        }
    }
}

//! Files of keys and values.

use crate::store::Text;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The keys and values of a file, checked from beginning to end before anything is written. They
/// are going to be written in any order, so of a key that comes twice only the last line counts.
pub(crate) fn read(file: &Path) -> Result<BTreeMap<Text, Text>, String> {
    let text = fs::read_to_string(file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let pairs = lines.map(|(index, line)| match line.split_once('\t') {
        Some((key, value)) if !key.is_empty() => Ok((Text::from(key), Text::from(value))),
        _ => Err(format!(
            "{}:{}: nothing was loaded, this line is no KEY<TAB>VALUE: {line:?}",
            file.display(),
            index + 1
        )),
    });
    pairs.collect()
}

/// Shows on a terminal how far it is; elsewhere it shows nothing.
pub(crate) fn progress_bar(len: usize) -> ProgressBar {
    let form = "{bar:40} {pos} of {len}, {eta} left";
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len as u64).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read_text(text: &[u8]) -> Result<BTreeMap<Text, Text>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        read(file.path())
    }

    #[test]
    fn a_line_is_a_key_a_tab_and_a_value() {
        let pairs = read_text(b"a\t1\r\n\nb c\t2\t3\na\t4\n").unwrap();
        let pairs = pairs.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>();
        assert_eq!(pairs, [("a", "4"), ("b c", "2\t3")]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for wrong in [&b"a\t1\nb 2\n"[..], b"a\t1\n\t2\n"] {
            let mistake = read_text(wrong).unwrap_err();
            assert!(mistake.contains(":2: nothing was loaded"), "{mistake}");
        }
        assert!(read_text(b"a\t\xff\n").unwrap_err().contains("cannot be read"));
        assert!(
            read(Path::new("no/such/file")).unwrap_err().contains("no/such/file cannot be read")
        );
    }
}

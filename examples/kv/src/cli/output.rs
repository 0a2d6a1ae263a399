//! What is printed: text for people, or JSON, a value a line, for programs.

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{Result, Write, stdout};
use std::time::Duration;

/// For whom output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON value a line
    Json,
}

impl Output {
    /// Prints something in one way or the other.
    pub(crate) fn print(self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        match self {
            Output::Json => {
                let line = serde_json::to_string(json).map_err(std::io::Error::other)?;
                writeln!(stdout(), "{line}")
            }
            Output::Text => writeln!(stdout(), "{}", text().trim_end_matches('\n')),
        }
    }
}

/// Columns under headings; those whose heading begins with `>` to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cell = |(column, cell): (usize, &&str)| match headings[column].starts_with('>') {
            true => format!("{cell:>0$}", widths[column]),
            false => format!("{cell:<0$}", widths[column]),
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let head = line(headings.iter().map(|heading| heading.trim_start_matches('>')).collect());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [head].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// A value as part of a line: text as it is, without what would break the line.
pub(crate) fn preview(value: &[u8]) -> String {
    const MOST: usize = 60;
    let text: String = String::from_utf8_lossy(value).escape_debug().take(MOST + 1).collect();
    match text.chars().count() > MOST {
        true => text.chars().take(MOST).chain(['…']).collect(),
        false => text,
    }
}

/// A bar for long work with a known end. Drawn on a terminal only.
pub(crate) fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

/// The same, for work whose end is not known.
pub(crate) fn spinner(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

//! Runs the scripts in `tests/scripts`: each drives a cluster by hand and holds what must happen.
//!
//! A script is a text file of blocks, separated by blank lines. A block has comments (`#`), commands,
//! a line `---`, and what happens then. The commands are listed in `runner/commands.rs`. After every
//! turn of every replica the laws of `runner/laws.rs` are checked as well.
//!
//! ```text
//! cargo test -p little_raft --test scripts                   compares
//! UPDATE=1 cargo test -p little_raft --test scripts          writes what happens into the scripts
//! SCRIPT=one,two cargo test -p little_raft --test scripts    takes those with this in their names
//! ```

mod runner;

use runner::Cluster;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// What a block expects lies below this line.
const RULE: &str = "---";

/// The commands of a block, comments included, and what it expects.
struct Block {
    line: usize,
    commands: Vec<String>,
    expected: Option<Vec<String>>,
}

fn parse(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut blank = true;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if !line.is_empty() && blank {
            blocks.push(Block { line: number + 1, commands: Vec::new(), expected: None });
        }
        blank = line.is_empty();
        match blocks.last_mut() {
            Some(block) if line == RULE => block.expected = Some(Vec::new()),
            Some(block) if !blank => {
                block.expected.as_mut().unwrap_or(&mut block.commands).push(line.to_string());
            }
            _ => {}
        }
    }
    blocks
}

fn print(blocks: &[Block]) -> String {
    let print = |block: &Block| {
        let mut lines = block.commands.clone();
        lines.extend(
            block.expected.iter().flat_map(|lines| [RULE.into()].into_iter().chain(lines.clone())),
        );
        lines.join("\n") + "\n"
    };
    blocks.iter().map(print).collect::<Vec<_>>().join("\n")
}

/// Runs a script. Returns it with what has happened or, if a command panics, where and why.
fn run(blocks: &[Block]) -> Result<Vec<Block>, String> {
    let mut cluster = Cluster::default();
    let mut happened = Vec::new();
    for block in blocks {
        for (number, command) in block.commands.iter().enumerate() {
            if command.starts_with('#') {
                continue;
            }
            let ran = catch_unwind(AssertUnwindSafe(|| cluster.command(command)));
            ran.map_err(|panic| {
                let message = panic.downcast_ref::<String>().cloned();
                let text =
                    message.or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string()));
                let (line, text) = (block.line + number, text.unwrap_or_default());
                format!(
                    "line {line}, `{command}`: {text}\nUntil then:\n{}",
                    cluster.take_output().join("\n")
                )
            })?;
        }
        let (line, commands) = (block.line, block.commands.clone());
        let is_prose = commands.iter().all(|command| command.starts_with('#'));
        let expected = cluster.take_output();
        happened.push(Block { line, commands, expected: (!is_prose).then_some(expected) });
    }
    Ok(happened)
}

/// The first difference between what a script expects and what has happened.
fn difference(expected: &[Block], happened: &[Block]) -> Option<String> {
    let pairs = expected.iter().zip(happened);
    let (expected, happened) =
        pairs.into_iter().find(|(one, other)| one.expected != other.expected)?;
    let show = |block: &Block| block.expected.clone().unwrap_or_default().join("\n");
    let commands = expected.commands.join("\n");
    let (line, expected, happened) = (expected.line, show(expected), show(happened));
    Some(format!(
        "line {line}:\n{commands}\n--- expected\n{expected}\n--- happened\n{happened}\n---"
    ))
}

fn run_file(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let blocks = parse(&text);
    let happened = run(&blocks)?;
    if std::env::var_os("UPDATE").is_some() {
        return fs::write(path, print(&happened)).map_err(|error| error.to_string());
    }
    difference(&blocks, &happened).map_or(Ok(()), Err)
}

#[test]
fn every_script_happens_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let entries = fs::read_dir(&directory).expect("the directory of the scripts is there");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a readable entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    if let Ok(wanted) = std::env::var("SCRIPT") {
        let wanted: Vec<&str> = wanted.split(',').collect();
        let is_wanted = |path: &Path| wanted.iter().any(|it| path.to_string_lossy().contains(it));
        paths.retain(|path| is_wanted(path));
    }
    paths.sort();
    assert!(!paths.is_empty(), "no script in {} is wanted", directory.display());
    let failures: Vec<String> = paths
        .iter()
        .filter_map(|path| Some((path, run_file(path).err()?)))
        .map(|(path, failure)| format!("\n{}, {failure}\n", path.display()))
        .collect();
    let (failed, all) = (failures.len(), paths.len());
    assert!(failures.is_empty(), "{failed} of {all} scripts failed:\n{}", failures.concat());
}

//! A cluster of replicas in one process, to play with.
//!
//! To read: `store` is the state machine, `network` carries messages, `cluster` runs a replica per
//! thread, `client` finds the leader and has each write applied exactly once, `board` is where
//! threads wait for each other, `console` does what is typed.

mod board;
mod client;
mod cluster;
mod command;
mod console;
mod load;
mod network;
mod prompt;
mod store;
mod tables;

use ::console::style;
use clap::Parser;
use cluster::Cluster;
use command::Command;
use console::Console;
use prompt::Input;
use std::io::{Error, ErrorKind, Result, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A cluster of replicas in one process, to play with. Without a command it asks for commands, on a
/// terminal, or takes them from a pipe; `help` lists them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many replicas to start with
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    replicas: u8,
    /// Take the commands from a file
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// Entries between two snapshots, 0 for none
    #[arg(long, value_name = "ENTRIES", default_value_t = 1000)]
    snapshot_delta: usize,
    /// How long to wait for an outcome before it is called unknown
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    time_limit: u64,
    /// Show what the replicas log; RUST_LOG chooses how much
    #[arg(long)]
    log: bool,
    /// A command to run instead, for example: load words.txt
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    }
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("playground: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all commands there are. Says whether all went well.
fn run(arguments: Arguments) -> Result<bool> {
    // What is wrong with what was typed comes before anything is started.
    let command = match arguments.command.as_slice() {
        [] => None,
        words => Some(Command::parse(words).map_err(|it| Error::new(ErrorKind::InvalidInput, it))?),
    };
    let mut input = Input::new(arguments.file.as_deref())?;
    let cluster = Cluster::start(arguments.replicas.into(), arguments.snapshot_delta)?;
    let mut console = Console::new(cluster, Duration::from_secs(arguments.time_limit));
    let greeting = console.greet();
    let mut well = true;
    match command {
        Some(command) => {
            let result = console.execute(command);
            well = answer(&console.whereabouts(), result)?;
        }
        None => {
            answer(&console.whereabouts(), Ok(greeting))?;
            while let Some(line) = input.next()? {
                let result = match Command::parse_line(&line) {
                    Ok(None) => continue,
                    Ok(Some(Command::Quit)) => break,
                    Ok(Some(command)) => console.execute(command),
                    Err(mistake) => Err(mistake),
                };
                well &= answer(&console.whereabouts(), result)?;
            }
        }
    }
    let stopped = console.quit().map(|()| "all replicas are stopped".to_string());
    Ok(well & answer("", stopped)?)
}

/// Prints what has happened, and where the leader is. Says whether it went well.
fn answer(whereabouts: &str, result: std::result::Result<String, String>) -> Result<bool> {
    let well = result.is_ok();
    let gap = if result.as_ref().is_ok_and(|text| text.contains('\n')) { "\n" } else { "  " };
    // Colours are for terminals only, which `style` finds out.
    let text = result.map_or_else(|mistake| style(mistake).red(), style);
    match whereabouts {
        "" => writeln!(stdout(), "{text}")?,
        _ => writeln!(stdout(), "{text}{gap}{}", style(format!("[{whereabouts}]")).dim())?,
    }
    Ok(well)
}

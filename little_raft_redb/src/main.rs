//! Looks into the directory of a replica, and puts another configuration in force after the loss of
//! a quorum.

use std::io::{Error, ErrorKind, Result};
use std::process::ExitCode;

const USAGE: &str = "\
usage: little_raft_redb inspect DIRECTORY
       little_raft_redb recover DIRECTORY --voters 1,2 [--accept-loss]

inspect  prints term, vote, configuration, log and snapshot, and verifies every checksum; it changes
         nothing
recover  replaces the configuration by these voters and records that it did; for the loss of a
         quorum only: stop all replicas, run it in the directory of each that is left, and never
         start one of the others again

Stop the replica first. --accept-loss goes on with what can still be read of a directory that has
lost acknowledged saves.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<String> {
    match *arguments {
        ["inspect", directory] => Ok(little_raft_redb::inspect(directory)?.to_string()),
        ["recover", directory, "--voters", voters] => recover(directory, voters, false),
        ["recover", directory, "--voters", voters, "--accept-loss"] => {
            recover(directory, voters, true)
        }
        ["--help" | "-h"] => Ok(USAGE.to_string()),
        _ => Err(Error::new(ErrorKind::InvalidInput, USAGE)),
    }
}

fn recover(directory: &str, voters: &str, accept_loss: bool) -> Result<String> {
    let ids: std::result::Result<Vec<usize>, _> = voters.split(',').map(str::parse).collect();
    let ids = ids.map_err(|_| {
        let text = format!("{voters:?} is no list of replicas; write it as in 1,2");
        Error::new(ErrorKind::InvalidInput, text)
    })?;
    little_raft_redb::recover(directory, ids, accept_loss)?;
    Ok(little_raft_redb::inspect(directory)?.to_string())
}

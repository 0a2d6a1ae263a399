//! The command line.

use crate::scenario::Scenario;
use crate::systems::System;

pub const USAGE: &str = "\
Usage: cargo run --release -- [FILTER...] [--runs N] [--seconds S] [--quick] [--list]
       cargo run --release -- instructions [--update] | growth | failover | memory

Measures Little Raft, its peers and the limits beside each other, prints tables, and writes
latest.json, latest.md and pictures into the folder `results`.

FILTER       A part of a measurement's name (leader-thread, own-thread, one-thread, fixed-16,
             fixed-256, bytes-16, bytes-256, w1, w64, w1024, w16384) or some letters of a system's
             name. Several must all hold; alternatives are separated by a comma: w1,w64 raw,tikv
--runs N     How often everything is measured; the tables show medians. Default: 3
--seconds S  How long each measurement lasts, after warming up. Default: 1
--quick      The same as --runs 1 --seconds 0.2
--list       Says what would be measured.

instructions Counts instructions per command, by valgrind, and holds Little Raft's against
             instructions-budget.json, or makes them the budget with --update
growth       What more replicas, a longer log and a slow follower cost
failover     How long a cluster is without a leader after it lost one, in virtual time
memory       What replicas in threads hold in memory while they apply 100 million commands; another
             number may follow
";

pub enum Action {
    Help,
    List(Run),
    Run(Run),
    Instructions {
        is_update: bool,
    },
    Growth,
    Failover,
    Memory {
        commands: u64,
    },
    /// Hidden: the run that memory watches.
    Saturate {
        outstanding: u64,
        commands: u64,
    },
    /// Hidden: the run whose instructions valgrind counts.
    Count {
        system: String,
        batch: u64,
        commands: u64,
    },
    /// Hidden: one measurement, in a child process.
    Measure {
        system: String,
        scenario: String,
        seconds: f64,
    },
}

pub struct Run {
    pub filters: Vec<String>,
    pub runs: usize,
    pub seconds: f64,
}

pub const MEASURE: &str = "measure-in-this-process";

pub const SATURATE: &str = "saturate-in-this-process";

pub const COUNT: &str = "count-in-this-process";

pub fn parse(arguments: &[String]) -> Result<Action, String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["instructions"] => Ok(Action::Instructions { is_update: false }),
        ["instructions", "--update"] => Ok(Action::Instructions { is_update: true }),
        ["growth"] => Ok(Action::Growth),
        ["failover"] => Ok(Action::Failover),
        ["memory"] => Ok(Action::Memory { commands: 100_000_000 }),
        ["memory", _] => {
            Ok(Action::Memory { commands: number("the number of commands", arguments.last())? })
        }
        [SATURATE, _, _] => {
            let outstanding = number("the number outstanding", arguments.get(1))?;
            let commands = number("the number of commands", arguments.get(2))?;
            Ok(Action::Saturate { outstanding, commands })
        }
        [MEASURE, system, scenario, _] => {
            let seconds = number("the number of seconds", arguments.last())?;
            let (system, scenario) = (system.to_string(), scenario.to_string());
            Ok(Action::Measure { system, scenario, seconds })
        }
        [COUNT, system, _, _] => {
            let batch = number("the size of a batch", arguments.get(2))?;
            let commands = number("the number of commands", arguments.get(3))?;
            Ok(Action::Count { system: system.to_string(), batch, commands })
        }
        _ => parse_run(arguments),
    }
}

fn parse_run(arguments: &[String]) -> Result<Action, String> {
    let mut run = Run { filters: Vec::new(), runs: 3, seconds: 1.0 };
    let mut is_list = false;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(Action::Help),
            "--list" => is_list = true,
            "--quick" => (run.runs, run.seconds) = (1, 0.2),
            "--runs" => run.runs = number("--runs", arguments.next())?,
            "--seconds" => run.seconds = number("--seconds", arguments.next())?,
            option if option.starts_with('-') => {
                return Err(format!("there is no option {option}"));
            }
            filter => run.filters.push(filter.to_string()),
        }
    }
    if run.runs == 0 || !(0.01..=600.0).contains(&run.seconds) {
        return Err("at least one run, and from 0.01 to 600 seconds, are needed".into());
    }
    Ok(if is_list { Action::List(run) } else { Action::Run(run) })
}

fn number<T: std::str::FromStr>(what: &str, argument: Option<&String>) -> Result<T, String> {
    let text = argument.ok_or(format!("{what} needs a number after it"))?;
    text.parse().map_err(|_| format!("{what} needs a number, not {text}"))
}

impl Run {
    pub fn selects(&self, scenario: &Scenario, system: &System) -> bool {
        let name = scenario.to_string();
        let matches =
            |word: &str| name.split('/').any(|part| part == word) || system.name.contains(word);
        self.filters.iter().all(|filter| filter.split(',').any(matches))
    }
}

//! Runs seeds of the simulator over the registers that come with it.

use clap::{Parser, Subcommand};
use little_raft_sim::{Broken, Counters, Registers, Simulation, mermaid, shrink};
use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

/// Runs clusters under faults and checks the laws of Raft after every event.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The seeds to run, as FROM..TO.
    #[arg(long, value_parser = range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints everything that happens in that one run.
    #[arg(long)]
    trace: bool,
    /// Makes that one run smaller, if it fails, before anything is printed.
    #[arg(long)]
    shrink: bool,
    /// Prints that one run as a script for little_raft/tests/scripts.
    #[arg(long)]
    script: bool,
    /// Prints the last so many lines of the trace as a sequence diagram for Mermaid.
    #[arg(long, value_name = "LINES")]
    mermaid: Option<usize>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until it is stopped, from the first seed on.
    Soak,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").and_then(|(from, to)| from.parse().ok().zip(to.parse().ok()));
    let (from, to): (u64, u64) = ends.ok_or("two numbers with .. in between, such as 0..1000")?;
    Ok(from..to)
}

fn main() -> ExitCode {
    // A panic is the breach of a law like others, and told like others.
    std::panic::set_hook(Box::new(|_| {}));
    let arguments = Arguments::parse();
    let failed = match (arguments.seed, &arguments.command) {
        (Some(seed), _) => run_one(seed, &arguments),
        (None, Some(Command::Soak)) => soak(arguments.seeds.start),
        (None, None) => run_many(arguments.seeds),
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs one seed and says all about it.
fn run_one(seed: u64, arguments: &Arguments) -> bool {
    let mut simulation = Simulation::new(Registers::default(), seed);
    let (mut faults, mut seed) = (simulation.faults().clone(), seed);
    let shrinks = || shrink(Registers::default, faults.clone(), seed, 20);
    if let Some((fewer, other, _)) = arguments.shrink.then(shrinks).flatten() {
        simulation = Simulation::with_faults(Registers::default(), fewer.clone(), other);
        (faults, seed) = (fewer, other);
    }
    simulation = simulation.traced();
    let result = simulation.run_caught();
    println!("{faults:#?}");
    let lines = simulation.trace();
    if arguments.trace {
        lines.iter().for_each(|line| println!("{line}"));
    }
    if let Some(last) = arguments.mermaid {
        println!("{}", mermaid(&lines[lines.len().saturating_sub(last)..]));
    }
    println!("{}", simulation.counters());
    if arguments.script {
        println!("{}", simulation.script());
        let broken = result.as_ref().err();
        broken.into_iter().for_each(|broken| println!("# breaks {broken}"));
    }
    match result {
        Ok(()) => println!("seed {seed}: every law holds"),
        Err(broken) => {
            println!("seed {seed} breaks {broken}");
            return true;
        }
    }
    false
}

/// What many runs came to.
#[derive(Default)]
struct Summary {
    counters: Counters,
    failures: BTreeMap<&'static str, Vec<u64>>,
}

impl Summary {
    fn run(&mut self, seed: u64) {
        let mut simulation = Simulation::new(Registers::default(), seed);
        let result = simulation.run_caught();
        self.counters.add(simulation.counters());
        if let Err(broken) = result {
            self.fail(seed, &broken);
        }
    }

    fn fail(&mut self, seed: u64, broken: &Broken) {
        let seeds = self.failures.entry(broken.law).or_default();
        seeds.push(seed);
        if seeds.len() <= 3 {
            let text: String = broken.to_string().chars().take(400).collect();
            println!("seed {seed} breaks {text}");
            let command = "cargo run --release -p little_raft_sim --";
            println!("  replay: {command} --seed {seed} --trace");
            println!("  shrink: {command} --seed {seed} --shrink --script --mermaid 60");
        }
    }

    fn print(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        let events = self.counters.events;
        println!("{}{events} events in {seconds:.1} s: {:.0} a second", self.counters, {
            events as f64 / seconds
        });
        for (law, seeds) in &self.failures {
            println!(
                "{law} is broken by {} seeds: {:?}",
                seeds.len(),
                &seeds[..seeds.len().min(8)]
            );
        }
    }
}

fn run_many(seeds: Range<u64>) -> bool {
    let (mut summary, since) = (Summary::default(), Instant::now());
    seeds.for_each(|seed| summary.run(seed));
    summary.print(since);
    !summary.failures.is_empty()
}

fn soak(first: u64) -> bool {
    let (mut summary, since) = (Summary::default(), Instant::now());
    for seed in first.. {
        summary.run(seed);
        if (seed - first + 1).is_multiple_of(10_000) {
            println!("seeds {first}..{}", seed + 1);
            summary.print(since);
        }
    }
    !summary.failures.is_empty()
}

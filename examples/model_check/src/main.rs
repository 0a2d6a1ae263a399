//! `check` visits every state within the bounds; `explore` shows them in the browser.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use model_check::{Bounds, ModelChecked};
use stateright::report::WriteReporter;
use stateright::{Checker, HasDiscoveries, Model};
use std::process::ExitCode;
use std::thread::available_parallelism;

#[derive(Parser)]
#[command(about = "Model checking of the Raft that ships")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Visits every state within the bounds, and fails if a law is broken in any.
    Check {
        #[command(flatten)]
        bounds: Bounds,
        /// Steps to go at most. Without it the counts alone bound the run, which takes far less
        /// memory: it goes depth first.
        #[arg(long)]
        depth: Option<usize>,
        /// Threads to use; all there are if not said.
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Serves an explorer of the states for the browser.
    Explore {
        #[command(flatten)]
        bounds: Bounds,
        /// Steps to go at most.
        #[arg(long)]
        depth: Option<usize>,
        /// Where to serve it.
        #[arg(long, default_value = "localhost:3000")]
        address: String,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { bounds, depth, threads } => check(bounds, depth, threads),
        Command::Explore { bounds, depth, address } => {
            println!("Exploring {bounds:?} at http://{address}");
            let checker = ModelChecked::new(bounds).checker();
            // The explorer counts states where the user counts steps.
            checker.target_max_depth(depth.map_or(0, |steps| steps + 2)).serve(address);
            ExitCode::SUCCESS
        }
    }
}

fn check(bounds: Bounds, depth: Option<usize>, threads: Option<usize>) -> ExitCode {
    println!("Checking {bounds:?}, depth {depth:?}");
    let threads = threads.or(available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let checker = ModelChecked::new(bounds).checker().threads(threads);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures);
    match depth {
        Some(steps) => report(checker.target_max_depth(steps + 2).spawn_bfs(), false),
        None => report(checker.spawn_dfs(), true),
    }
}

/// Fails if a law is broken or, in a run that visits all states, something never happens.
fn report(checker: impl Checker<ModelChecked> + Send + Sync, all: bool) -> ExitCode {
    let checker = checker.join_and_report(&mut WriteReporter::new(&mut std::io::stdout()));
    let found = checker.discoveries();
    let properties = checker.model().properties();
    let (laws, hopes): (Vec<_>, Vec<_>) =
        properties.iter().partition(|it| it.expectation.discovery_is_failure());
    let broken: Vec<_> = laws.iter().filter(|it| found.contains_key(it.name)).collect();
    broken.iter().for_each(|it| println!("BROKEN: \"{}\"", it.name));
    // A run that ends with a broken law has not seen everything.
    let never = hopes.iter().filter(|it| broken.is_empty() && !found.contains_key(it.name));
    let never: Vec<_> = never.inspect(|it| println!("NEVER: \"{}\"", it.name)).collect();
    let well = broken.is_empty() && (never.is_empty() || !all);
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

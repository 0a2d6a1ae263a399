//! Measures consensus libraries beside each other, in one process and in memory.

mod blocking;
mod child;
mod client;
mod command;
mod machine;
mod node;
mod one_thread;
mod options;
mod picture;
mod report;
mod scenario;
mod studies;
mod systems;
mod threads;

use std::process::ExitCode;

use crate::options::{Action, Run};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::studies::{failover, growth, instructions, memory};
use crate::systems::System;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match options::parse(&arguments) {
        Ok(Action::Help) => {
            print!("{}", options::USAGE);
            Ok(())
        }
        Ok(Action::List(run)) => list(&run),
        Ok(Action::Run(run)) => measure_all(&run),
        Ok(Action::Instructions { is_update }) => instructions::report(is_update),
        Ok(Action::Growth) => growth::report(),
        Ok(Action::Failover) => failover::report(),
        Ok(Action::Memory { commands }) => memory::report(commands),
        Ok(Action::Saturate { outstanding, commands }) => memory::run_here(outstanding, commands),
        Ok(Action::Count { system, batch, commands }) => {
            instructions::run_here(&system, batch, commands)
        }
        Ok(Action::Measure { system, scenario, seconds }) => {
            child::measure_here(&system, &scenario, seconds)
        }
        Err(message) => Err(format!("{message}\n\n{}", options::USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// What the filters leave: for every scenario all systems that support it.
fn plan(run: &Run) -> Result<Vec<(Scenario, System)>, String> {
    let mut plan = Vec::new();
    for scenario in scenario::all() {
        for system in systems::all() {
            if (system.supports)(&scenario) && run.selects(&scenario, &system) {
                plan.push((scenario, system));
            }
        }
    }
    if plan.is_empty() {
        return Err(format!(
            "nothing is called {}; see what there is with --list",
            run.filters.join(" and ")
        ));
    }
    Ok(plan)
}

fn list(run: &Run) -> Result<(), String> {
    for (scenario, system) in plan(run)? {
        println!("{scenario}/{}", system.name);
    }
    println!();
    for system in systems::all() {
        println!("{:<20} {}", system.name, system.about);
    }
    Ok(())
}

/// The whole plan again and again, rather than each measurement several times in a row, so that a
/// disturbance of the machine meets all systems alike.
fn measure_all(run: &Run) -> Result<(), String> {
    let plan = plan(run)?;
    let mut report = Report::new(run);
    let total = plan.len() * run.runs;
    for round in 0..run.runs {
        for (position, (scenario, system)) in plan.iter().enumerate() {
            let outcome = child::measure(system, scenario, run.seconds);
            let done = round * plan.len() + position + 1;
            eprintln!("{done:>4}/{total} {scenario}/{}: {}", system.name, child::brief(&outcome));
            report.add(*scenario, system, outcome);
        }
    }
    print!("{}", report.text());
    report.write()?;
    if report.all_equal() {
        Ok(())
    } else {
        Err("at the end of some runs the state machines were not equal; the tables say where"
            .into())
    }
}

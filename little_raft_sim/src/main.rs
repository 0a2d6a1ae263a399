//! runner
use little_raft_sim::*;
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args[1] == "--seed" {
        let seed = args[2].parse().unwrap();
        let mut simulation = Simulation::new(Registers::default(), seed).traced();
        println!("{:?}", simulation.faults());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| simulation.run()));
        for line in simulation.trace() {
            println!("{line}");
        }
        println!("{result:?}");
        return;
    }
    let (from, to): (u64, u64) = (args[1].parse().unwrap(), args[2].parse().unwrap());
    let mut total = Counters::default();
    let start = Instant::now();
    let mut failures = std::collections::BTreeMap::<String, Vec<u64>>::new();
    std::panic::set_hook(Box::new(|_| {}));
    for seed in from..to {
        let mut simulation = Simulation::new(Registers::default(), seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| simulation.run()));
        total.add(simulation.counters());
        let what = match result {
            Ok(Ok(())) => continue,
            Ok(Err(broken)) => broken.to_string(),
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        };
        let key: String = what.chars().take(40).collect();
        let list = failures.entry(key).or_default();
        if list.len() < 2 {
            println!("seed {seed}: {}", what.chars().take(500).collect::<String>());
        }
        list.push(seed);
    }
    let seconds = start.elapsed().as_secs_f64();
    print!("{total}");
    println!("{} events in {seconds:.1}s: {:.0}/s", total.events, total.events as f64 / seconds);
    for (key, seeds) in failures {
        println!("{:6} {key} {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
    }
}

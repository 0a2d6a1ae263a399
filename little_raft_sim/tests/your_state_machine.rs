//! The example of a user's state machine and storage, run as a user would.

#[path = "../examples/your_state_machine.rs"]
#[allow(dead_code, unreachable_pub)]
mod example;

#[test]
fn the_example_breaks_no_law_and_was_really_tested() {
    let counters = example::run(0..60).expect("every law holds");
    for (name, count) in [
        ("acknowledged", counters.acknowledged),
        ("installs", counters.installs),
        ("restarts", counters.restarts),
        ("failed saves kept", counters.failed_saves_kept),
        ("failed saves lost", counters.failed_saves_lost),
        ("reads", counters.reads_ready),
    ] {
        assert!(count > 0, "never in all these runs: {name}");
    }
}

//! How the cost of Little Raft's protocol grows: with the number of replicas, with the length of
//! the log, and with a follower that does not keep up. Everything in one thread. Times are
//! processor time of this process, the least of several repetitions, because what disturbs a
//! measurement only ever adds to it.

use std::env;
use std::fmt::Write;
use std::hint::black_box;
use std::process;
use std::time::Duration;

use little_raft::{Message, Snapshot};

use nix::sys::resource::{UsageWho, getrusage};

use super::publish;
use crate::blocking::Transition;
use crate::child::own_program;
use crate::client::processor_time;
use crate::command::{Command, Fixed};
use crate::node::Node;
use crate::one_thread::World;
use crate::systems::little_raft::Pure;

type Small = Fixed<16>;

const REPETITIONS: usize = 8;
const SNAPSHOT_DELTA: usize = 16 * 1024;
/// Commands proposed together where the log is what matters: short runs make it long.
const SHORT_RUN: u64 = 10;
/// Memory that was freed stays with the process, so that what is measured a second time finds it
/// touched: a page that is new to the process costs more than all the rest at 1,024 outstanding.
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "17179869184")];
/// How much memory is used before the second time: more than the longest log takes.
const MEBIBYTES: usize = 2_560;

pub fn report() -> Result<(), String> {
    if ALLOCATOR.iter().any(|(name, _)| env::var_os(name).is_none()) {
        // The allocator reads this once, when a process starts.
        let again = process::Command::new(own_program()?).arg("growth").envs(ALLOCATOR).status();
        let status = again.map_err(|error| format!("cannot start a child process: {error}"))?;
        return if status.success() { Ok(()) } else { Err(format!("the study: {status}")) };
    }
    let mut text = String::new();
    // First, while all memory is new.
    let mut lengths = String::new();
    write_lengths(&mut lengths)?;
    write_replicas(&mut text)?;
    text.push_str(&lengths);
    write_compactions(&mut text)?;
    write_slow_follower(&mut text)?;
    publish("growth.md", "Growth", &text)
}

/// A cluster under a closed-loop client.
struct Cluster {
    world: World<Pure<Small>>,
    proposed: u64,
}

impl Cluster {
    fn new(replicas: usize, snapshot_delta: usize) -> Result<Self, String> {
        let nodes = (0..replicas).map(|id| Pure::new(id, replicas, snapshot_delta)).collect();
        let mut world = World::new(nodes);
        world.elect()?;
        Ok(Self { world, proposed: 0 })
    }

    /// So many commands more, with so many outstanding, proposed and applied at the leader.
    fn work(&mut self, leader: usize, commands: u64, outstanding: u64) {
        let end = self.proposed + commands;
        while self.world.states[leader].count < end {
            self.propose(leader, outstanding.min(end - self.world.states[leader].count));
            self.world.round();
        }
    }

    fn propose(&mut self, leader: usize, outstanding: u64) {
        let from = self.proposed;
        self.proposed = (self.world.states[leader].count + outstanding).max(from);
        if self.proposed > from {
            let commands = (from..self.proposed).map(Small::numbered).collect();
            self.world.nodes[leader].propose(commands);
        }
    }

    /// Processor time per command, in nanoseconds, of all replicas together.
    fn cost(&mut self, leader: usize, commands: u64, outstanding: u64) -> f64 {
        let measure = |_| {
            let before = processor_time();
            self.work(leader, commands, outstanding);
            (processor_time() - before).as_secs_f64() * 1e9 / commands as f64
        };
        (0..REPETITIONS).map(measure).fold(f64::INFINITY, f64::min)
    }

    /// Hands leadership to a replica. Returns the processor time, in microseconds, until it has
    /// committed something of its own.
    fn hand_over(&mut self, from: usize, to: usize) -> Result<f64, String> {
        let before = processor_time();
        self.world.nodes[from].receive(Message::transfer_leadership(to));
        for _ in 0..100 {
            self.world.round();
            let status = &self.world.nodes[to].raft().me;
            if self.world.nodes[to].leads() && status.commit == status.last_index {
                return Ok((processor_time() - before).as_secs_f64() * 1e6);
            }
        }
        Err(format!("leadership was not handed from {from} to {to}"))
    }
}

fn write_replicas(text: &mut String) -> Result<(), String> {
    text.push_str(
        "## Replicas\n\nNanoseconds per command of 16 bytes, of all replicas together.\n\n\
         | replicas | w1 | w64 | w1024 | w1024, for each replica |\n|---:|---:|---:|---:|---:|\n",
    );
    for replicas in [1, 3, 5, 7] {
        let mut cluster = Cluster::new(replicas, SNAPSHOT_DELTA)?;
        let [one, some, many] = [(100_000, 1), (1_000_000, 64), (2_000_000, 1024)]
            .map(|(commands, outstanding)| cluster.cost(0, commands, outstanding));
        let share = many / replicas as f64;
        let _ = writeln!(text, "| {replicas} | {one:.0} | {some:.1} | {many:.1} | {share:.1} |");
    }
    Ok(())
}

fn write_lengths(text: &mut String) -> Result<(), String> {
    let _ = write!(
        text,
        "\n## Length of the log\n\nThree replicas; nothing is ever compacted, and the log consists \
         of runs of {SHORT_RUN} commands. Nanoseconds per command of 16 bytes with so many entries \
         in the log already; minor page faults per 1,000 of the commands at w1024; microseconds of \
         processor time from one leader's end until the next has committed an entry. Everything is \
         done twice: the first time every page is new to the process, the second time it has been \
         used before, which leaves the cost of the algorithm.\n\n\
         | entries | memory | w1 | w{SHORT_RUN} | w1024 | page faults | another leader |\n\
         |---:|---|---:|---:|---:|---:|---:|\n"
    );
    write_lengths_in("new", text)?;
    let blocks: Vec<Vec<u8>> = (0..MEBIBYTES).map(|_| vec![1; 1 << 20]).collect();
    drop(black_box(blocks));
    write_lengths_in("used before", text)
}

fn write_lengths_in(memory: &str, text: &mut String) -> Result<(), String> {
    let mut cluster = Cluster::new(3, 0)?;
    for length in [10_000, 100_000, 1_000_000, 10_000_000] {
        cluster.work(0, length - cluster.proposed.min(length), SHORT_RUN);
        // Few, so that they do not make a short log much longer.
        let [one, some] =
            [(500, 1), (1_000, SHORT_RUN)].map(|(commands, n)| cluster.cost(0, commands, n));
        let faults = page_faults();
        let many = cluster.cost(0, 4_096, 1024);
        let faults = (page_faults() - faults) as f64 * 1e3 / (4_096 * REPETITIONS) as f64;
        let mut handover = f64::INFINITY;
        for _ in 0..REPETITIONS {
            handover = handover.min(cluster.hand_over(0, 1)?);
            handover = handover.min(cluster.hand_over(1, 0)?);
        }
        let _ = writeln!(
            text,
            "| {length} | {memory} | {one:.0} | {some:.1} | {many:.1} | {faults:.1} | {handover:.0} |"
        );
    }
    Ok(())
}

/// Of the whole process, so far, without any reading from disk.
fn page_faults() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage of the own process is known");
    usage.minor_page_faults()
}

fn write_compactions(text: &mut String) -> Result<(), String> {
    let _ = write!(
        text,
        "\n## Compacting\n\nOne replica, runs of {SHORT_RUN} commands. The log holds twice as many \
         entries as are then forgotten at once. Nanoseconds of processor time per entry that is \
         forgotten, and milliseconds of the whole.\n\n\
         | entries in the log | per entry forgotten | the whole |\n|---:|---:|---:|\n"
    );
    for length in [10_000_usize, 100_000, 1_000_000, 10_000_000] {
        let delta = length / 2;
        let repetitions = (1_000_000 / length).clamp(1, REPETITIONS * 4);
        let mut least = f64::INFINITY;
        for _ in 0..repetitions {
            least = least.min(compact(delta)?);
        }
        let whole = least * delta as f64 / 1e6;
        let _ = writeln!(text, "| {length} | {least:.2} | {whole:.3} |");
    }
    Ok(())
}

/// The first snapshot forgets nothing, the second what the first covered. Per entry.
fn compact(delta: usize) -> Result<f64, String> {
    let mut cluster = Cluster::new(1, delta)?;
    cluster.work(0, 2 * delta as u64 - SHORT_RUN, SHORT_RUN);
    let raft = cluster.world.nodes[0].raft_mut();
    let first = raft.me.first_index;
    // By hand from here on, so that the node does not compact on its own.
    let (mut is_due, mut time) = (false, Duration::ZERO);
    for number in 0..10 * SHORT_RUN {
        let before = processor_time();
        let compacted = raft.compact(|last_included_index, last_included_term| {
            is_due = true;
            Snapshot { last_included_index, last_included_term, data: Default::default() }
        });
        compacted.expect("it is the one that was asked for");
        time = processor_time() - before;
        if is_due {
            break;
        }
        raft.propose(vec![Transition(Small::numbered(number))]);
        raft.outputs(Duration::ZERO);
        raft.saved();
        raft.applied(1);
    }
    raft.outputs(Duration::ZERO);
    let forgotten = raft.me.first_index - first;
    if forgotten + 1_000 < delta {
        return Err(format!("only {forgotten} of {delta} entries were forgotten"));
    }
    Ok(time.as_secs_f64() * 1e9 / forgotten as f64)
}

/// What a run with all or with all but one of the followers at full speed yields.
struct Pace {
    commands_per_round: f64,
    /// Of the leader and the fast follower.
    nanoseconds: f64,
    most_entries: usize,
    most_messages: usize,
}

/// What a round stands for on the replicas' clocks: about what it takes.
const ROUND: Duration = Duration::from_micros(10);
/// In every so many rounds the slow follower takes one message.
const SLOWNESS: usize = 100;

fn write_slow_follower(text: &mut String) -> Result<(), String> {
    let _ = write!(
        text,
        "\n## A slow follower\n\nThree replicas, a snapshot every {SNAPSHOT_DELTA} commands. The \
         slow follower takes one message in every {SLOWNESS} rounds, the others all they have in \
         every round, which stands for {ROUND:?} of their clocks. Processor time is that of the others, in nanoseconds per command. The last \
         columns show the most entries that the leader's log held, and the most messages that \
         waited for the slow follower.\n\n\
         | outstanding | slow follower | commands per round | per command | entries | messages |\n\
         |---:|---|---:|---:|---:|---:|\n"
    );
    for outstanding in [64, 1024, 16384] {
        for is_slow in [false, true] {
            let pace = pace(outstanding, is_slow)?;
            let name = if is_slow { "yes" } else { "no" };
            let _ = writeln!(
                text,
                "| {outstanding} | {name} | {:.1} | {:.1} | {} | {} |",
                pace.commands_per_round, pace.nanoseconds, pace.most_entries, pace.most_messages
            );
        }
    }
    Ok(())
}

fn pace(outstanding: u64, is_slow: bool) -> Result<Pace, String> {
    const ROUNDS: usize = 50_000;
    let mut cluster = Cluster::new(3, SNAPSHOT_DELTA)?;
    let (mut time, mut most_entries, mut most_messages) = (Duration::ZERO, 0, 0);
    let before = cluster.world.states[0].count;
    for round in 0..ROUNDS {
        let began = processor_time();
        cluster.propose(0, outstanding);
        cluster.world.turn(0, usize::MAX);
        cluster.world.turn(1, usize::MAX);
        time += processor_time() - began;
        most_messages = most_messages.max(cluster.world.inboxes[2].len());
        let status = &cluster.world.nodes[0].raft().me;
        most_entries = most_entries.max(status.last_index + 1 - status.first_index);
        if !is_slow {
            cluster.world.turn(2, usize::MAX);
        } else if round % SLOWNESS == 0 {
            cluster.world.turn(2, 1);
        }
        cluster.world.nodes.iter_mut().for_each(|it| it.pass(ROUND));
    }
    let applied = cluster.world.states[0].count - before;
    if !cluster.world.nodes[0].leads() {
        return Err("the leader was deposed while a follower was slow".into());
    }
    Ok(Pace {
        commands_per_round: applied as f64 / ROUNDS as f64,
        nanoseconds: time.as_secs_f64() * 1e9 / applied as f64,
        most_entries,
        most_messages,
    })
}

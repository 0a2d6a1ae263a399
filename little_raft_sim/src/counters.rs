//! What happened in a run, so that nobody believes in a fault that never came.

use std::fmt;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// How often things happened. What is zero over many seeds was not tested.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Adds those of another run.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }

            /// Each with its name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Deliveries, turns, acts of clients and faults.
    events
    /// Turns of replicas.
    turns
    /// Messages sent.
    sent
    /// Messages lost, or sent into a cut.
    lost
    /// Messages that came twice.
    duplicated
    /// Messages that came seconds late.
    late
    /// Changes saved.
    saves
    /// New leaders.
    elections
    /// Leaders that stepped down or were deposed.
    depositions
    /// Saves that removed entries.
    truncations
    /// Snapshots taken.
    snapshots
    /// Snapshots installed from a leader.
    installs
    /// Joint configurations committed.
    joint
    /// Final configurations committed.
    final_configurations
    /// Requests to stand for election at once.
    timeouts_now
    /// Elections that a transfer had asked for.
    transfers
    /// Entries committed.
    committed
    /// Transitions applied, on all replicas.
    applied
    /// Proposals that were applied where they were made.
    acknowledged
    /// Proposals refused by a replica that does not lead.
    not_leader
    /// Proposals overwritten.
    overwritten
    /// Proposals of unknown outcome, by a snapshot.
    unknown
    /// Reads that were ready.
    reads_ready
    /// Reads that were ready in the turn in which they were asked, at a leader with peers: from its
    /// lease.
    lease_reads
    /// Reads that were ready at a follower.
    follower_reads
    /// Reads that were abandoned.
    reads_abandoned
    /// Saves that failed.
    failed_saves
    /// Those in which power was lost at some byte.
    torn_saves
    /// Those in which power was lost with sectors written in any order.
    reordered_saves
    /// Those that failed once and had written nothing.
    refused_saves
    /// Those that failed although everything was written.
    unsure_saves
    /// Those for which there was no space.
    full_disks
    /// Changes that were there after their save had failed.
    failed_saves_kept
    /// Changes that were not there after their save had failed.
    failed_saves_lost
    /// Saves that took long.
    stalled_saves
    /// Saves that would never have ended.
    endless_saves
    /// Starts that were refused because of a flipped bit.
    refused_starts
    /// Crashes before a turn's change was saved.
    crashes_before_save
    /// Crashes in a save, after which the change turned out to be lost.
    crashes_in_save_lost
    /// Crashes in a save, after which the change turned out to be saved.
    crashes_in_save_kept
    /// Crashes after the save and before all messages were sent.
    crashes_before_messages
    /// Crashes while applying, or right after.
    crashes_applying
    /// Restarts.
    restarts
    /// Cuts of links.
    cuts
    /// Pauses of a replica.
    pauses
    /// Jumps of a clock.
    jumps
    /// Runs that ended with standing faults.
    standing
    /// Histories that took too long to be decided. Nothing is known of them.
    undecided
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all().iter().try_for_each(|(name, count)| writeln!(f, "{count:>14}  {name}"))
    }
}

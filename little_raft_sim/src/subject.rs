//! What is put under test: a state machine, its transitions and a storage.

use crate::{DiskFault, Random};
use little_raft::{ReplicaID, StateMachine, StateMachineTransition, Storage};
use std::hash::Hash;
use std::time::Duration;

/// How a proposal ended where it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has just been applied there.
    Applied,
    /// It was not applied anywhere and never will be.
    Refused,
    /// Nobody can tell: a snapshot covers it, or the replica has crashed.
    Unknown,
}

/// A state machine and a storage to be run under faults.
///
/// The provided methods tell what clients see, for a history of one's own; an error
/// of [`verdict`](Subject::verdict) breaks the law K11.
pub trait Subject {
    /// What is proposed. Two transitions that hash alike count as the same.
    type Transition: StateMachineTransition + Hash;
    /// A snapshot's data.
    type Data: Clone;
    /// The state machine.
    type Machine: StateMachine<Self::Transition, Self::Data>;
    /// Where a replica keeps what it must not forget.
    type Storage: Storage<Self::Transition, Self::Data>;

    /// An empty state machine for a replica that starts.
    fn machine(&mut self, id: ReplicaID) -> Self::Machine;

    /// Opens the storage of a replica that starts, for the first time or after a crash. The previous
    /// one has been dropped; what it had saved must be there.
    fn storage(&mut self, id: ReplicaID) -> Self::Storage;

    /// What begins every leadership.
    fn noop(&self) -> Self::Transition;

    /// A transition to propose, unlike all others: every `number` comes once.
    fn transition(&mut self, number: u64, random: &mut Random) -> Self::Transition;

    /// A summary of a state: replicas that have applied the same must have the same.
    fn digest(&self, machine: &Self::Machine) -> u64;

    /// Makes the next save of a replica fail in this way. False if this storage cannot be made to.
    fn break_storage(&mut self, _id: ReplicaID, _fault: DiskFault) -> bool {
        false
    }

    /// Flips a bit of what a replica that is down has saved; `which` is any number. The storage must
    /// then load all that was saved, or refuse to. False if this storage cannot be damaged.
    fn flip_bit(&mut self, _id: ReplicaID, _which: usize) -> bool {
        false
    }

    /// Undoes what the two above did: what was saved is there, and no save fails.
    fn mend_storage(&mut self, _id: ReplicaID) {}

    /// A transition was proposed.
    fn proposed(&mut self, _at: Duration, _number: u64, _transition: &Self::Transition) {}

    /// A proposal has ended, at a replica whose state machine is this.
    fn ended(&mut self, _at: Duration, _number: u64, _ending: Ending, _machine: &Self::Machine) {}

    /// A linearizable read was asked for. Reads have numbers of their own.
    fn read(&mut self, _at: Duration, _number: u64) {}

    /// A read is ready at a replica whose state machine is this.
    fn ready(&mut self, _at: Duration, _number: u64, _machine: &Self::Machine) {}

    /// The run is over. Returns how many histories took too long to be decided.
    ///
    /// # Errors
    /// What clients saw that they should not have seen.
    fn verdict(&mut self) -> Result<u64, String> {
        Ok(0)
    }
}

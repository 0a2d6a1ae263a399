//! Subjects with mistakes in them: the simulator must find each of them.

use little_raft::{
    Change, ReplicaID, Snapshot, StateMachine, StateMachineTransition, Storage, TransitionState,
};
use little_raft_sim::{DiskFault, Faults, Random, Simulation, Subject, append};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    Nothing,
    /// The storage forgets the entries of every seventh save.
    ForgetsSaves,
    /// The storage says that it has failed and goes on with half of the change.
    TearsSaves,
    /// The storage returns what is there although a bit was flipped.
    IgnoresDamage,
    /// The state machine adds its own id.
    DependsOnReplica,
    /// The snapshot lacks a part of the state.
    ForgetsInSnapshots,
    /// Clients are told of a value that nobody wrote.
    Lies,
}
use Mistake::*;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Add(u64);

impl StateMachineTransition for Add {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.0
    }
}

struct Sum {
    mistake: Mistake,
    id: ReplicaID,
    sum: u64,
    count: u64,
}

impl StateMachine<Add, (u64, u64)> for Sum {
    fn register_transition_state(&mut self, _: u64, _: TransitionState) {}

    fn apply_transition(&mut self, Add(number): Add) {
        let wrong = self.mistake == DependsOnReplica && self.id == 1 && self.count == 20;
        self.sum = self.sum.wrapping_mul(31).wrapping_add(number + u64::from(wrong));
        self.count += 1;
    }

    fn get_pending_transitions(&mut self) -> Vec<Add> {
        Vec::new()
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<(u64, u64)> {
        let count = if self.mistake == ForgetsInSnapshots { 0 } else { self.count };
        let data = (self.sum, count);
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<(u64, u64)>) {
        (self.sum, self.count) = snapshot.data;
    }
}

type Saved = Change<Add, (u64, u64)>;

#[derive(Clone)]
struct Shelf {
    mistake: Mistake,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    saved: Saved,
    saves: usize,
    fault: Option<DiskFault>,
    rotten: bool,
}

impl Storage<Add, (u64, u64)> for Shelf {
    fn load(&mut self) -> Result<Saved> {
        let held = self.held.lock().unwrap();
        let mut loaded = held.saved.clone();
        if held.rotten {
            if self.mistake != IgnoresDamage {
                return Err(Error::new(std::io::ErrorKind::InvalidData, "a flipped bit"));
            }
            loaded.term ^= 1;
        }
        Ok(loaded)
    }

    fn save(&mut self, mut change: Saved) -> Result<()> {
        let mut held = self.held.lock().unwrap();
        held.saves += 1;
        if self.mistake == ForgetsSaves && held.saves.is_multiple_of(7) {
            return Ok(());
        }
        if held.fault.take().is_some() {
            if self.mistake == TearsSaves {
                change.runs.truncate(change.runs.len() / 2);
                append(&mut held.saved, change);
            }
            return Err(Error::other("power is lost"));
        }
        append(&mut held.saved, change);
        Ok(())
    }
}

struct Sums {
    mistake: Mistake,
    shelves: BTreeMap<ReplicaID, Shelf>,
}

impl Subject for Sums {
    type Transition = Add;
    type Data = (u64, u64);
    type Machine = Sum;
    type Storage = Shelf;

    fn machine(&mut self, id: ReplicaID) -> Sum {
        Sum { mistake: self.mistake, id, sum: 0, count: 0 }
    }

    fn storage(&mut self, id: ReplicaID) -> Shelf {
        let shelf = || Shelf { mistake: self.mistake, held: Arc::default() };
        self.shelves.entry(id).or_insert_with(shelf).clone()
    }

    fn noop(&self) -> Add {
        Add(0)
    }

    fn transition(&mut self, number: u64, _: &mut Random) -> Add {
        Add(number + 1)
    }

    fn digest(&self, sum: &Sum) -> u64 {
        sum.sum ^ sum.count
    }

    fn break_storage(&mut self, id: ReplicaID, fault: DiskFault) -> bool {
        let shelf = self.shelves.get(&id);
        shelf.into_iter().for_each(|it| it.held.lock().unwrap().fault = Some(fault));
        shelf.is_some()
    }

    fn flip_bit(&mut self, id: ReplicaID, _: usize) -> bool {
        let shelf = self.shelves.get(&id);
        shelf.into_iter().for_each(|it| it.held.lock().unwrap().rotten = true);
        shelf.is_some()
    }

    fn mend_storage(&mut self, id: ReplicaID) {
        if let Some(shelf) = self.shelves.get(&id) {
            let mut held = shelf.held.lock().unwrap();
            (held.fault, held.rotten) = (None, false);
        }
    }

    fn verdict(&mut self) -> std::result::Result<u64, String> {
        if self.mistake == Lies { Err("nobody has written that".into()) } else { Ok(0) }
    }
}

/// The law that is broken first under some seeds, if any is.
fn law_broken_by(mistake: Mistake) -> Option<&'static str> {
    (0..20).find_map(|seed| {
        let second = Some(Duration::from_secs(1));
        let faults = Faults {
            crashes: second,
            disk_errors: second,
            disk_faults: vec![DiskFault::CrashAt(0)],
            rot: 300_000,
            snapshot_delta: 10,
            ..Faults::none(3)
        };
        let subject = Sums { mistake, shelves: BTreeMap::new() };
        let mut simulation = Simulation::with_faults(subject, faults, seed);
        let result = simulation.run();
        let rotten = simulation.counters().refused_starts > 0;
        assert!(result.is_err() || mistake != Nothing || rotten, "no disk was ever damaged");
        result.err().map(|broken| broken.law)
    })
}

#[test]
fn a_subject_without_mistakes_breaks_no_law() {
    assert_eq!(law_broken_by(Nothing), None);
}

#[test]
fn each_mistake_breaks_a_law() {
    for (mistake, law) in [
        (ForgetsSaves, "durable"),
        (TearsSaves, "durable"),
        (IgnoresDamage, "durable"),
        (DependsOnReplica, "K5"),
        (ForgetsInSnapshots, "K5"),
        (Lies, "K11"),
    ] {
        assert_eq!(law_broken_by(mistake), Some(law), "{mistake:?}");
    }
}

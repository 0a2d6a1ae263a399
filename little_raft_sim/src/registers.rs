//! The subject that comes with this crate: registers that are written and read.

use crate::Random;
use crate::disk::{DiskFault, SimulatedDisk};
use crate::ledger::Map;
use crate::linearizability::{Call, Model, Verdict, check};
use crate::subject::{Ending, Subject};
use little_raft::{ReplicaID, Snapshot, StateMachine, StateMachineTransition, TransitionState};
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Writes a register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Unlike every other transition's; 0 for a leader's first entry.
    pub number: u64,
    /// Which register.
    pub key: u8,
}

impl StateMachineTransition for Write {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.number
    }
}

/// How many registers there are.
pub const REGISTERS: usize = 4;

/// The registers, each with the number of the last write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bank {
    values: [u64; REGISTERS],
    /// What the last write replaced.
    replaced: u64,
    /// Mixed from everything applied.
    digest: u64,
}

impl StateMachine<Write, Bank> for Bank {
    fn register_transition_state(&mut self, _: u64, _: TransitionState) {}

    fn apply_transition(&mut self, write: Write) {
        self.digest =
            (self.digest ^ write.number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        if write.number > 0 {
            let value = &mut self.values[usize::from(write.key)];
            self.replaced = std::mem::replace(value, write.number);
        }
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        Vec::new()
    }

    fn create_snapshot(&mut self, last_index: usize, last_term: usize) -> Snapshot<Bank> {
        Snapshot {
            last_included_index: last_index,
            last_included_term: last_term,
            data: self.clone(),
        }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Bank>) {
        *self = snapshot.data;
    }
}

/// What a client did with a register, and what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Wrote this, and was told what it replaced.
    Write(u64, u64),
    /// Tried to write this and never heard of it again; but somebody else saw it.
    Seen(u64),
    /// Read this.
    Read(u64),
}

impl Access {
    /// The value that was there before.
    fn sees(self) -> Option<u64> {
        match self {
            Access::Write(_, value) | Access::Read(value) => Some(value),
            Access::Seen(_) => None,
        }
    }
}

/// What a register is supposed to do.
#[derive(Clone, Copy, Debug)]
pub struct Register;

impl Model for Register {
    /// The value, and whether somebody must still see it.
    type State = (u64, bool);
    type Operation = Access;

    fn initial(&self) -> (u64, bool) {
        (0, false)
    }

    fn apply(&self, (value, unseen): &(u64, bool), access: &Access) -> Option<(u64, bool)> {
        match *access {
            Access::Write(new, replaced) => (replaced == *value).then_some((new, false)),
            Access::Read(read) => (read == *value).then_some((read, false)),
            Access::Seen(new) => (!unseen).then_some((new, true)),
        }
    }

    fn only_reads(&self, access: &Access) -> bool {
        matches!(access, Access::Read(_))
    }
}

/// Steps in which the history of one register must be decided; nearly all need far fewer.
const STEPS: usize = 50_000_000;

/// Registers on simulated disks, with the history of what clients saw.
#[derive(Debug)]
pub struct Registers {
    /// After so many steps a history is left undecided.
    steps: usize,
    disks: BTreeMap<ReplicaID, SimulatedDisk<Write, Bank>>,
    /// Orders what clients saw, also within one instant.
    moment: u64,
    writes: Map<u64, (u8, Call<Access>)>,
    reads: Map<u64, u64>,
    histories: [Vec<Call<Access>>; REGISTERS],
}

impl Default for Registers {
    fn default() -> Self {
        Registers {
            steps: STEPS,
            disks: BTreeMap::new(),
            moment: 0,
            writes: Map::default(),
            reads: Map::default(),
            histories: Default::default(),
        }
    }
}

impl Registers {
    /// Gives the history of each register up after so many steps.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

impl Subject for Registers {
    type Transition = Write;
    type Data = Bank;
    type Machine = Bank;
    type Storage = SimulatedDisk<Write, Bank>;

    fn machine(&mut self, _: ReplicaID) -> Bank {
        Bank::default()
    }

    fn storage(&mut self, id: ReplicaID) -> Self::Storage {
        self.disks.entry(id).or_default().reopen()
    }

    fn noop(&self) -> Write {
        Write { number: 0, key: 0 }
    }

    fn transition(&mut self, number: u64, random: &mut Random) -> Write {
        Write { number: number + 1, key: random.random_range(0..REGISTERS as u8) }
    }

    fn digest(&self, bank: &Bank) -> u64 {
        bank.digest
    }

    fn break_storage(&mut self, id: ReplicaID, fault: DiskFault) -> bool {
        let disk = self.disks.get(&id);
        disk.into_iter().for_each(|disk| disk.fail_next_save(fault));
        disk.is_some()
    }

    fn flip_bit(&mut self, id: ReplicaID, which: usize) -> bool {
        self.disks.get(&id).is_some_and(|disk| disk.flip_bit(which))
    }

    fn mend_storage(&mut self, id: ReplicaID) {
        self.disks.get(&id).into_iter().for_each(SimulatedDisk::mend);
    }

    fn proposed(&mut self, _: Duration, number: u64, write: &Write) {
        let operation = Access::Seen(write.number);
        let call = Call { operation, invoked: self.moment(), returned: None };
        self.writes.insert(number, (write.key, call));
    }

    fn ended(&mut self, _: Duration, number: u64, ending: Ending, bank: &Bank) {
        let Some((key, mut call)) = self.writes.remove(&number) else { return };
        if let (Ending::Applied, Access::Seen(value)) = (ending, call.operation) {
            call.operation = Access::Write(value, bank.replaced);
            call.returned = Some(self.moment());
        }
        if ending != Ending::Refused {
            self.histories[usize::from(key)].push(call);
        }
    }

    fn read(&mut self, _: Duration, number: u64) {
        let moment = self.moment();
        self.reads.insert(number, moment);
    }

    fn ready(&mut self, _: Duration, number: u64, bank: &Bank) {
        let Some(invoked) = self.reads.remove(&number) else { return };
        let returned = Some(self.moment());
        let key = number as usize % REGISTERS;
        let operation = Access::Read(bank.values[key]);
        self.histories[key].push(Call { operation, invoked, returned });
    }

    fn verdict(&mut self) -> Result<u64, String> {
        let mut undecided = 0;
        for (_, (key, call)) in std::mem::take(&mut self.writes) {
            self.histories[usize::from(key)].push(call);
        }
        for (key, history) in self.histories.iter_mut().enumerate() {
            let seen: BTreeSet<u64> = history.iter().filter_map(|it| it.operation.sees()).collect();
            // What nobody saw may as well never have been.
            let unseen = |access| matches!(access, Access::Seen(value) if !seen.contains(&value));
            history.retain(|call| !unseen(call.operation));
            history.sort_unstable_by_key(|call| call.invoked);
            match check(&Register, history, self.steps) {
                Verdict::Linearizable => {}
                Verdict::NotLinearizable => {
                    return Err(format!("no order explains register {key}: {history:?}"));
                }
                // Tens of thousands of calls at a time are more than the search can look through.
                Verdict::Undecided => undecided += 1,
            }
        }
        Ok(undecided)
    }
}

//! How to put a state machine and a storage of your own under test: a bank, and a journal.
//!
//! ```text
//! cargo run --release -p little_raft_sim --example your_state_machine -- 1000
//! ```
//!
//! runs a thousand seeds. Copy this file, put your own types in the place of these, and keep it as a
//! test.

use little_raft::{Change, ReplicaID, Snapshot, StateMachine, StateMachineTransition, Storage};
use little_raft::{TransitionAbandonedReason, TransitionState};
use little_raft_sim::{Counters, DiskFault, Ending, Random, Simulation, Subject, append};
use rand::RngExt;
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is replicated: money goes from one account to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    number: u64,
    from: usize,
    to: usize,
    amount: u64,
}

impl StateMachineTransition for Transfer {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.number
    }
}

/// Each account begins with this.
const SALARY: u64 = 100;

/// The state machine: accounts that are never overdrawn.
#[derive(Clone, Debug)]
pub struct Bank {
    accounts: [u64; 4],
    transfers: u64,
    refused: u64,
}

impl Bank {
    fn new() -> Bank {
        Bank { accounts: [SALARY; 4], transfers: 0, refused: 0 }
    }

    fn money(&self) -> u64 {
        self.accounts.iter().sum()
    }
}

impl StateMachine<Transfer, Bank> for Bank {
    fn register_transition_state(&mut self, _: u64, state: TransitionState) {
        use TransitionAbandonedReason::NotLeader;
        self.refused += u64::from(state == TransitionState::Abandoned(NotLeader));
    }

    fn apply_transition(&mut self, Transfer { from, to, amount, .. }: Transfer) {
        if let Some(rest) = self.accounts[from].checked_sub(amount) {
            self.accounts[from] = rest;
            self.accounts[to] += amount;
            self.transfers += u64::from(amount > 0);
        }
    }

    /// The simulator proposes; in production this is where your transitions come from.
    fn get_pending_transitions(&mut self) -> Vec<Transfer> {
        Vec::new()
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Bank> {
        let data = self.clone();
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Bank>) {
        *self = snapshot.data;
    }
}

/// What is on a disk: the changes one after another, and how the next save fails.
#[derive(Debug, Default)]
struct Journal {
    changes: Vec<Change<Transfer, Bank>>,
    fault: Option<DiskFault>,
}

/// The storage: adds each change to a journal, and puts them together when it loads.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Journal>>);

impl Disk {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage<Transfer, Bank> for Disk {
    fn load(&mut self) -> Result<Change<Transfer, Bank>> {
        let mut saved = Change::default();
        let changes = std::mem::take(&mut self.journal().changes);
        changes.into_iter().for_each(|change| append(&mut saved, change));
        self.journal().changes.push(saved.clone());
        Ok(saved)
    }

    fn save(&mut self, change: Change<Transfer, Bank>) -> Result<()> {
        let mut journal = self.journal();
        match journal.fault.take() {
            None => journal.changes.push(change),
            // The record is whole if all of it was written, and rolled back otherwise.
            Some(DiskFault::FailsAfterAll) => {
                journal.changes.push(change);
                return Err(Error::other("the disk failed to sync"));
            }
            Some(fault) => return Err(Error::other(format!("the disk failed: {fault:?}"))),
        }
        Ok(())
    }
}

/// What the simulator is given, and what clients have seen.
#[derive(Debug, Default)]
pub struct Banks {
    disks: BTreeMap<ReplicaID, Disk>,
    /// For each read that is underway, how many transfers had been acknowledged before.
    reads: BTreeMap<u64, u64>,
    acknowledged: u64,
    wrong: Option<String>,
}

impl Subject for Banks {
    type Transition = Transfer;
    type Data = Bank;
    type Machine = Bank;
    type Storage = Disk;

    fn machine(&mut self, _: ReplicaID) -> Bank {
        Bank::new()
    }

    fn storage(&mut self, id: ReplicaID) -> Disk {
        self.disks.entry(id).or_default().clone()
    }

    fn noop(&self) -> Transfer {
        Transfer { number: 0, from: 0, to: 0, amount: 0 }
    }

    fn transition(&mut self, number: u64, random: &mut Random) -> Transfer {
        let (from, to) = (random.random_range(0..4), random.random_range(0..4));
        Transfer { number: number + 1, from, to, amount: random.random_range(1..SALARY) }
    }

    /// Replicas that have applied the same must agree in this.
    fn digest(&self, bank: &Bank) -> u64 {
        let accounts = bank.accounts.iter();
        accounts.fold(bank.transfers, |digest, money| digest.wrapping_mul(1_000_003) + money)
    }

    fn break_storage(&mut self, id: ReplicaID, fault: DiskFault) -> bool {
        self.disks.get(&id).map(|disk| disk.journal().fault = Some(fault)).is_some()
    }

    fn mend_storage(&mut self, id: ReplicaID) {
        self.disks.get(&id).into_iter().for_each(|disk| disk.journal().fault = None);
    }

    fn ended(&mut self, _: Duration, _: u64, ending: Ending, bank: &Bank) {
        if ending == Ending::Applied {
            self.acknowledged = self.acknowledged.max(bank.transfers);
        }
    }

    fn read(&mut self, _: Duration, number: u64) {
        self.reads.insert(number, self.acknowledged);
    }

    fn ready(&mut self, _: Duration, number: u64, bank: &Bank) {
        let acknowledged = self.reads.remove(&number).unwrap_or_default();
        if bank.transfers < acknowledged {
            let seen = bank.transfers;
            self.wrong = Some(format!("a read sees {seen} transfers of {acknowledged}"));
        }
        if bank.money() != 4 * SALARY {
            self.wrong = Some(format!("money was made or lost: {bank:?}"));
        }
    }

    fn verdict(&mut self) -> std::result::Result<u64, String> {
        self.wrong.take().map_or(Ok(0), Err)
    }
}

/// Runs these seeds and adds up what happened.
///
/// # Errors
/// The first seed under which something is wrong, and what that is.
pub fn run(seeds: std::ops::Range<u64>) -> std::result::Result<Counters, String> {
    let mut total = Counters::default();
    for seed in seeds {
        let mut simulation = Simulation::new(Banks::default(), seed);
        simulation.run_caught().map_err(|broken| format!("seed {seed} breaks {broken}"))?;
        total.add(simulation.counters());
    }
    Ok(total)
}

fn main() -> std::result::Result<(), String> {
    let seeds = std::env::args().nth(1).map_or(Ok(200), |text| text.parse());
    let seeds = seeds.map_err(|_| "how many seeds? a number, such as 200")?;
    println!("{}{seeds} seeds, every law holds", run(0..seeds)?);
    Ok(())
}

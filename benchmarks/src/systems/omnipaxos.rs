//! OmniPaxos: not Raft, but a replicated log with the same promise, and a lean one.
//!
//! Tuned: a storage of our own that applies decided entries where they lie, because
//! `read_decided_suffix` would clone each once more; the log is trimmed as it is decided, so that
//! memory stays bounded; nobody stands for election but replica 0 unless it is gone for a second.

use std::sync::{Arc, Mutex, PoisonError};

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::{PaxosMessage, PaxosMsg};
use omnipaxos::storage::{Entry, NoSnapshot, StopSign, Storage, StorageOp, StorageResult};
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};

use super::{Kind, System, with_command};
use crate::client::Measurement;
use crate::command::{Command, State};
use crate::node::{Node, measure};
use crate::scenario::Setup;

/// Trim whenever so many entries more are decided: seldom enough to cost nothing, often enough
/// that the log stays in the processor's caches.
const TRIM_EVERY: usize = 16 * 1024;

pub fn batched() -> System {
    System {
        name: "omnipaxos-batch",
        kind: Kind::Library,
        about: "a batch goes in as one forwarded proposal, the only way in for many at once",
        package: Some("omnipaxos"),
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure_batched(setup)),
    }
}

pub fn one_by_one() -> System {
    System {
        name: "omnipaxos-append",
        kind: Kind::Library,
        about: "`append()` for every command",
        package: Some("omnipaxos"),
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure_one_by_one(setup)),
    }
}

fn measure_batched<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    measure(setup, [0, 1, 2].map(|id| Replica::<C>::new(id, true)))
}

fn measure_one_by_one<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    measure(setup, [0, 1, 2].map(|id| Replica::<C>::new(id, false)))
}

#[derive(Clone, Debug)]
struct Proposal<C>(C);

impl<C: Command> Entry for Proposal<C> {
    type Snapshot = NoSnapshot;
}

struct Replica<C: Command> {
    /// OmniPaxos counts its nodes from one.
    pid: u64,
    paxos: OmniPaxos<Proposal<C>, Log<C>>,
    /// What the storage has applied so far.
    state: Arc<Mutex<State>>,
    in_batches: bool,
    trimmed: usize,
    messages: Vec<Message<Proposal<C>>>,
}

impl<C: Command> Replica<C> {
    fn new(id: usize, in_batches: bool) -> Self {
        let pid = id as u64 + 1;
        let cluster_config =
            ClusterConfig { configuration_id: 1, nodes: vec![1, 2, 3], flexible_quorum: None };
        let server_config = ServerConfig {
            pid,
            election_tick_timeout: if id == 0 { 2 } else { 100 },
            resend_message_tick_timeout: 100,
            leader_priority: if id == 0 { 1 } else { 0 },
            ..ServerConfig::default()
        };
        let state = Arc::new(Mutex::new(State::default()));
        let log = Log::new(state.clone());
        let config = OmniPaxosConfig { cluster_config, server_config };
        let paxos = config.build(log).expect("the configuration is valid");
        Self { pid, paxos, state, in_batches, trimmed: 0, messages: Vec::new() }
    }

    /// Only the leader can: it tells the others. Fails while a follower lags, and is tried again.
    fn trim(&mut self) {
        let decided = self.paxos.get_decided_idx();
        if self.leads() && decided >= self.trimmed + TRIM_EVERY && self.paxos.trim(None).is_ok() {
            self.trimmed = decided;
        }
    }
}

impl<C: Command> Node for Replica<C> {
    type Command = C;
    type Message = Message<Proposal<C>>;

    fn leads(&self) -> bool {
        // `true` says that the leader is through its prepare phase.
        self.pid == 1 && self.paxos.get_current_leader() == Some((1, true))
    }

    fn tick(&mut self) {
        self.paxos.tick();
    }

    fn propose(&mut self, commands: Vec<C>) {
        let proposals = commands.into_iter().map(Proposal);
        if self.in_batches {
            let msg = PaxosMsg::ProposalForward(proposals.collect());
            let message = PaxosMessage { from: self.pid, to: self.pid, msg };
            self.paxos.handle_incoming(Message::SequencePaxos(message));
        } else {
            for proposal in proposals {
                self.paxos.append(proposal).expect("no reconfiguration is pending");
            }
        }
    }

    fn receive(&mut self, message: Self::Message) {
        self.paxos.handle_incoming(message);
    }

    fn turn(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Self::Message)>) {
        self.trim();
        self.paxos.take_outgoing_messages(&mut self.messages);
        for message in self.messages.drain(..) {
            outgoing.push((message.get_receiver() as usize - 1, message));
        }
        *state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
    }
}

/// A log in memory that applies entries as they are decided.
struct Log<C> {
    state: Arc<Mutex<State>>,
    /// How many entries, from the first ever, the state holds.
    applied: usize,
    /// The entries after the `trimmed` first ones.
    entries: Vec<Proposal<C>>,
    trimmed: usize,
    decided: usize,
    compacted: usize,
    promise: Option<Ballot>,
    accepted_round: Option<Ballot>,
}

impl<C: Command> Log<C> {
    fn new(state: Arc<Mutex<State>>) -> Self {
        Self {
            state,
            applied: 0,
            entries: Vec::new(),
            trimmed: 0,
            decided: 0,
            compacted: 0,
            promise: None,
            accepted_round: None,
        }
    }

    fn apply_decided(&mut self) {
        let until = self.decided.min(self.trimmed + self.entries.len());
        if until <= self.applied {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for Proposal(command) in &self.entries[self.applied - self.trimmed..until - self.trimmed] {
            state.apply(command.as_slice());
        }
        self.applied = until;
    }
}

impl<C: Command> Storage<Proposal<C>> for Log<C> {
    fn write_atomically(&mut self, operations: Vec<StorageOp<Proposal<C>>>) -> StorageResult<()> {
        for operation in operations {
            match operation {
                StorageOp::AppendEntry(entry) => self.append_entry(entry)?,
                StorageOp::AppendEntries(entries) => self.append_entries(entries)?,
                StorageOp::AppendOnPrefix(from, entries) => self.append_on_prefix(from, entries)?,
                StorageOp::SetPromise(ballot) => self.set_promise(ballot)?,
                StorageOp::SetDecidedIndex(index) => self.set_decided_idx(index)?,
                StorageOp::SetAcceptedRound(ballot) => self.set_accepted_round(ballot)?,
                StorageOp::SetCompactedIdx(index) => self.set_compacted_idx(index)?,
                StorageOp::Trim(index) => self.trim(index)?,
                StorageOp::SetStopsign(stop_sign) => self.set_stopsign(stop_sign)?,
                StorageOp::SetSnapshot(snapshot) => self.set_snapshot(snapshot)?,
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: Proposal<C>) -> StorageResult<()> {
        self.entries.push(entry);
        Ok(())
    }

    fn append_entries(&mut self, mut entries: Vec<Proposal<C>>) -> StorageResult<()> {
        self.entries.append(&mut entries);
        Ok(())
    }

    fn append_on_prefix(&mut self, from: usize, entries: Vec<Proposal<C>>) -> StorageResult<()> {
        self.entries.truncate(from - self.trimmed);
        self.append_entries(entries)
    }

    fn set_promise(&mut self, promise: Ballot) -> StorageResult<()> {
        self.promise = Some(promise);
        Ok(())
    }

    fn set_decided_idx(&mut self, decided: usize) -> StorageResult<()> {
        self.decided = decided;
        self.apply_decided();
        Ok(())
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        Ok(self.decided)
    }

    fn set_accepted_round(&mut self, round: Ballot) -> StorageResult<()> {
        self.accepted_round = Some(round);
        Ok(())
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.accepted_round)
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<Proposal<C>>> {
        let range = from - self.trimmed..to - self.trimmed;
        Ok(self.entries.get(range).unwrap_or_default().to_vec())
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        Ok(self.entries.len())
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<Proposal<C>>> {
        Ok(self.entries.get(from - self.trimmed..).unwrap_or_default().to_vec())
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.promise)
    }

    fn set_stopsign(&mut self, _: Option<StopSign>) -> StorageResult<()> {
        // The cluster is never reconfigured here.
        Ok(())
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(None)
    }

    fn trim(&mut self, until: usize) -> StorageResult<()> {
        self.entries.drain(..(until - self.trimmed).min(self.entries.len()));
        self.trimmed = until;
        Ok(())
    }

    fn set_compacted_idx(&mut self, index: usize) -> StorageResult<()> {
        self.compacted = index;
        Ok(())
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        Ok(self.compacted)
    }

    fn set_snapshot(&mut self, _: Option<NoSnapshot>) -> StorageResult<()> {
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<NoSnapshot>> {
        Ok(None)
    }
}

//! The `raft` crate of TiKV, through `RawNode`.
//!
//! Tuned: many entries in one proposal message instead of `propose` for each; a storage of our
//! own that takes the entries of a `Ready` instead of cloning them as `MemStorage` does; messages
//! of any size, batched appends and a wide window; the log compacted to what every replica holds.
//!
//! Commands "by value" are slices of a static table, which need no allocation and no counting: this
//! library carries `Bytes` only, and nothing else would be closer to a value.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::{
    Config, Error, GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError, util,
};

use super::{Kind, System};
use crate::client::Measurement;
use crate::command::{Command, Counted, Fixed, State};
use crate::node::{Node, REPLICAS, measure};
use crate::scenario::{Payload, Setup};

const COMPACT_EVERY: u64 = 16 * 1024;
const STATIC_COMMANDS: u64 = 4096;
const LARGEST_STATIC: usize = 256;

pub fn system() -> System {
    System {
        name: "tikv-raft",
        kind: Kind::Library,
        about: "`RawNode`, many entries in one proposal; \"by value\" means static `Bytes`",
        package: Some("raft"),
        supports: |_| true,
        measure: |setup| match setup.scenario.payload {
            Payload::Fixed16 => measure_with::<Static<16>>(setup),
            Payload::Fixed256 => measure_with::<Static<256>>(setup),
            Payload::Bytes16 => measure_with::<Counted<16>>(setup),
            Payload::Bytes256 => measure_with::<Counted<256>>(setup),
        },
    }
}

fn measure_with<C: Command + Into<Bytes>>(setup: &Setup) -> Result<Measurement, String> {
    measure(setup, [0, 1, 2].map(Replica::<C>::new))
}

/// A command that lies in a static table. Its numbers repeat, equally at all replicas.
#[derive(Clone, Debug)]
struct Static<const SIZE: usize>(&'static [u8]);

static TABLE: LazyLock<Vec<Fixed<LARGEST_STATIC>>> =
    LazyLock::new(|| (0..STATIC_COMMANDS).map(Fixed::numbered).collect());

impl<const SIZE: usize> Command for Static<SIZE> {
    fn numbered(number: u64) -> Self {
        Self(&TABLE[(number % STATIC_COMMANDS) as usize].as_slice()[..SIZE])
    }

    fn as_slice(&self) -> &[u8] {
        self.0
    }
}

impl<const SIZE: usize> From<Static<SIZE>> for Bytes {
    fn from(command: Static<SIZE>) -> Bytes {
        Bytes::from_static(command.0)
    }
}

impl<const SIZE: usize> From<Counted<SIZE>> for Bytes {
    fn from(command: Counted<SIZE>) -> Bytes {
        command.into_bytes()
    }
}

struct Replica<C> {
    raw: RawNode<Log>,
    applied: u64,
    commands: std::marker::PhantomData<fn(C)>,
}

impl<C: Command + Into<Bytes>> Replica<C> {
    fn new(id: usize) -> Self {
        // The library counts its nodes from one, and time in ticks.
        let (earliest, latest) = if id == 0 { (4, 5) } else { (100, 200) };
        let config = Config {
            id: id as u64 + 1,
            heartbeat_tick: 1,
            election_tick: earliest,
            min_election_tick: earliest,
            max_election_tick: latest,
            // Any limit makes the library compute the encoded size of every entry.
            max_size_per_msg: raft::NO_LIMIT,
            max_inflight_msgs: 1024,
            batch_append: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, Log::new(), &logger).expect("the configuration is valid");
        Self { raw, applied: 0, commands: std::marker::PhantomData }
    }

    fn process_ready(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Message)>) {
        let mut ready = self.raw.ready();
        send(ready.take_messages(), outgoing);
        self.apply(ready.take_committed_entries(), state);
        self.raw.mut_store().append(ready.take_entries());
        if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().hard_state = hard_state.clone();
        }
        send(ready.take_persisted_messages(), outgoing);
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().hard_state.commit = commit;
        }
        send(light.take_messages(), outgoing);
        self.apply(light.take_committed_entries(), state);
        self.raw.advance_apply();
    }

    fn apply(&mut self, entries: Vec<Entry>, state: &mut State) {
        for entry in entries {
            // The entry that a new leader begins its term with is empty.
            if !entry.data.is_empty() {
                state.apply(&entry.data);
            }
            self.applied = entry.index;
        }
    }

    /// The leader keeps what some follower still lacks: without it, it would need a snapshot.
    fn compact(&mut self) {
        if self.applied < self.raw.store().compacted + COMPACT_EVERY {
            return;
        }
        let held = if self.leads() {
            let progress = self.raw.raft.prs().iter();
            progress.map(|(_, peer)| peer.matched).min().unwrap_or(0)
        } else {
            u64::MAX
        };
        let until = held.min(self.applied);
        self.raw.mut_store().compact(until);
    }
}

fn send(messages: Vec<Message>, outgoing: &mut Vec<(usize, Message)>) {
    outgoing.extend(messages.into_iter().map(|message| (message.to as usize - 1, message)));
}

impl<C: Command + Into<Bytes>> Node for Replica<C> {
    type Command = C;
    type Message = Message;

    fn leads(&self) -> bool {
        self.raw.raft.id == 1 && self.raw.raft.state == StateRole::Leader
    }

    fn tick(&mut self) {
        self.raw.tick();
    }

    fn propose(&mut self, commands: Vec<C>) {
        let entries =
            commands.into_iter().map(|command| Entry { data: command.into(), ..Entry::default() });
        let mut proposal = Message::default();
        proposal.set_msg_type(MessageType::MsgPropose);
        proposal.from = self.raw.raft.id;
        proposal.set_entries(entries.collect::<Vec<_>>().into());
        self.raw.step(proposal).expect("the leader takes proposals");
    }

    fn receive(&mut self, message: Message) {
        self.raw.step(message).expect("the message comes from a member");
    }

    fn turn(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Message)>) {
        while self.raw.has_ready() {
            self.process_ready(state, outgoing);
        }
        self.compact();
    }
}

/// A log in memory.
struct Log {
    hard_state: HardState,
    /// The entries after index `compacted`, whose term was `compacted_term`.
    entries: VecDeque<Entry>,
    compacted: u64,
    compacted_term: u64,
}

impl Log {
    fn new() -> Self {
        let hard_state = HardState::default();
        Self { hard_state, entries: VecDeque::new(), compacted: 0, compacted_term: 0 }
    }

    fn last(&self) -> u64 {
        self.compacted + self.entries.len() as u64
    }

    fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        self.entries.truncate((first.index - self.compacted - 1) as usize);
        self.entries.extend(entries);
    }

    fn compact(&mut self, until: u64) {
        if until <= self.compacted {
            return;
        }
        self.compacted_term = self.entries[(until - self.compacted - 1) as usize].term;
        self.entries.drain(..(until - self.compacted) as usize);
        self.compacted = until;
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let voters: Vec<u64> = (1..=REPLICAS as u64).collect();
        Ok(RaftState::new(self.hard_state.clone(), ConfState::from((voters, vec![]))))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted {
            return Err(Error::Store(StorageError::Compacted));
        }
        let range = (low - self.compacted - 1) as usize..(high - self.compacted - 1) as usize;
        let mut entries = self.entries.range(range).cloned().collect();
        util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted {
            return Ok(self.compacted_term);
        }
        let position =
            index.checked_sub(self.compacted + 1).ok_or(Error::Store(StorageError::Compacted))?;
        let entry = self.entries.get(position as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        // Never needed, see `Replica::compact`.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

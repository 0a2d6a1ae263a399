//! What a replica makes of one input. Many states differ only in what others do, so turns are
//! remembered.

use crate::bounds::Bounds;
use crate::fingerprint::{Namings, hasher};
use crate::node::{Cut, Data, ELECTION, HEARTBEAT, Life, Message, Node, Raft, Transition};
use crate::state::Packet;
use little_raft::{Body, Config, ReplicaID, Snapshot, Term};
use little_raft_sim::append;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// So many turns are remembered in each of the shards.
const MOST: usize = 4_000;
const SHARDS: usize = 64;

/// What comes in.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    Packet(&'a Packet),
    Timeout,
    Proposal(u8),
    Change,
    Transfer(ReplicaID),
    Start,
}

/// What a turn leads to.
pub(crate) struct Turn {
    pub(crate) node: Arc<Node>,
    pub(crate) sent: Vec<Arc<Packet>>,
    /// The terms in which the replica has shown itself to be the leader.
    pub(crate) led: Vec<Term>,
}

/// The turns of all replicas of a cluster.
pub(crate) struct Turns {
    bounds: Bounds,
    pub(crate) namings: Arc<Namings>,
    known: Vec<Mutex<HashMap<u64, Option<Arc<Turn>>>>>,
}

impl Turns {
    pub(crate) fn new(bounds: Bounds) -> Turns {
        let known = (0..SHARDS).map(|_| Mutex::default()).collect();
        Turns { namings: Arc::new(Namings::new(&bounds)), bounds, known }
    }

    /// What one input leads to; nothing if the replica panics, which it does if it finds that it
    /// has broken a law, or if it is down and has nothing to start from.
    pub(crate) fn turn(
        &self, id: ReplicaID, node: &Node, input: Input, cut: Option<Cut>,
    ) -> Option<Arc<Turn>> {
        let key = key(id, node, input, cut);
        let shard = &self.known[key as usize % SHARDS];
        let known = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = known().get(&key) {
            return turn.clone();
        }
        let turn = catch_unwind(AssertUnwindSafe(|| self.take(id, node, input, cut)));
        let turn = turn.ok().flatten().map(Arc::new);
        let mut known = known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, turn.clone());
        turn
    }

    fn take(&self, id: ReplicaID, node: &Node, input: Input, cut: Option<Cut>) -> Option<Turn> {
        let (mut raft, mut state, mut snapshot) = match &node.life {
            Some(life) => (life.raft.clone(), life.state.clone(), life.snapshot),
            None => self.start(id, node)?,
        };
        let now = if matches!(input, Input::Timeout) { raft.me.deadline } else { raft.me.now };
        self.give(&mut raft, input);
        let outputs = raft.outputs(now);
        let (mut sent, mut disk) = (outputs.appends, node.disk.clone());
        let restarted = node.restarted || node.life.is_none() && node.disk.membership.is_some();
        let down = |disk| Node::new(disk, None, restarted, &self.namings);
        if cut == Some(Cut::BeforeSave) {
            return Some(self.ended(id, down(disk), sent));
        }
        if let Some(change) = outputs.change {
            append(&mut disk, change);
            raft.saved();
        }
        if cut == Some(Cut::AfterSave) {
            return Some(self.ended(id, down(disk), sent));
        }
        sent.extend(outputs.messages);
        if let Some(restored) = outputs.restore {
            snapshot = restored.last_included_index;
            state = restored.data;
        }
        apply(&mut raft, &mut state, &mut snapshot)?;
        let mut life = Life::of(raft, state, snapshot, node.life.as_ref());
        life.asked |= sent.iter().any(|(_, message)| stands_as_asked(message));
        let node = Node::new(disk, Some(life), restarted, &self.namings);
        Some(self.ended(id, node, sent))
    }

    /// Brings a replica up from what is saved.
    fn start(&self, id: ReplicaID, node: &Node) -> Option<(Raft, Data, usize)> {
        let servers = self.bounds.servers.into();
        let config = Config {
            id,
            peer_ids: (0..servers).filter(|peer| *peer != id).collect(),
            heartbeat_timeout: HEARTBEAT,
            election_timeout_range: (ELECTION, ELECTION),
            snapshot_delta: self.bounds.snapshot_delta.into(),
            joining: id >= servers,
            ..Config::default()
        };
        let raft = Raft::new(config, Transition::Noop(id), node.disk.clone(), Duration::ZERO);
        let snapshot = node.disk.snapshot.as_ref();
        let state = snapshot.map(|it| it.data.clone()).unwrap_or_default();
        Some((raft.ok()?, state, snapshot.map_or(0, |it| it.last_included_index)))
    }

    fn give(&self, raft: &mut Raft, input: Input) {
        let now = raft.me.now;
        match input {
            Input::Packet(packet) => raft.step(now, packet.message.clone()),
            Input::Proposal(number) => raft.propose(vec![Transition::Proposal(number)]),
            Input::Transfer(to) => raft.step(now, Message::transfer_leadership(to)),
            Input::Change => {
                let voters = self.bounds.change_to.clone();
                raft.step(now, Message::change_membership(voters, Vec::new()));
            }
            Input::Timeout | Input::Start => {}
        }
    }

    fn ended(&self, id: ReplicaID, node: Node, sent: Vec<(ReplicaID, Message)>) -> Turn {
        let append = |message: &Message| match message {
            Message { term, body: Body::AppendEntries { .. }, .. } => Some(*term),
            _ => None,
        };
        let mut led: Vec<_> = sent.iter().filter_map(|(_, message)| append(message)).collect();
        led.extend(node.leads().map(|it| it.term));
        led.dedup();
        let packet = |(to, message)| Arc::new(Packet::new(id, to, message, &self.namings));
        Turn { node: Arc::new(node), sent: sent.into_iter().map(packet).collect(), led }
    }
}

/// Applies what is committed, and takes a snapshot if it is time to; nothing if that is refused.
fn apply(raft: &mut Raft, state: &mut Data, snapshot: &mut usize) -> Option<()> {
    while !raft.committed().is_empty() {
        let count = raft.committed().len();
        state.extend_from_slice(raft.committed());
        raft.applied(count);
    }
    let data = state.clone();
    let take = |last_included_index, last_included_term| {
        *snapshot = last_included_index;
        Snapshot { last_included_index, last_included_term, data }
    };
    raft.compact(take).ok()
}

fn stands_as_asked(message: &Message) -> bool {
    matches!(message.body, Body::RequestVote { transfer: true, .. })
}

fn key(id: ReplicaID, node: &Node, input: Input, cut: Option<Cut>) -> u64 {
    let mut hasher = hasher();
    (id, node.exact, cut).hash(&mut hasher);
    match input {
        Input::Packet(packet) => (0, packet.exact).hash(&mut hasher),
        Input::Timeout => 1.hash(&mut hasher),
        Input::Proposal(number) => (2, number).hash(&mut hasher),
        Input::Change => 3.hash(&mut hasher),
        Input::Transfer(to) => (4, to).hash(&mut hasher),
        Input::Start => 5.hash(&mut hasher),
    }
    hasher.finish()
}

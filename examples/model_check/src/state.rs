//! The cluster at one moment, and what must be remembered of how it came there.

use crate::laws::Law;
use crate::node::{Entry, Node, Transition, Turn};
use crate::{Bounds, fingerprint};
use little_raft::{Body, Message, ReplicaID, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A message underway.
#[derive(Clone, PartialEq)]
pub struct Packet {
    /// Who sent it.
    pub from: ReplicaID,
    /// To whom.
    pub to: ReplicaID,
    /// What it says.
    pub message: Message<Transition>,
}

/// What no single moment shows.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Who led each term.
    pub leaders: BTreeMap<Term, ReplicaID>,
    /// The committed entries from index 1 on, each with the term in which it was committed.
    pub committed: Vec<(Entry, Term)>,
    /// The law that the last step broke.
    pub broken: Option<Law>,
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    /// Timeouts.
    pub timeouts: u8,
    /// Messages lost.
    pub drops: u8,
    /// Messages delivered twice.
    pub duplicates: u8,
    /// Crashes.
    pub crashes: u8,
    /// Proposals.
    pub proposals: u8,
}

/// The cluster at one moment. What has not changed is shared with the states before.
#[derive(Clone, Debug)]
pub struct State {
    /// The replicas, by their id.
    pub nodes: Vec<Arc<Node>>,
    /// The messages underway, in the order in which they were sent.
    pub network: Vec<Arc<Packet>>,
    /// What must be remembered.
    pub history: Arc<History>,
    /// What may still happen.
    pub left: Left,
    /// Whether messages from one replica to another stay in order.
    pub ordered: bool,
}

impl State {
    /// A cluster in which all replicas have just started for the first time.
    pub(crate) fn initial(bounds: &Bounds, ordered: bool) -> State {
        let left = Left {
            timeouts: bounds.timeouts,
            drops: bounds.drops,
            duplicates: bounds.duplicates,
            crashes: bounds.crashes,
            proposals: bounds.proposals,
        };
        let nodes = (0..bounds.servers).map(|_| Arc::new(Node::new())).collect();
        let mut state = State { nodes, network: vec![], history: Arc::default(), left, ordered };
        for id in 0..state.nodes.len() {
            let turn = state.nodes[id].start(id, state.nodes.len());
            state.take(id, turn);
        }
        state
    }

    /// Takes over what a turn led to, and judges the step.
    pub(crate) fn take(&mut self, id: ReplicaID, turn: Option<Turn>) {
        let mut history = History::clone(&self.history);
        match turn {
            None => history.broken = Some(Law::Own),
            Some(turn) => {
                history.broken = history.record(id, &self.nodes[id], &turn).err();
                let packet = |(to, message)| Arc::new(Packet { from: id, to, message });
                self.network.extend(turn.sent.into_iter().map(packet));
                self.nodes[id] = Arc::new(turn.node);
            }
        }
        self.history = Arc::new(history);
    }

    /// The same for all states that differ in nothing but time and the names of the replicas.
    pub fn fingerprint(&self) -> u64 {
        fingerprint::of(self)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.fingerprint());
    }
}

impl History {
    fn record(&mut self, id: ReplicaID, before: &Node, turn: &Turn) -> Result<(), Law> {
        let (old, new) = (&before.disk, &turn.node.disk);
        let changed = old.voted_for.is_some() && old.voted_for != new.voted_for;
        if new.term < old.term || new.term == old.term && changed {
            return Err(Law::VoteOnce);
        }
        for (_, message) in &turn.sent {
            if let Message::Protocol { term, body: Body::AppendEntries { .. }, .. } = message {
                self.leads(id, *term)?;
            }
        }
        if let Some(status) = turn.node.leads() {
            self.leads(id, status.term)?;
        }
        self.commit(before, turn)
    }

    fn leads(&mut self, id: ReplicaID, term: Term) -> Result<(), Law> {
        match *self.leaders.entry(term).or_insert(id) == id {
            true => Ok(()),
            false => Err(Law::ElectionSafety),
        }
    }

    /// What one replica believes to be committed is so for all, and what it applied is that.
    fn commit(&mut self, before: &Node, turn: &Turn) -> Result<(), Law> {
        let Some(life) = &turn.node.life else { return Ok(()) };
        let known = turn.node.log.get(..life.status.commit).ok_or(Law::StateMachineSafety)?;
        for (place, entry) in known.iter().enumerate() {
            match self.committed.get(place) {
                Some((committed, _)) if committed != entry => return Err(Law::StateMachineSafety),
                Some(_) => {}
                None => self.committed.push((*entry, life.status.term)),
            }
        }
        let from = before.life.as_ref().map_or(0, |it| it.status.applied);
        let expected = known.get(from..).unwrap_or_default().iter().map(|it| it.transition);
        match expected.eq(turn.applied.iter().copied()) && life.status.applied == known.len() {
            true => Ok(()),
            false => Err(Law::StateMachineSafety),
        }
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: ", self.from, self.to)?;
        match &self.message {
            Message::Protocol { term, body, .. } => write!(f, "term {term} {body:?}"),
            Message::Request(request) => write!(f, "{request:?}"),
        }
    }
}

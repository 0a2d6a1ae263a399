//! The cluster at one moment, and what must be remembered of how it came there.

use crate::fingerprint::{self, Namings, exact, hashes, round};
use crate::laws::Law;
use crate::node::{Content, Entry, Message, Node, Transition};
use crate::turn::{Input, Turn, Turns};
use crate::{Bounds, Network};
use little_raft::{Index, Membership, ReplicaID, Round, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A message underway.
#[derive(Clone)]
pub struct Packet {
    /// Who sent it.
    pub from: ReplicaID,
    /// To whom.
    pub to: ReplicaID,
    /// What it says.
    pub message: little_raft::Message<Transition, Vec<Transition>>,
    /// The leadership to which it belongs, and its round.
    pub(crate) round: Option<(ReplicaID, Term, Round)>,
    /// Tells it from every other that is not exactly the same.
    pub(crate) exact: u64,
    /// Tells it from those that differ in more than the round, under each naming.
    pub(crate) hashes: Box<[u64]>,
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
    /// What tells it from others, under each naming.
    pub(crate) hashes: Box<[u64]>,
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    /// Timeouts.
    pub timeouts: u8,
    /// Further ones of leaders.
    pub heartbeats: u8,
    /// Messages lost.
    pub drops: u8,
    /// Messages delivered twice.
    pub duplicates: u8,
    /// Crashes.
    pub crashes: u8,
    /// Proposals.
    pub proposals: u8,
    /// Transfers of leadership.
    pub transfers: u8,
    /// Changes of the configuration.
    pub changes: u8,
}

/// The cluster at one moment. What has not changed is shared with the states before.
#[derive(Clone)]
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
    /// The first configuration.
    pub first: Arc<Membership>,
    pub(crate) namings: Arc<Namings>,
}

impl State {
    /// A cluster in which all replicas have just started for the first time.
    pub(crate) fn initial(bounds: &Bounds, turns: &Turns) -> State {
        let left = Left {
            timeouts: bounds.timeouts,
            heartbeats: bounds.heartbeats,
            drops: bounds.drops,
            duplicates: bounds.duplicates,
            crashes: bounds.crashes,
            proposals: bounds.proposals,
            transfers: bounds.transfers,
            changes: u8::from(!bounds.change_to.is_empty()),
        };
        let namings = turns.namings.clone();
        let new = || Arc::new(Node::new(Default::default(), None, false, &namings));
        let nodes: Vec<_> = (0..bounds.replicas()).map(|_| new()).collect();
        let mut history = History::default();
        history.hashes = hashes(&history, &namings);
        let (history, ordered) = (Arc::new(history), bounds.network == Network::Ordered);
        let voters = (0..bounds.servers.into()).collect();
        let first = Arc::new(Membership { voters, ..Membership::default() });
        let mut state = State { nodes, network: vec![], history, left, ordered, first, namings };
        for id in 0..state.nodes.len() {
            state.take(id, turns.turn(id, &state.nodes[id], Input::Start, None));
        }
        state
    }

    /// Takes over what a turn led to, and judges the step.
    pub(crate) fn take(&mut self, id: ReplicaID, turn: Option<Arc<Turn>>) {
        let mut history = self.history.clone();
        let broken = match turn {
            None => Some(Law::Own),
            Some(turn) => {
                let judged = history.record(id, &self.nodes[id], &turn);
                self.network.extend(turn.sent.iter().cloned());
                self.nodes[id] = turn.node.clone();
                judged.err()
            }
        };
        if broken != history.broken {
            Arc::make_mut(&mut history).broken = broken;
        }
        if !Arc::ptr_eq(&history, &self.history) {
            let hashes = hashes(&*history, &self.namings);
            Arc::make_mut(&mut history).hashes = hashes;
            self.history = history;
        }
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

impl Packet {
    pub(crate) fn new(
        from: ReplicaID, to: ReplicaID, message: Message, namings: &Namings,
    ) -> Packet {
        let (round, exact) = (round(from, to, &message), exact(&(from, to, &message)));
        let mut packet = Packet { from, to, message, round, exact, hashes: Box::default() };
        packet.hashes = hashes(&packet, namings);
        packet
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Packet) -> bool {
        self.exact == other.exact
    }
}

/// Most steps teach nothing new, and share the history with the state before.
trait Record {
    fn record(&mut self, id: ReplicaID, before: &Node, turn: &Turn) -> Result<(), Law>;
    fn leads(&mut self, id: ReplicaID, term: Term) -> Result<(), Law>;
    fn commit(&mut self, node: &Node) -> Result<(), Law>;
}

impl Record for Arc<History> {
    fn record(&mut self, id: ReplicaID, before: &Node, turn: &Turn) -> Result<(), Law> {
        let (old, new) = (&before.disk, &turn.node.disk);
        let changed = old.voted_for.is_some() && old.voted_for != new.voted_for;
        if new.term < old.term || new.term == old.term && changed {
            return Err(Law::VoteOnce);
        }
        turn.led.iter().try_for_each(|term| self.leads(id, *term))?;
        self.commit(&turn.node)
    }

    fn leads(&mut self, id: ReplicaID, term: Term) -> Result<(), Law> {
        match self.leaders.get(&term) {
            Some(leader) if *leader == id => return Ok(()),
            Some(_) => return Err(Law::ElectionSafety),
            None => Arc::make_mut(self).leaders.insert(term, id),
        };
        Ok(())
    }

    /// What one replica believes to be committed is so for all, and its state is what comes of it.
    fn commit(&mut self, node: &Node) -> Result<(), Law> {
        let Some(life) = &node.life else { return Ok(()) };
        let (base, commit) = (node.disk.compacted, life.status.commit);
        if !self.has(base.index, base.term) {
            return Err(Law::StateMachineSafety);
        }
        for index in base.index + 1..=commit {
            let entry = node.entry(index).ok_or(Law::StateMachineSafety)?;
            match self.committed.get(index - 1) {
                Some((committed, _)) if committed != entry => return Err(Law::StateMachineSafety),
                Some(_) => {}
                None => {
                    let known = (entry.clone(), life.status.term);
                    Arc::make_mut(self).committed.push(known);
                }
            }
        }
        let expected = self.committed.iter().take(commit).filter_map(|(entry, _)| {
            let Content::Transition(transition) = &entry.content else { return None };
            Some(transition)
        });
        match expected.eq(&life.state) && life.status.applied == commit {
            true => Ok(()),
            false => Err(Law::StateMachineSafety),
        }
    }
}

impl History {
    /// Whether the entry of this term is committed at an index.
    fn has(&self, index: Index, term: Term) -> bool {
        let committed = |place: usize| self.committed.get(place).map(|(entry, _)| entry.term);
        index.checked_sub(1).map_or(Some(0), committed) == Some(term)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: ", self.from, self.to)?;
        let Message { term, body, .. } = &self.message;
        write!(f, "term {term} {body:?}")
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("State");
        shown.field("nodes", &self.nodes).field("network", &self.network);
        shown.field("leaders", &self.history.leaders).field("committed", &self.history.committed);
        shown.field("broken", &self.history.broken).field("left", &self.left).finish()
    }
}

//! One replica: a real `Raft`, the disk below it, and the state machine above.

use crate::fingerprint::{Name, Naming, Namings, exact, hasher, hashes};
use crate::probe;
use little_raft::{
    Index, Membership, ReplicaID, Role, Round, StateMachineTransition, Status, Term,
};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// A state machine that remembers all it was ever told: its state is the list of that.
pub(crate) type Data = Vec<Transition>;
pub(crate) type Raft = little_raft::Raft<Transition, Data>;
pub(crate) type Change = little_raft::Change<Transition, Data>;
pub(crate) type Message = little_raft::Message<Transition, Data>;

/// Time between two heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A leader that nobody answers steps down at its second heartbeat. Least and greatest are the
/// same: a replica stops believing in its leader in the moment in which it stands for election.
pub(crate) const ELECTION: Duration = Duration::from_secs(3);

/// What is replicated. Each is told from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// What a new leader begins with.
    Noop(ReplicaID),
    /// What the user proposes, counted from 1.
    Proposal(u8),
}

impl StateMachineTransition for Transition {
    type TransitionID = Transition;
    fn get_id(&self) -> Transition {
        *self
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Something for the state machine.
    Transition(Transition),
    /// A configuration.
    Configuration(Arc<Membership>),
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term in which it was appended.
    pub term: Term,
    /// What it holds.
    pub content: Content,
}

/// Where in a turn a crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The appends are sent, the change is lost.
    BeforeSave,
    /// The change is saved, the messages that wait for it are not sent.
    AfterSave,
}

/// What a crash ends.
#[derive(Clone)]
pub struct Life {
    pub(crate) raft: Raft,
    /// What the replica says of itself.
    pub status: Status,
    /// The state machine.
    pub state: Vec<Transition>,
    /// Up to where the replica has taken, or got, a snapshot. It is saved in the turn after that.
    pub snapshot: Index,
    /// Whether it refuses to vote because it has heard a leader.
    pub shuns: bool,
    /// The sets of others whose votes together would make it win, as bits.
    pub wins: Vec<u8>,
    /// As a leader, its current round.
    pub round: Round,
    /// Since when it hands its leadership over, and to whom if that one is still a peer.
    pub handing: Option<(Option<ReplicaID>, Duration)>,
    /// Whether it stands for election, or leads, because its leader asked it to.
    pub asked: bool,
}

/// A replica, up or down.
#[derive(Clone)]
pub struct Node {
    /// What is saved.
    pub disk: little_raft::Change<Transition, Vec<Transition>>,
    /// The entries that are saved and not compacted.
    pub log: Vec<Entry>,
    /// Nothing while it is down.
    pub life: Option<Life>,
    /// Whether it has ever come back from a crash.
    pub restarted: bool,
    /// Tells it from every other that is not exactly the same.
    pub(crate) exact: u64,
    /// Tells it from those that differ in more than time, under each naming.
    pub(crate) hashes: Box<[u64]>,
    /// The same, but for all that names others.
    pub(crate) nameless: u64,
}

impl Node {
    /// A replica with this disk, which is down or alive.
    pub(crate) fn new(
        disk: Change, life: Option<Life>, restarted: bool, namings: &Namings,
    ) -> Node {
        let (log, under) = (entries(&disk), Box::default());
        let mut node = Node { disk, log, life, restarted, exact: 0, hashes: under, nameless: 0 };
        let alive = node.life.as_ref().map(|it| (&it.raft, &it.state, it.asked));
        node.exact = exact(&(&node.disk, alive, node.restarted));
        node.hashes = hashes(&node, namings);
        node.nameless = nameless(&node);
        node
    }

    /// What a crash leaves of it.
    pub(crate) fn crashed(&self, namings: &Namings) -> Node {
        Node::new(self.disk.clone(), None, self.restarted, namings)
    }

    /// The status, if it is up and leads.
    pub(crate) fn leads(&self) -> Option<&Status> {
        self.life.as_ref().map(|it| &it.status).filter(|it| it.role == Role::Leader)
    }

    /// The saved entry at an index; nothing if it is compacted or not there.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log.get(index.checked_sub(self.disk.compacted.index + 1)?)
    }

    /// Whether this is saved here, be it as an entry or as a part of a snapshot.
    pub fn holds(&self, index: Index, entry: &Entry) -> bool {
        index <= self.disk.compacted.index || self.entry(index) == Some(entry)
    }

    /// Whether its latest snapshot came from a leader: behind its own it keeps some entries.
    pub(crate) fn has_installed(&self) -> bool {
        let snapshot = self.disk.snapshot.as_ref().map(little_raft::Snapshot::last);
        snapshot == Some(self.disk.compacted)
    }
}

impl Life {
    /// How a replica is after a turn, before which it was as given.
    pub(crate) fn of(raft: Raft, state: Data, snapshot: Index, before: Option<&Life>) -> Life {
        let status = Status { first_index: probe::first_index(&raft), ..raft.me.clone() };
        let (shuns, round) = (probe::shuns(&raft), probe::round(&raft));
        let (wins, hands) = (probe::wins(&raft), probe::hands(&raft, round));
        let since = before.and_then(|it| it.handing).map_or(status.now, |(_, since)| since);
        let handing = hands.map(|to| (to, since));
        let asked = before.is_some_and(|it| it.asked && it.status.term == status.term);
        let asked = asked && matches!(status.role, Role::Candidate | Role::Leader);
        Life { raft, status, state, snapshot, shuns, wins, round, handing, asked }
    }
}

fn entries(disk: &Change) -> Vec<Entry> {
    let of_run = |run: &little_raft::Run<Transition>| {
        let transitions = run.transitions.iter().map(|it| Content::Transition(*it));
        let configuration = run.membership.iter().map(|it| Content::Configuration(it.clone()));
        let term = run.term;
        transitions.chain(configuration).map(|it| Entry { term, content: it }).collect::<Vec<_>>()
    };
    disk.runs.iter().flat_map(of_run).collect()
}

/// A hash of what a replica is, without anything that names another.
fn nameless(node: &Node) -> u64 {
    let mut hasher = hasher();
    let life = node.life.as_ref().map(|it| (it.status.role, it.status.commit, it.shuns));
    (node.disk.term, node.log.len(), life, node.restarted).hash(&mut hasher);
    hasher.finish()
}

/// All but the rounds, which mean something only among those that are to be seen elsewhere.
impl Name for Node {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        let disk = &self.disk;
        (disk.term, disk.voted_for.map(|it| naming.names[it]), self.restarted).hash(to);
        (disk.compacted, disk.snapshot.as_ref().map(little_raft::Snapshot::last)).hash(to);
        disk.membership.is_some().hash(to);
        disk.membership.iter().for_each(|it| it.hash_named(naming, to));
        self.log.len().hash(to);
        self.log.iter().for_each(|entry| entry.hash_named(naming, to));
        self.life.is_some().hash(to);
        self.life.iter().for_each(|life| life.hash_named(naming, to));
    }
}

impl Name for Life {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        let (status, name) = (&self.status, |id: ReplicaID| naming.names[id]);
        (status.role, status.leader.map(name), status.commit).hash(to);
        (status.first_index, self.snapshot, self.shuns, self.asked).hash(to);
        let mut wins: Vec<_> = self.wins.iter().map(|set| naming.name_set(*set)).collect();
        wins.sort_unstable();
        wins.hash(to);
        let handing = self.handing.map(|(id, since)| (id.map(name), age(status.now, since)));
        handing.hash(to);
        for (id, peer) in naming.in_order(&status.peers) {
            (name(id), peer.matched, peer.next, peer.probing).hash(to);
            peer.installing.map(|(until, wait)| (until.saturating_sub(status.now), wait)).hash(to);
        }
    }
}

/// For how many heartbeats something has been so: after two a leader has given up anything.
pub(crate) fn age(now: Duration, since: Duration) -> u128 {
    let silent = now.saturating_sub(since) + HEARTBEAT / 2;
    (silent.as_nanos() / HEARTBEAT.as_nanos()).min(2)
}

impl Name for Entry {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        self.term.hash(to);
        match &self.content {
            Content::Transition(it) => (0, naming.transition(*it)).hash(to),
            Content::Configuration(it) => {
                1.hash(to);
                it.hash_named(naming, to);
            }
        }
    }
}

impl Name for Membership {
    fn hash_named(&self, naming: &Naming, to: &mut impl Hasher) {
        for half in [&self.voters, &self.outgoing, &self.learners] {
            half.iter().fold(0u8, |set, id| set | 1 << naming.names[*id]).hash(to);
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Node");
        shown.field("term", &self.disk.term).field("voted_for", &self.disk.voted_for);
        shown.field("compacted", &self.disk.compacted).field("log", &self.log);
        match &self.life {
            None => shown.field("up", &false),
            Some(Life { status, shuns, handing, .. }) => shown
                .field("role", &status.role)
                .field("leader", &status.leader)
                .field("commit", &status.commit)
                .field("heard_leader", shuns)
                .field("hands_over", handing)
                .field("peers", &status.peers),
        };
        shown.finish()
    }
}

//! One replica: a real `Raft`, the disk below it, and the turn that connects them.

use little_raft::{
    Body, Change, Config, LogId, Message, Raft, ReplicaID, Role, StateMachineTransition, Status,
    Term,
};
use little_raft_sim::append;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Time between two heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A leader that nobody answers steps down at its second heartbeat. Least and greatest are the
/// same: a replica stops believing in its leader in the moment in which it stands for election.
const ELECTION: Duration = Duration::from_secs(3);

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

/// An entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The term in which it was appended.
    pub term: Term,
    /// What it holds.
    pub transition: Transition,
}

/// Where in a turn a crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The appends are sent, the change is lost.
    BeforeSave,
    /// The change is saved, the messages that wait for it are not sent.
    AfterSave,
}

/// What a crash ends.
#[derive(Clone)]
pub struct Life {
    pub(crate) raft: Raft<Transition>,
    /// What the replica says of itself.
    pub status: Status,
    /// Whether it refuses to vote because it has heard a leader.
    pub shuns: bool,
    /// The peers whose vote would make it win.
    pub decisive: Vec<ReplicaID>,
}

/// A replica, up or down.
#[derive(Clone)]
pub struct Node {
    /// What is saved.
    pub disk: Change<Transition>,
    /// The entries that are saved, from index 1 on.
    pub log: Vec<Entry>,
    /// Nothing while it is down.
    pub life: Option<Life>,
    /// Whether it has ever come back from a crash.
    pub restarted: bool,
}

/// What comes in.
pub(crate) enum Input<'a> {
    Message(&'a Message<Transition>),
    Timeout,
    Proposal(u8),
    Start,
}

/// What a turn leads to.
pub(crate) struct Turn {
    pub(crate) node: Node,
    pub(crate) sent: Vec<(ReplicaID, Message<Transition>)>,
    pub(crate) applied: Vec<Transition>,
}

impl Node {
    /// A replica that has never run.
    pub(crate) fn new() -> Node {
        Node { disk: Change::default(), log: Vec::new(), life: None, restarted: false }
    }

    /// Brings it up from what is saved, and takes a first turn.
    pub(crate) fn start(&self, id: ReplicaID, servers: usize) -> Option<Turn> {
        let config = Config {
            id,
            peer_ids: (0..servers).filter(|peer| *peer != id).collect(),
            heartbeat_timeout: HEARTBEAT,
            election_timeout_range: (ELECTION, ELECTION),
            ..Config::default()
        };
        let raft = Raft::new(config, Transition::Noop(id), self.disk.clone(), Duration::ZERO);
        self.turn_of(raft.ok()?, Input::Start, None)
    }

    /// What one input leads to; nothing if the replica panics, which it does if it finds that it
    /// has broken a law.
    pub(crate) fn turn(&self, input: Input, cut: Option<Cut>) -> Option<Turn> {
        self.turn_of(self.life.as_ref()?.raft.clone(), input, cut)
    }

    fn turn_of(&self, raft: Raft<Transition>, input: Input, cut: Option<Cut>) -> Option<Turn> {
        catch_unwind(AssertUnwindSafe(|| self.try_turn(raft, input, cut))).ok()
    }

    fn try_turn(&self, mut raft: Raft<Transition>, input: Input, cut: Option<Cut>) -> Turn {
        let mut node = Node { life: None, ..self.clone() };
        let now = raft.status().now;
        match input {
            Input::Message(message) => raft.step(now, message.clone()),
            Input::Timeout => raft.tick(raft.deadline),
            Input::Proposal(number) => raft.propose(vec![Transition::Proposal(number)]),
            Input::Start => {}
        }
        let outputs = raft.outputs();
        let mut sent = outputs.appends;
        if cut == Some(Cut::BeforeSave) {
            return Turn { node, sent, applied: Vec::new() };
        }
        if let Some(change) = outputs.change {
            append(&mut node.disk, change);
            node.log = entries(&node.disk);
            raft.saved();
        }
        if cut == Some(Cut::AfterSave) {
            return Turn { node, sent, applied: Vec::new() };
        }
        sent.extend(outputs.messages);
        let applied = apply(&mut raft);
        node.life = Some(Life::of(raft));
        Turn { node, sent, applied }
    }

    /// The status, if it is up and leads.
    pub(crate) fn leads(&self) -> Option<&Status> {
        self.life.as_ref().map(|it| &it.status).filter(|it| it.role == Role::Leader)
    }
}

impl Life {
    fn of(raft: Raft<Transition>) -> Life {
        let (status, shuns) = (raft.status(), shuns(&raft));
        let decisive = decisive(&raft, &status);
        Life { raft, status, shuns, decisive }
    }
}

fn entries(disk: &Change<Transition>) -> Vec<Entry> {
    let of_run = |run: &little_raft::Run<Transition>| {
        let term = run.term;
        run.transitions.iter().map(|&it| Entry { term, transition: it }).collect::<Vec<_>>()
    };
    disk.runs.iter().flat_map(of_run).collect()
}

fn apply(raft: &mut Raft<Transition>) -> Vec<Transition> {
    let mut applied = Vec::new();
    while !raft.committed().is_empty() {
        let count = raft.committed().len();
        applied.extend_from_slice(raft.committed());
        raft.applied(count);
    }
    applied
}

/// Nothing tells from outside whether a replica has heard a leader, but its answer to one who asks
/// for a pre-vote with a log that is better than any.
fn shuns(raft: &Raft<Transition>) -> bool {
    let (status, best) = (raft.status(), LogId { term: usize::MAX, index: usize::MAX });
    let Some(&from_id) = status.membership.voters.iter().find(|id| **id != status.id) else {
        return false;
    };
    let body = Body::RequestVote { pre: true, transfer: false, last: best };
    let mut asked = raft.clone();
    asked.step(status.now, Message::Protocol { from_id, term: status.term + 1, body });
    let grants = |message: &Message<Transition>| {
        matches!(message, Message::Protocol { body: Body::Vote { pre: true, granted: true }, .. })
    };
    !asked.outputs().messages.iter().any(|(_, message)| grants(message))
}

/// Nor does anything tell which votes a candidate has but what another one would do. In clusters of
/// up to five that tells all: until it wins it has at most one that is not its own.
fn decisive(raft: &Raft<Transition>, status: &Status) -> Vec<ReplicaID> {
    let (pre, term) = match status.role {
        Role::PreCandidate => (true, status.term + 1),
        Role::Candidate => (false, status.term),
        Role::Follower | Role::Leader => return Vec::new(),
    };
    let wins = |from_id: &ReplicaID| {
        let mut voted_for = raft.clone();
        let body = Body::Vote { pre, granted: true };
        voted_for.step(status.now, Message::Protocol { from_id: *from_id, term, body });
        voted_for.status().role != status.role
    };
    status.membership.voters.iter().copied().filter(wins).collect()
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Node");
        shown.field("term", &self.disk.term).field("voted_for", &self.disk.voted_for);
        shown.field("log", &self.log);
        match &self.life {
            None => shown.field("up", &false),
            Some(Life { status, shuns, .. }) => shown
                .field("role", &status.role)
                .field("leader", &status.leader)
                .field("commit", &status.commit)
                .field("heard_leader", shuns)
                .field("peers", &status.peers),
        };
        shown.finish()
    }
}

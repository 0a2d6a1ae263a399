//! What is replicated: a map from keys to values, and what it takes to apply each request once.

use crate::board::{Board, Outcome};
use imbl::OrdMap;
use little_raft::{
    ReadState, Snapshot, StateMachine, StateMachineTransition, TransitionAbandonedReason,
    TransitionState,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::take;
use std::sync::Arc;

/// Keys and values, cheap to clone: a transition is cloned once per replica.
pub(crate) type Text = Arc<str>;

/// What a snapshot holds. Behind a pointer, because the library clones it for each receiver.
pub(crate) type Data = Arc<State>;

/// Names what a client asks, across all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    /// The client.
    pub(crate) session: u64,
    /// The client's requests, counted.
    pub(crate) sequence: u64,
}

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Set { key: Text, value: Text },
    Delete { key: Text },
    CompareAndSwap { key: Text, old: Text, new: Text },
}

/// What has come of an action, and what the key's value was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done {
        before: Option<Text>,
    },
    /// The value to compare with was another.
    Refused {
        before: Option<Text>,
    },
}

/// What the log is made of.
#[derive(Clone, Debug)]
pub(crate) enum Transition {
    /// What a new leader begins with.
    NoOp,
    Write {
        id: RequestId,
        /// The client will never again ask about any of its requests before this one.
        settled: u64,
        action: Action,
    },
}

impl StateMachineTransition for Transition {
    /// Nobody asks what became of a no-op.
    type TransitionID = Option<RequestId>;

    fn get_id(&self) -> Self::TransitionID {
        match self {
            Transition::NoOp => None,
            Transition::Write { id, .. } => Some(*id),
        }
    }
}

/// The answers given to one client that it may ask for again: without them a write that was
/// applied, but whose answer got lost, would be applied a second time when the client tries again
/// (thesis §6.3). They belong to the replicated state, since any replica may be the one that is
/// asked again.
#[derive(Clone, Debug, Default)]
struct Session {
    settled: u64,
    answers: BTreeMap<u64, Answer>,
}

/// The replicated state. Every replica that has applied the same transitions has the same.
///
/// The map shares its structure with its clones, so that a snapshot costs next to nothing, however
/// large the map: no heartbeat leaves while one is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    map: OrdMap<Text, Text>,
    sessions: BTreeMap<u64, Session>,
}

impl State {
    fn apply(&mut self, transition: Transition) {
        let Transition::Write { id, settled, action } = transition else { return };
        let session = self.sessions.entry(id.session).or_default();
        session.settled = session.settled.max(settled);
        while session.answers.first_key_value().is_some_and(|(&it, _)| it < session.settled) {
            session.answers.pop_first();
        }
        if id.sequence < session.settled || session.answers.contains_key(&id.sequence) {
            return; // The second copy of a request.
        }
        session.answers.insert(id.sequence, change(&mut self.map, action));
    }

    fn answer(&self, id: RequestId) -> Option<Answer> {
        self.sessions.get(&id.session)?.answers.get(&id.sequence).cloned()
    }

    pub(crate) fn keys(&self) -> usize {
        self.map.len()
    }

    /// A checksum of all keys and values: states with different ones differ.
    pub(crate) fn digest(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for text in self.map.iter().flat_map(|(key, value)| [key, value]) {
            hasher.update(&text.len().to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.finalize()
    }
}

fn change(map: &mut OrdMap<Text, Text>, action: Action) -> Answer {
    let before = match action {
        Action::Set { key, value } => map.insert(key, value),
        Action::Delete { key } => map.remove(&key),
        Action::CompareAndSwap { key, old, new } if map.get(&key) == Some(&old) => {
            map.insert(key, new)
        }
        Action::CompareAndSwap { key, .. } => {
            return Answer::Refused { before: map.get(&key).cloned() };
        }
    };
    Answer::Done { before }
}

/// The latest snapshot of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Covered {
    /// The last entry in it.
    pub(crate) index: usize,
    pub(crate) keys: usize,
    /// Whether it came from the leader or from the storage, rather than being taken here.
    pub(crate) installed: bool,
}

/// One replica's state machine, and what clients have asked of this replica.
pub(crate) struct Store {
    state: State,
    snapshot: Option<Covered>,
    /// Handed in and not yet polled.
    transitions: Vec<Transition>,
    reads: Vec<(RequestId, Text)>,
    /// Handed in here and without an outcome yet. All replicas apply a transition, but only the one
    /// to which the client gave it answers.
    writes_underway: HashSet<RequestId>,
    reads_underway: HashMap<RequestId, Text>,
    board: Arc<Board>,
}

impl Store {
    pub(crate) fn new(board: Arc<Board>) -> Store {
        Store {
            state: State::default(),
            snapshot: None,
            transitions: Vec::new(),
            reads: Vec::new(),
            writes_underway: HashSet::new(),
            reads_underway: HashMap::new(),
            board,
        }
    }

    /// Hands in transitions; the replica must be notified afterwards, with this store unlocked.
    pub(crate) fn propose(&mut self, transitions: Vec<Transition>) {
        self.writes_underway.extend(transitions.iter().filter_map(Transition::get_id));
        self.transitions.extend(transitions);
    }

    /// Hands in a linearizable read of a key; likewise.
    pub(crate) fn read(&mut self, id: RequestId, key: Text) {
        self.reads.push((id, key));
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn snapshot(&self) -> Option<Covered> {
        self.snapshot
    }
}

impl StateMachine<Transition, Data> for Store {
    fn register_transition_state(&mut self, id: Option<RequestId>, state: TransitionState) {
        let Some(id) = id.filter(|id| self.writes_underway.contains(id)) else { return };
        let outcome = match state {
            // Still on the way; nobody waits for this.
            TransitionState::Queued | TransitionState::Committed => return,
            TransitionState::Applied => self.state.answer(id).map(Outcome::Applied),
            TransitionState::Abandoned(TransitionAbandonedReason::OutcomeUnknown) => {
                Some(Outcome::Unknown)
            }
            TransitionState::Abandoned(_) => Some(Outcome::NotApplied),
        };
        self.writes_underway.remove(&id);
        // A client that has settled the request has given up waiting, so that there is no answer.
        outcome.into_iter().for_each(|outcome| self.board.post(id, outcome));
    }

    fn apply_transition(&mut self, transition: Transition) {
        self.state.apply(transition);
    }

    fn get_pending_transitions(&mut self) -> Vec<Transition> {
        take(&mut self.transitions)
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Data> {
        self.snapshot = Some(Covered { index, keys: self.state.keys(), installed: false });
        let data = Arc::new(self.state.clone());
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Data>) {
        self.state = State::clone(&snapshot.data);
        let (index, keys) = (snapshot.last_included_index, self.state.keys());
        self.snapshot = Some(Covered { index, keys, installed: true });
    }

    fn get_pending_reads(&mut self) -> Vec<Option<RequestId>> {
        let ids = self.reads.iter().map(|(id, _)| Some(*id)).collect();
        self.reads_underway.extend(take(&mut self.reads));
        ids
    }

    fn register_read_state(&mut self, id: Option<RequestId>, state: ReadState) {
        let Some((id, key)) = id.and_then(|id| self.reads_underway.remove_entry(&id)) else {
            return;
        };
        self.board.post(
            id,
            match state {
                ReadState::Ready => Outcome::Read(self.state.map.get(&key).cloned()),
                ReadState::Abandoned => Outcome::NotApplied,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(session: u64, sequence: u64, settled: u64, action: Action) -> Transition {
        Transition::Write { id: RequestId { session, sequence }, settled, action }
    }

    fn set(value: &str) -> Action {
        Action::Set { key: "k".into(), value: value.into() }
    }

    fn cas(old: &str, new: &str) -> Action {
        Action::CompareAndSwap { key: "k".into(), old: old.into(), new: new.into() }
    }

    fn answer(state: &State, session: u64, sequence: u64) -> Option<Answer> {
        state.answer(RequestId { session, sequence })
    }

    #[test]
    fn the_second_copy_of_a_write_changes_nothing_and_gets_the_first_ones_answer() {
        let mut state = State::default();
        state.apply(write(1, 1, 1, set("a")));
        state.apply(write(1, 2, 1, cas("a", "b")));
        let done = Some(Answer::Done { before: Some("a".into()) });
        assert_eq!(answer(&state, 1, 2), done);
        state.apply(write(1, 3, 1, set("a")));
        state.apply(write(1, 2, 1, cas("a", "b")));
        assert_eq!(answer(&state, 1, 2), done);
        assert_eq!(state.map.get("k").map(|value| &**value), Some("a"));
    }

    #[test]
    fn what_is_settled_is_forgotten_and_still_not_applied_again() {
        let mut state = State::default();
        state.apply(write(1, 1, 1, set("a")));
        state.apply(write(1, 2, 2, set("b")));
        assert_eq!(answer(&state, 1, 1), None);
        state.apply(write(1, 1, 1, set("a")));
        assert_eq!(state.map.get("k").map(|value| &**value), Some("b"));
    }

    #[test]
    fn requests_underway_together_may_be_applied_in_any_order() {
        let mut state = State::default();
        state.apply(write(1, 2, 1, set("b")));
        state.apply(write(1, 1, 1, set("a")));
        assert_eq!(answer(&state, 1, 1), Some(Answer::Done { before: Some("b".into()) }));
    }

    #[test]
    fn clients_do_not_mistake_each_others_requests() {
        let mut state = State::default();
        state.apply(write(1, 1, 1, set("a")));
        state.apply(write(2, 1, 1, set("b")));
        assert_eq!(answer(&state, 2, 1), Some(Answer::Done { before: Some("a".into()) }));
    }

    #[test]
    fn a_refused_swap_changes_nothing() {
        let mut state = State::default();
        state.apply(write(1, 1, 1, cas("a", "b")));
        state.apply(write(1, 2, 1, set("x")));
        state.apply(write(1, 3, 1, cas("a", "b")));
        assert_eq!(answer(&state, 1, 1), Some(Answer::Refused { before: None }));
        assert_eq!(answer(&state, 1, 3), Some(Answer::Refused { before: Some("x".into()) }));
        assert_eq!(state.map.get("k").map(|value| &**value), Some("x"));
    }

    #[test]
    fn different_maps_have_different_digests() {
        let digest = |pairs: &[(&str, &str)]| {
            let map = pairs.iter().map(|(key, value)| (Text::from(*key), Text::from(*value)));
            State { map: map.collect(), sessions: BTreeMap::new() }.digest()
        };
        assert_eq!(digest(&[("a", "1"), ("b", "2")]), digest(&[("b", "2"), ("a", "1")]));
        assert_ne!(digest(&[("a", "1")]), digest(&[("a", "2")]));
        assert_ne!(digest(&[("ab", "c")]), digest(&[("a", "bc")]));
        assert_ne!(digest(&[("a", "b"), ("c", "d")]), digest(&[("a", "bc"), ("d", "")]));
    }

    #[test]
    fn a_snapshot_carries_the_map_and_the_answers() {
        let board = Arc::new(Board::default());
        let mut store = Store::new(board.clone());
        store.apply_transition(write(1, 1, 1, set("a")));
        let snapshot = store.create_snapshot(2, 1);
        let mut other = Store::new(board);
        other.set_snapshot(snapshot);
        assert_eq!(other.state().digest(), store.state().digest());
        other.apply_transition(write(1, 1, 1, set("again")));
        assert_eq!(other.state().digest(), store.state().digest());
    }
}

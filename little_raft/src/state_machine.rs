//! The user's side of replication: the transitions, the state machine they drive, and what a
//! replica tells the state machine about them.
//!
//! Every method is called from the one thread that runs [`Replica::start`],
//! with the state machine's mutex held and no other, so a method may take its time but no heartbeat
//! leaves while it runs.

use crate::*;

/// A change of the state machine, proposed by a user and applied by every replica in one order.
///
/// A transition is cloned once per replica that applies it; put large payloads behind a shared
/// pointer.
pub trait StateMachineTransition: Clone + Debug {
    /// Identifies a transition among those that are underway; the library only hands it back.
    type TransitionID: Eq;

    /// The identity under which [`StateMachine::register_transition_state`] speaks of this
    /// transition.
    fn get_id(&self) -> Self::TransitionID;
}

/// How far a transition has come.
///
/// Where it was proposed a transition is `Queued` once and then ends once: `Applied` or
/// `Abandoned`. Every replica, the proposing one included, registers `Committed` and `Applied` as
/// it applies.
#[derive(Clone, Debug, PartialEq)]
pub enum TransitionState {
    /// The leader has appended the transition to its log; it may still be lost.
    Queued,
    /// A quorum holds the transition durably; every future leader has it. It will be applied next.
    Committed,
    /// The transition has just been applied to the state machine of this replica.
    Applied,
    /// This replica will not apply the transition on behalf of the proposal, for this reason.
    Abandoned(TransitionAbandonedReason),
}

/// Why a transition was abandoned.
#[derive(Clone, Debug, PartialEq)]
pub enum TransitionAbandonedReason {
    /// This replica does not lead, or is handing leadership over. Nothing was appended: propose it
    /// again at the leader.
    NotLeader,
    /// Another leader's entry was committed in its place: it was not applied anywhere and never
    /// will be.
    ConflictWithLeader,
    /// An installed snapshot covers the place where the transition was: it may or may not be part
    /// of the new state, and nobody here can tell.
    OutcomeUnknown,
}

/// The answer to a linearizable read that [`StateMachine::get_pending_reads`] asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadState {
    /// Everything that was committed anywhere before the read was polled is applied here: answer
    /// it from the local state now.
    Ready,
    /// No leader confirmed the read in time; ask again.
    Abandoned,
}

/// The state of a state machine after every transition up to and including `last_included_index`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot<D> {
    /// Index of the last log entry that the snapshot covers.
    pub last_included_index: usize,
    /// Term of that entry.
    pub last_included_term: usize,
    /// The state itself, or a cheap handle to it. It is cloned once per peer that needs it.
    pub data: D,
}

impl<D> Snapshot<D> {
    /// The position of the last entry that the snapshot covers.
    pub fn last(&self) -> LogId {
        LogId { term: self.last_included_term, index: self.last_included_index }
    }
}

/// What is replicated. Implementations must be deterministic: the same transitions in the same
/// order must lead to the same state on every replica.
pub trait StateMachine<T: StateMachineTransition, D: Clone = Vec<u8>> {
    /// Called at each change in the life of a transition; see [`TransitionState`].
    fn register_transition_state(&mut self, transition_id: T::TransitionID, state: TransitionState);

    /// Applies a committed transition. Called in log order, once per log index and run of the
    /// replica. A new leader's no-op comes this way too.
    fn apply_transition(&mut self, transition: T);

    /// The transitions to propose, each returned once. Called only after a notification on
    /// `recv_transition`, or when the replica itself had put off asking because too much was
    /// underway.
    fn get_pending_transitions(&mut self) -> Vec<T>;

    /// The state to begin with, asked for once if the storage holds no snapshot.
    fn get_snapshot(&mut self) -> Option<Snapshot<D>> {
        None
    }

    /// Captures the current state, which is the one right after the entry at `last_index`, whose
    /// term is `last_term`; the snapshot must carry exactly these. Called every `snapshot_delta`
    /// applied entries if [`Replica::with_snapshots`] asked for it.
    ///
    /// # Panics
    /// The provided implementation panics, so that asking for snapshots without writing them cannot
    /// pass unnoticed.
    fn create_snapshot(&mut self, last_index: usize, last_term: usize) -> Snapshot<D> {
        panic!("with_snapshots needs StateMachine::create_snapshot at {last_index}@{last_term}")
    }

    /// Replaces the state by that of the snapshot: at start, or when this replica had fallen behind
    /// the leader's log.
    ///
    /// # Panics
    /// The provided implementation panics: a state machine that gets snapshots must know them.
    fn set_snapshot(&mut self, snapshot: Snapshot<D>) {
        panic!("a leader uses snapshots: implement set_snapshot for {:?}", snapshot.last())
    }

    /// The linearizable reads to confirm, each returned once; polled with the transitions, at any
    /// replica.
    fn get_pending_reads(&mut self) -> Vec<T::TransitionID> {
        Vec::new()
    }

    /// Answers a read that [`get_pending_reads`](Self::get_pending_reads) returned, exactly once.
    fn register_read_state(&mut self, _read_id: T::TransitionID, _state: ReadState) {}
}

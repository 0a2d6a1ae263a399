//! The store at the replica's end: what is proposed, what becomes of it, who waits for it.

use crate::command::*;
use crate::config::Config;
use crate::report::{Change, SnapshotStatus, WatchError};
use crate::snapshots::{Draft, Handle, Snapshots};
use crate::store::Store;
use crate::tallies::Tallies;
use crate::transport::locked;
use little_raft::{ReadState, Snapshot, StateMachine, TransitionAbandonedReason, TransitionState};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

/// What has become of a command that was proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// It was applied.
    Applied(Outcome),
    /// It was not applied and never will be.
    NotDone,
    /// It may have been applied, or may still be.
    Unknown,
    /// Too much is underway, so that it was not even proposed.
    Busy,
}

/// Somebody who waits for a command.
struct Waiting {
    tell: oneshot::Sender<Fate>,
    /// Given back when nothing is underway any more, however long somebody waits for it.
    _permits: [OwnedSemaphorePermit; 2],
}

/// What clients have underway. It has a lock of its own, which is never held for long: while the
/// replica applies or takes a snapshot more may come in.
#[derive(Default)]
pub(crate) struct Pending {
    proposals: Vec<Command>,
    waiting: HashMap<CommandId, Waiting>,
    reads: Vec<CommandId>,
    /// They get the store as it is when the read is ready.
    readers: HashMap<CommandId, oneshot::Sender<Option<Store>>>,
}

impl Pending {
    /// Has a command proposed at the replica's next look. Its fate is told once.
    pub(crate) fn propose(
        &mut self, command: Command, permits: [OwnedSemaphorePermit; 2],
    ) -> oneshot::Receiver<Fate> {
        let (tell, fate) = oneshot::channel();
        self.waiting.insert(command.id, Waiting { tell, _permits: permits });
        self.proposals.push(command);
        fate
    }

    /// Has a read confirmed. The answer is a store that knows enough, or nothing if it is to be
    /// asked again.
    pub(crate) fn ask(&mut self, id: CommandId) -> oneshot::Receiver<Option<Store>> {
        let (tell, state) = oneshot::channel();
        self.readers.insert(id, tell);
        self.reads.push(id);
        state
    }

    /// Tells everybody who waits that nothing more will come.
    pub(crate) fn end(&mut self) {
        *self = Pending::default();
    }

    fn tell(&mut self, id: CommandId, fate: Fate) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // Whoever has given up does not want to know.
            let _ = waiting.tell.send(fate);
        }
    }
}

/// A store and what is underway to it.
pub(crate) struct Machine {
    store: Store,
    pending: Arc<Mutex<Pending>>,
    snapshots: Snapshots,
    /// Commands between two snapshots.
    interval: usize,
    /// The next snapshot, of which most is written before it is due.
    draft: Option<Draft>,
    since_snapshot: usize,
    latest_snapshot: Option<SnapshotStatus>,

    /// The latest changes, in order.
    changes: VecDeque<Change>,
    /// All changes after this revision are in there.
    forgotten: Revision,
    changes_kept: usize,
    revision: watch::Sender<Revision>,
    nodes: watch::Sender<Vec<Address>>,
    tallies: Arc<Tallies>,
}

impl Machine {
    pub(crate) fn new(
        pending: Arc<Mutex<Pending>>, snapshots: Snapshots, config: &Config, tallies: Arc<Tallies>,
    ) -> Machine {
        Machine {
            store: Store::default(),
            pending,
            snapshots,
            interval: config.snapshot_interval,
            draft: None,
            since_snapshot: 0,
            latest_snapshot: None,
            changes: VecDeque::new(),
            forgotten: 0,
            changes_kept: config.limits.changes_kept,
            revision: watch::channel(0).0,
            nodes: watch::channel(Vec::new()).0,
            tallies,
        }
    }

    /// The store as it is now, which does not change any more.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    pub(crate) fn latest_snapshot(&self) -> Option<SnapshotStatus> {
        self.latest_snapshot.clone()
    }

    /// The revision, whenever it is new.
    pub(crate) fn watch_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The addresses in the store, whenever they are new.
    pub(crate) fn watch_nodes(&self) -> watch::Receiver<Vec<Address>> {
        self.nodes.subscribe()
    }

    /// Some of the changes after a revision to keys with a prefix, and the revision that these reach.
    pub(crate) fn changes_after(
        &self, after: Revision, prefix: &str, limit: usize,
    ) -> Result<(Vec<Change>, Revision), WatchError> {
        if after < self.forgotten {
            return Err(WatchError::Forgotten { oldest: self.forgotten + 1 });
        }
        let first = self.changes.partition_point(|change| change.revision <= after);
        let (mut found, mut reached) = (Vec::new(), after);
        for change in self.changes.range(first..) {
            // Never between two changes of one revision.
            if found.len() >= limit && change.revision > reached {
                return Ok((found, reached));
            }
            reached = change.revision;
            found.extend(change.key.starts_with(prefix).then(|| change.clone()));
        }
        Ok((found, reached.max(self.store.revision)))
    }

    fn remember(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
        while self.changes.len() > self.changes_kept
            && let Some(oldest) = self.changes.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        // What is left of a revision that is partly forgotten would be a lie.
        while self.changes.front().is_some_and(|it| it.revision == self.forgotten) {
            self.changes.pop_front();
        }
    }

    fn tell_nodes(&self) {
        self.nodes.send_replace(self.store.nodes().cloned().collect());
    }
}

impl StateMachine<Command, Handle> for Machine {
    fn register_transition_state(&mut self, id: CommandId, state: TransitionState) {
        let fate = match state {
            // The outcome is told when the command is applied.
            TransitionState::Queued | TransitionState::Committed | TransitionState::Applied => {
                return;
            }
            TransitionState::Abandoned(TransitionAbandonedReason::OutcomeUnknown) => Fate::Unknown,
            TransitionState::Abandoned(_) => Fate::NotDone,
        };
        locked(&self.pending).tell(id, fate);
    }

    fn apply_transition(&mut self, command: Command) {
        let mut changes = Vec::new();
        let outcome = self.store.apply(&command.action, &mut changes);
        if !changes.is_empty() {
            self.remember(changes);
            self.revision.send_replace(self.store.revision);
        }
        if matches!(*command.action, Action::Introduce { .. }) {
            self.tell_nodes();
        }
        locked(&self.pending).tell(command.id, Fate::Applied(outcome));
        Tallies::add(&self.tallies.applied, 1);
        self.since_snapshot += 1;
        if self.draft.is_none() && self.since_snapshot >= self.interval.div_ceil(2) {
            // If it cannot be begun, it will be written as a whole when it is due.
            self.draft = self.snapshots.draft(&self.store).ok();
        }
    }

    fn get_pending_transitions(&mut self) -> Vec<Command> {
        std::mem::take(&mut locked(&self.pending).proposals)
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Handle> {
        let handle = self.snapshots.write(&self.store, self.draft.take(), (index, term));
        self.since_snapshot = 0;
        self.latest_snapshot = Some(SnapshotStatus { index, term, bytes: handle.length() });
        Tallies::add(&self.tallies.snapshots_taken, 1);
        Snapshot { last_included_index: index, last_included_term: term, data: handle }
    }

    /// # Panics
    /// If the file cannot be read: then there is no state to go on with. Storage and transport read
    /// it before they hand a snapshot on, and fail in an orderly way.
    fn set_snapshot(&mut self, snapshot: Snapshot<Handle>) {
        self.store = match self.snapshots.load(&snapshot.data) {
            Ok(store) => store,
            Err(error) => panic!("{error}"),
        };
        self.draft.take().into_iter().for_each(Draft::discard);
        self.since_snapshot = 0;
        let (index, term) = (snapshot.last_included_index, snapshot.last_included_term);
        self.latest_snapshot = Some(SnapshotStatus { index, term, bytes: snapshot.data.length() });
        self.changes.clear();
        self.forgotten = self.store.revision;
        self.revision.send_replace(self.store.revision);
        self.tell_nodes();
    }

    fn get_pending_reads(&mut self) -> Vec<CommandId> {
        std::mem::take(&mut locked(&self.pending).reads)
    }

    fn register_read_state(&mut self, id: CommandId, state: ReadState) {
        if let Some(tell) = locked(&self.pending).readers.remove(&id) {
            let _ = tell.send((state == ReadState::Ready).then(|| self.store.clone()));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.draft.take().into_iter().for_each(Draft::discard);
    }
}

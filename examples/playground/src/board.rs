//! Where replicas write what they have to tell, and where the console waits for it.

use crate::store::{Answer, RequestId, Text};
use little_raft::{ReplicaID, Role, Status};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How a request has ended at the replica that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A write was applied, now or in an earlier attempt.
    Applied(Answer),
    /// A read was answered.
    Read(Option<Text>),
    /// Nothing came of this attempt, and nothing will.
    NotApplied,
    /// The replica lost sight of the write.
    Unknown,
}

/// A leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) id: ReplicaID,
    pub(crate) term: usize,
}

/// What the replicas have told.
#[derive(Default)]
pub(crate) struct Told {
    /// How each running replica was when it last said so.
    pub(crate) statuses: BTreeMap<ReplicaID, (Instant, Status)>,
    /// What has ended since somebody looked.
    pub(crate) outcomes: Vec<(RequestId, Outcome)>,
}

impl Told {
    /// The leader of the latest term: an earlier one may not know yet that it is none.
    pub(crate) fn leader(&self) -> Option<Leader> {
        let statuses = self.statuses.values().map(|(_, status)| status);
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        let latest = leaders.max_by_key(|status| status.term)?;
        Some(Leader { id: latest.id, term: latest.term })
    }

    pub(crate) fn status(&self, id: ReplicaID) -> Option<&Status> {
        self.statuses.get(&id).map(|(_, status)| status)
    }
}

/// [`Told`], and a way to wait for more of it.
#[derive(Default)]
pub(crate) struct Board {
    told: Mutex<Told>,
    news: Condvar,
}

impl Board {
    /// Looks at what is told.
    pub(crate) fn look(&self) -> MutexGuard<'_, Told> {
        // Each change of it is a single insertion, so a panic elsewhere leaves nothing half done.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `check` finds something in what is told, or else until `deadline`.
    pub(crate) fn wait<R>(
        &self, deadline: Instant, mut check: impl FnMut(&mut Told) -> Option<R>,
    ) -> Option<R> {
        let mut told = self.look();
        loop {
            if let Some(found) = check(&mut told) {
                return Some(found);
            }
            let rest = deadline.checked_duration_since(Instant::now())?;
            let waited = self.news.wait_timeout(told, rest);
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn post(&self, id: RequestId, outcome: Outcome) {
        self.look().outcomes.push((id, outcome));
        self.news.notify_all();
    }

    pub(crate) fn register(&self, status: Status) {
        self.look().statuses.insert(status.id, (Instant::now(), status));
        self.news.notify_all();
    }

    /// Forgets what a replica told: it runs no more.
    pub(crate) fn forget(&self, id: ReplicaID) {
        self.look().statuses.remove(&id);
        self.news.notify_all();
    }
}

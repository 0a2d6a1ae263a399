//! What is counted, by whichever thread.

use crate::node::Counters;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a node while they count.
#[derive(Debug, Default)]
#[allow(missing_docs)] // They are those of `Counters`.
pub(crate) struct Tallies {
    pub(crate) writes: AtomicU64,
    pub(crate) writes_forwarded: AtomicU64,
    pub(crate) writes_busy: AtomicU64,
    pub(crate) writes_unknown: AtomicU64,
    pub(crate) writes_no_leader: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) reads_failed: AtomicU64,
    pub(crate) applied: AtomicU64,
    pub(crate) saves: AtomicU64,
    pub(crate) save_microseconds: AtomicU64,
    pub(crate) saved_index: AtomicU64,
    pub(crate) elections: AtomicU64,
    pub(crate) snapshots_taken: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_received: AtomicU64,
    pub(crate) messages_sent: AtomicU64,
    pub(crate) messages_dropped: AtomicU64,
    pub(crate) messages_received: AtomicU64,
    pub(crate) callers_refused: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
}

impl Tallies {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> Counters {
        let get = Tallies::get;
        Counters {
            writes: get(&self.writes),
            writes_forwarded: get(&self.writes_forwarded),
            writes_busy: get(&self.writes_busy),
            writes_unknown: get(&self.writes_unknown),
            writes_no_leader: get(&self.writes_no_leader),
            reads: get(&self.reads),
            reads_failed: get(&self.reads_failed),
            applied: get(&self.applied),
            saves: get(&self.saves),
            save_microseconds: get(&self.save_microseconds),
            elections: get(&self.elections),
            snapshots_taken: get(&self.snapshots_taken),
            snapshots_sent: get(&self.snapshots_sent),
            snapshots_received: get(&self.snapshots_received),
            messages_sent: get(&self.messages_sent),
            messages_dropped: get(&self.messages_dropped),
            messages_received: get(&self.messages_received),
            callers_refused: get(&self.callers_refused),
            writes_in_flight: 0,
        }
    }
}

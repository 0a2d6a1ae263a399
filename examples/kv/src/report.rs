//! What a node says: answers, errors, status.

use crate::command::{Address, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// How fresh the answer to a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// It knows of every write that was acknowledged before the read began, at whichever node.
    #[default]
    Linearizable,
    /// The same, as long as clocks drift apart by no more than the configuration's `clock_drift`:
    /// then the leader need not ask the others. Without a `clock_drift` it is `Linearizable`; with
    /// one, both rely on it.
    Lease,
    /// Whatever this node knows. Never waits.
    Stale,
}

/// Why a write was not done, or not known to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteError {
    /// No leader was found in time. Nothing was done.
    NoLeader,
    /// Too much is underway. Nothing was done.
    Busy {
        /// When it may be worth to try again.
        retry_after: Duration,
    },
    /// The request is larger than the configuration allows. Nothing was done.
    TooLarge {
        /// What is too large, by how much, and what to do.
        reason: String,
    },
    /// The request makes no sense. Nothing was done.
    Invalid {
        /// Why.
        reason: String,
    },
    /// It may or may not have been done, or may still be.
    OutcomeUnknown,
    /// This node is being stopped, or its replica has failed. Nothing was done.
    ShuttingDown,
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadError {
    /// No leader confirmed the read in time.
    NoLeader,
    /// Too many reads are underway.
    Busy {
        /// When it may be worth to try again.
        retry_after: Duration,
    },
    /// This node is being stopped, or its replica has failed.
    ShuttingDown,
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferError {
    /// Nobody leads, so nobody can hand it over.
    NoLeader,
    /// There is no such voter.
    NotAVoter {
        /// Who votes.
        voters: BTreeSet<usize>,
    },
    /// The leader is still another, or nobody. It may be worth to try again.
    TimedOut,
    /// This node is being stopped, or its replica has failed.
    ShuttingDown,
}

/// Why a node did not start, or a backup was not restored.
#[derive(Debug)]
pub struct StartError(String);

impl Display for WriteError {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            WriteError::NoLeader => "no leader was found in time, nothing was done",
            WriteError::Busy { .. } => "too much is underway, nothing was done",
            WriteError::TooLarge { reason } | WriteError::Invalid { reason } => reason,
            WriteError::OutcomeUnknown => "it may or may not have been done",
            WriteError::ShuttingDown => "this node stops, nothing was done",
        })
    }
}

impl std::error::Error for WriteError {}

impl Display for ReadError {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            ReadError::NoLeader => "no leader confirmed the read in time",
            ReadError::Busy { .. } => "too many reads are underway",
            ReadError::ShuttingDown => "this node stops",
        })
    }
}

impl std::error::Error for ReadError {}

impl StartError {
    pub(crate) fn new(reason: impl Into<String>) -> StartError {
        StartError(reason.into())
    }
}

impl Display for StartError {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// A key that was put or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision that the write led to.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// Its new value; none if it was deleted.
    pub value: Option<Bytes>,
}

/// Why changes cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchError {
    /// Changes so old are forgotten. List the keys, and watch from the revision of that list on.
    Forgotten {
        /// The oldest revision whose changes are known.
        oldest: Revision,
    },
    /// This node is being stopped, or its replica has failed.
    ShuttingDown,
}

/// The members that a cluster is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersChange {
    /// The ids of those who vote.
    pub voters: BTreeSet<usize>,
    /// The ids of those who only receive the log.
    #[serde(default)]
    pub learners: BTreeSet<usize>,
    /// Where to find nodes that the cluster does not know yet, or that have moved.
    #[serde(default)]
    pub nodes: Vec<Address>,
}

/// How a change of the members goes. `Done` and `Failed` are the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum MembersStep {
    /// These nodes now receive the log.
    LearnersAdded {
        /// Their ids.
        ids: BTreeSet<usize>,
    },
    /// A node is being brought up to date.
    CatchingUp {
        /// The node.
        id: usize,
        /// How far its log matches.
        matched: usize,
        /// How far it has to.
        target: usize,
    },
    /// The new voters vote, together with the old ones.
    Joint,
    /// The change is complete.
    Done {
        /// Who votes.
        voters: BTreeSet<usize>,
        /// Who only receives the log.
        learners: BTreeSet<usize>,
    },
    /// The change was not completed.
    Failed {
        /// Why, how far it came, and what to do.
        reason: String,
    },
}

/// How a node and its cluster are, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The cluster's name.
    pub cluster: String,
    /// This node's id.
    pub id: usize,
    /// This node's name.
    pub name: String,
    /// `follower`, `pre_candidate`, `candidate` or `leader`; `stopped` once its replica has ended.
    pub role: String,
    /// Its term.
    pub term: usize,
    /// The id of the leader, if known.
    pub leader: Option<usize>,
    /// The ids of those who vote.
    pub voters: BTreeSet<usize>,
    /// While a change is underway, the ids of those who voted before.
    pub outgoing: BTreeSet<usize>,
    /// The ids of those who only receive the log.
    pub learners: BTreeSet<usize>,
    /// First index in the log.
    pub first_index: usize,
    /// Last index in the log.
    pub last_index: usize,
    /// Index up to which this node's disk has the log.
    pub saved_index: usize,
    /// Index up to which the log is known to be committed.
    pub commit_index: usize,
    /// Index up to which the log is applied here.
    pub applied_index: usize,
    /// The revision of the latest write that is applied here.
    pub revision: Revision,
    /// How many keys there are.
    pub keys: usize,
    /// How many sessions are remembered.
    pub sessions: usize,
    /// The latest snapshot.
    pub snapshot: Option<SnapshotStatus>,
    /// At the leader, how far the others are.
    pub peers: Vec<PeerStatus>,
    /// Every node that is known, member or not.
    pub nodes: Vec<Address>,
    /// The leaders that this node has seen lately, oldest first.
    pub elections: Vec<Election>,
    /// Milliseconds since this node has started.
    pub uptime_milliseconds: u64,
    /// Bytes that this node's directory takes.
    pub disk_bytes: u64,
    /// Bytes of memory that this process takes, where the system tells.
    pub memory_bytes: Option<u64>,
    /// What has happened since this node has started.
    pub counters: Counters,
    /// Why the replica has stopped, if it has failed.
    pub failure: Option<String>,
}

/// A snapshot on this node's disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Index of the last entry that it covers.
    pub index: usize,
    /// Term of that entry.
    pub term: usize,
    /// Its size.
    pub bytes: u64,
}

/// How far a peer is, as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer's id.
    pub id: usize,
    /// Index up to which its log durably matches.
    pub matched: usize,
    /// Index of the next entry to send.
    pub next: usize,
    /// How many entries it lacks.
    pub lag: usize,
    /// `probing`, `replicating` or `installing` a snapshot.
    pub activity: String,
    /// Milliseconds since it was last heard.
    pub heard_milliseconds_ago: u64,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Why there is none, if that is known.
    pub problem: Option<String>,
}

/// A leader that came to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Election {
    /// The term that it leads.
    pub term: usize,
    /// Its id.
    pub leader: usize,
    /// When this node learned of it, in milliseconds since 1970.
    pub unix_milliseconds: u64,
}

/// What has happened since a node has started. All of them only grow, but for what is underway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Writes that clients asked this node for.
    pub writes: u64,
    /// Of those, the ones that were sent to another node.
    pub writes_forwarded: u64,
    /// Writes refused since too much was underway.
    pub writes_busy: u64,
    /// Writes of which the client was told that the outcome is unknown.
    pub writes_unknown: u64,
    /// Writes that found no leader in time.
    pub writes_no_leader: u64,
    /// Reads that clients asked this node for.
    pub reads: u64,
    /// Reads that no leader confirmed in time.
    pub reads_failed: u64,
    /// Commands that were applied here.
    pub applied: u64,
    /// Saves to the disk.
    pub saves: u64,
    /// Microseconds that these took together.
    pub save_microseconds: u64,
    /// Leaders that this node has seen come to be.
    pub elections: u64,
    /// Snapshots taken.
    pub snapshots_taken: u64,
    /// Snapshots that were sent to others as a whole.
    pub snapshots_sent: u64,
    /// Snapshots that were received from others as a whole.
    pub snapshots_received: u64,
    /// Messages sent to other nodes.
    pub messages_sent: u64,
    /// Messages dropped since a queue was full.
    pub messages_dropped: u64,
    /// Messages received from other nodes.
    pub messages_received: u64,
    /// Callers refused: strangers, wiped disks, and messages that are none.
    pub callers_refused: u64,
    /// Writes underway now.
    pub writes_in_flight: u64,
}

/// A snapshot of the state machine, as it is written.
pub struct Backup {
    /// The revision that it holds.
    pub revision: Revision,
    /// Its bytes. The end comes after the last chunk; an error ends it early.
    pub chunks: mpsc::Receiver<io::Result<Bytes>>,
}

/// A file that holds the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupReport {
    /// Where it is, at the node that wrote it; empty for one that was read.
    pub path: String,
    /// The revision that it holds.
    pub revision: Revision,
    /// How many keys.
    pub keys: usize,
    /// Its size.
    pub bytes: u64,
}

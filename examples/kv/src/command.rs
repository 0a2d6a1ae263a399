//! What clients ask for, and what becomes of it: the vocabulary of the replicated log.

use bytes::Bytes;
use little_raft::StateMachineTransition;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A place in the order of all successful writes: the first has revision 1. A key's *version* is the
/// revision of the write that last put it.
pub type Revision = u64;

/// The name of a client's session: the place in the order of all commands at which it was opened.
pub type ClientId = u64;

/// Identifies a command among those that a process has underway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommandId {
    /// Drawn at random when the process starts, so that what is left of a former life is nobody's.
    pub start: u64,
    /// Counted within that.
    pub number: u64,
}

/// What goes through the log. It is shared by all who hold it: queue, log and messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The command, to the node that proposed it.
    pub id: CommandId,
    /// What it does.
    pub action: Arc<Action>,
}

impl Command {
    /// What a new leader begins with.
    pub fn no_op() -> Command {
        Command { id: CommandId::default(), action: Arc::new(Action::NoOp) }
    }
}

impl StateMachineTransition for Command {
    type TransitionID = CommandId;

    fn get_id(&self) -> CommandId {
        self.id
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Nothing.
    NoOp,
    /// Opens a session.
    OpenSession,
    /// Carries out a transaction: at most once, if it belongs to a session.
    Write {
        /// The session, and which of its requests this is.
        session: Option<Session>,
        /// What to do.
        transaction: Transaction,
    },
    /// Makes addresses of nodes known to all.
    Introduce {
        /// The nodes.
        nodes: Vec<Address>,
    },
}

/// A request of a client that wants it done once, however often it has to be sent.
///
/// Of each client only the latest request is remembered: a client sends the next once it knows what
/// became of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    /// Whose request it is; see [`Node::open_session`](crate::node::Node::open_session).
    pub client: ClientId,
    /// Which of the client's requests it is. The first is 1, each is greater than the one before.
    pub sequence: u64,
}

/// Operations that are carried out together if all conditions hold, and else not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What to do, in this order.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// Puts one key.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Transaction {
        let operation = Operation::Put { key: key.into(), value: value.into() };
        Transaction { conditions: Vec::new(), operations: vec![operation] }
    }

    /// Deletes one key.
    pub fn delete(key: impl Into<String>) -> Transaction {
        let operation = Operation::Delete { key: key.into() };
        Transaction { conditions: Vec::new(), operations: vec![operation] }
    }

    /// The same, if a key is as expected.
    pub fn only_if(mut self, key: impl Into<String>, expected: Expected) -> Transaction {
        self.conditions.push(Condition { key: key.into(), expected });
        self
    }

    /// The keys that it is about.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let conditions = self.conditions.iter().map(|it| it.key.as_str());
        conditions.chain(self.operations.iter().map(|it| match it {
            Operation::Put { key, .. } | Operation::Delete { key } | Operation::Get { key } => {
                key.as_str()
            }
        }))
    }

    /// The values that it puts.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.operations.iter().filter_map(|it| match it {
            Operation::Put { value, .. } => Some(value),
            Operation::Delete { .. } | Operation::Get { .. } => None,
        })
    }

    /// About how many bytes it takes in the log.
    pub fn size(&self) -> usize {
        let keys = self.keys().map(|key| key.len() + 16);
        keys.chain(self.values().map(Bytes::len)).sum()
    }
}

/// What must hold of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The key.
    pub key: String,
    /// How it must be.
    pub expected: Expected,
}

/// How a key must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// It does not exist.
    Absent,
    /// It exists, in whatever version.
    Present,
    /// It exists in this version.
    Version(Revision),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Gives a key a value.
    Put {
        /// The key.
        key: String,
        /// Its value from now on.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: String,
    },
    /// Reads a key, as it is after the steps before.
    Get {
        /// The key.
        key: String,
    },
}

/// What has become of a command that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The transaction was carried out.
    Done {
        /// The revision that it led to: its own, or the latest if it changed nothing.
        revision: Revision,
        /// What each operation found, in order.
        results: Vec<OperationResult>,
    },
    /// A condition did not hold, and nothing was done.
    ConditionFailed {
        /// The first key of which that is so.
        key: String,
        /// Its version; none if it does not exist.
        actual: Option<Revision>,
    },
    /// A later request of this session was applied before, and what became of this one is no longer
    /// known. Nothing was done on its account now.
    StaleSequence {
        /// The latest request of the session.
        latest: u64,
    },
    /// There is no such session, or no longer, and nothing was done: what became of earlier tries of
    /// this request is not known. Sessions that are not used give way to others.
    SessionExpired,
    /// A session was opened.
    SessionOpened {
        /// Its name.
        client: ClientId,
    },
}

/// What one operation found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationResult {
    /// A key has a new value.
    Put,
    /// A key was removed, if it was there.
    Deleted {
        /// Whether it was there.
        existed: bool,
    },
    /// A key's value and version, if it exists.
    Got {
        /// What was found.
        found: Option<Versioned>,
    },
}

/// A value and the revision at which it was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The revision of the write that put it.
    pub version: Revision,
}

/// Where a node is to be found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The node's id.
    pub id: usize,
    /// Its name.
    pub name: String,
    /// Where the other nodes reach it, as `host:port`.
    pub raft: String,
    /// Where clients reach it, as `host:port`.
    pub http: String,
}

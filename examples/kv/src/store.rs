//! The state that is replicated: keys, sessions and addresses.
//!
//! The same commands in the same order lead to the same store at every node, so nothing in here
//! depends on time, chance or the configuration. A clone takes no time and shares what stays equal.

use crate::command::*;
use crate::report::Change;
use bytes::Bytes;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::sync::Arc;

/// Sessions that are remembered. It is no matter of configuration: all nodes must forget the same.
pub const MAX_SESSIONS: usize = 10_000;

/// What a session has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionState {
    /// When it was last used, counted in commands.
    pub(crate) used: u64,
    /// Its latest request, 0 before the first.
    pub(crate) sequence: u64,
    /// What became of that.
    pub(crate) outcome: Option<Arc<Outcome>>,
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    pub(crate) keys: OrdMap<Arc<str>, Versioned>,
    pub(crate) revision: Revision,
    /// How many commands were applied, of whatever kind.
    pub(crate) commands: u64,
    pub(crate) sessions: OrdMap<ClientId, SessionState>,
    /// The sessions in the order in which they were last used.
    pub(crate) usage: OrdMap<u64, ClientId>,
    pub(crate) nodes: OrdMap<usize, Address>,
}

/// A part of the keys, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys, their values and versions.
    pub entries: Vec<(String, Versioned)>,
    /// The last key of the page, if there are more: ask for those after it.
    pub next: Option<String>,
}

impl Store {
    /// The value and the version of a key.
    pub fn get(&self, key: &str) -> Option<&Versioned> {
        self.keys.get(key)
    }

    /// The first keys with this prefix, and `after` this one.
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut range = self.keys.range::<_, str>((from, Bound::Unbounded));
        let mut matching = range.by_ref().take_while(|(key, _)| key.starts_with(prefix));
        let entry = |(key, value): (&Arc<str>, &Versioned)| (key.to_string(), value.clone());
        let entries: Vec<_> = matching.by_ref().take(limit).map(entry).collect();
        let more = matching.next().is_some();
        let next = entries.last().filter(|_| more).map(|(key, _)| key.clone());
        Page { entries, next }
    }

    /// The revision of the latest write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many sessions are remembered.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The addresses that were made known to all.
    pub fn nodes(&self) -> impl Iterator<Item = &Address> {
        self.nodes.values()
    }

    /// Applies a command. Returns what became of it, and adds to the changes of keys.
    pub fn apply(&mut self, action: &Action, changes: &mut Vec<Change>) -> Outcome {
        self.commands += 1;
        match action {
            Action::NoOp => self.unchanged(),
            Action::OpenSession => self.open_session(),
            Action::Introduce { nodes } => {
                self.nodes.extend(nodes.iter().map(|node| (node.id, node.clone())));
                self.unchanged()
            }
            Action::Write { session: None, transaction } => self.execute(transaction, changes),
            Action::Write { session: Some(session), transaction } => {
                self.execute_once(*session, transaction, changes)
            }
        }
    }

    fn unchanged(&self) -> Outcome {
        Outcome::Done { revision: self.revision, results: Vec::new() }
    }

    /// Opens a session, in place of the one that was not used for longest if there are too many.
    fn open_session(&mut self) -> Outcome {
        let client = self.commands;
        if self.sessions.len() >= MAX_SESSIONS
            && let Some((used, oldest)) = self.usage.get_min().cloned()
        {
            self.usage.remove(&used);
            self.sessions.remove(&oldest);
        }
        self.remember(client, 0, None);
        Outcome::SessionOpened { client }
    }

    fn remember(&mut self, client: ClientId, sequence: u64, outcome: Option<Arc<Outcome>>) {
        let state = SessionState { used: self.commands, sequence, outcome };
        if let Some(former) = self.sessions.insert(client, state) {
            self.usage.remove(&former.used);
        }
        self.usage.insert(self.commands, client);
    }

    /// Carries out the next request of a session. One that was carried out before has the outcome
    /// that it had then.
    fn execute_once(
        &mut self, session: Session, transaction: &Transaction, changes: &mut Vec<Change>,
    ) -> Outcome {
        let Some(state) = self.sessions.get(&session.client).cloned() else {
            return Outcome::SessionExpired;
        };
        if session.sequence > state.sequence {
            let outcome = self.execute(transaction, changes);
            self.remember(session.client, session.sequence, Some(Arc::new(outcome.clone())));
            return outcome;
        }
        self.remember(session.client, state.sequence, state.outcome.clone());
        let outcome = state.outcome.filter(|_| session.sequence == state.sequence);
        let stale = Outcome::StaleSequence { latest: state.sequence };
        outcome.map_or(stale, |outcome| Outcome::clone(&outcome))
    }

    fn execute(&mut self, transaction: &Transaction, changes: &mut Vec<Change>) -> Outcome {
        let version = |key: &str| self.keys.get(key).map(|value| value.version);
        let fails = |condition: &&Condition| match (condition.expected, version(&condition.key)) {
            (Expected::Absent, actual) => actual.is_some(),
            (Expected::Present, actual) => actual.is_none(),
            (Expected::Version(expected), actual) => actual != Some(expected),
        };
        if let Some(condition) = transaction.conditions.iter().find(fails) {
            let actual = version(&condition.key);
            return Outcome::ConditionFailed { key: condition.key.clone(), actual };
        }
        let (next, before) = (self.revision + 1, changes.len());
        let mut note = |key: &str, value: Option<&Bytes>| {
            changes.push(Change { revision: next, key: key.to_string(), value: value.cloned() });
        };
        let mut results = Vec::with_capacity(transaction.operations.len());
        for operation in &transaction.operations {
            results.push(match operation {
                Operation::Put { key, value } => {
                    let versioned = Versioned { value: value.clone(), version: next };
                    self.keys.insert(Arc::from(key.as_str()), versioned);
                    note(key, Some(value));
                    OperationResult::Put
                }
                Operation::Delete { key } => {
                    let existed = self.keys.remove(key.as_str()).is_some();
                    existed.then(|| note(key, None));
                    OperationResult::Deleted { existed }
                }
                Operation::Get { key } => {
                    OperationResult::Got { found: self.keys.get(key.as_str()).cloned() }
                }
            });
        }
        if changes.len() > before {
            self.revision = next;
        }
        Outcome::Done { revision: self.revision, results }
    }
}

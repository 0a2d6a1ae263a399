//! The network between the replicas: channels, and a list of the links that are cut.

use crate::board::Board;
use crate::store::{Data, Transition};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use little_raft::{ReplicaID, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) type Message = little_raft::Message<Transition, Data>;

/// Carries messages between all replicas.
#[derive(Default)]
pub(crate) struct Network(Mutex<Wires>);

#[derive(Default)]
struct Wires {
    inboxes: BTreeMap<ReplicaID, (Sender<Message>, Sender<()>)>,
    /// Pairs between which nothing travels, the smaller id first.
    cuts: BTreeSet<(ReplicaID, ReplicaID)>,
}

impl Network {
    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a replica an inbox: its messages, and the notifications that there are some.
    pub(crate) fn connect(&self, id: ReplicaID) -> (Receiver<Message>, Receiver<()>) {
        let (messages, inbox) = unbounded();
        // A notification is a token, not a count: one waiting is as good as many.
        let (notify, notified) = bounded(1);
        self.wires().inboxes.insert(id, (messages, notify));
        (inbox, notified)
    }

    pub(crate) fn disconnect(&self, id: ReplicaID) {
        self.wires().inboxes.remove(&id);
    }

    /// Puts a message into an inbox, past all cuts. What nobody receives is lost, like a letter.
    pub(crate) fn deliver(&self, to_id: ReplicaID, message: Message) {
        if let Some((messages, notify)) = self.wires().inboxes.get(&to_id) {
            let _ = messages.send(message);
            let _ = notify.try_send(());
        }
    }

    fn send(&self, from_id: ReplicaID, to_id: ReplicaID, message: Message) {
        if !self.is_cut(from_id, to_id) {
            self.deliver(to_id, message);
        }
    }

    pub(crate) fn cut(&self, one: ReplicaID, other: ReplicaID) {
        self.wires().cuts.insert((one.min(other), one.max(other)));
    }

    pub(crate) fn heal(&self) {
        self.wires().cuts.clear();
    }

    pub(crate) fn cuts(&self) -> BTreeSet<(ReplicaID, ReplicaID)> {
        self.wires().cuts.clone()
    }

    pub(crate) fn is_cut(&self, one: ReplicaID, other: ReplicaID) -> bool {
        self.wires().cuts.contains(&(one.min(other), one.max(other)))
    }
}

/// One replica's end of the network.
pub(crate) struct Link {
    pub(crate) id: ReplicaID,
    pub(crate) network: Arc<Network>,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) halt: Arc<AtomicBool>,
    pub(crate) board: Arc<Board>,
}

impl little_raft::Cluster<Transition, Data> for Link {
    fn send_message(&mut self, to_id: usize, message: Message) {
        self.network.send(self.id, to_id, message);
    }

    fn receive_messages(&mut self) -> Vec<Message> {
        self.inbox.try_iter().collect()
    }

    fn halt(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    fn register_leader(&mut self, _leader_id: Option<ReplicaID>) {
        // The status tells it too, and more.
    }

    fn register_status(&mut self, status: Status) {
        self.board.register(status);
    }
}

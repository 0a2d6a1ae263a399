//! The state machine: puts messages into one order, each of them once.

use crate::outbox::Outbox;
use crossbeam_channel::{Receiver, Sender};
use little_raft::{ReplicaID, StateMachine, StateMachineTransition, TransitionState};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// The longest message that can be broadcast, in bytes. A thousand of them must fit into a frame.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// A message at its place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The place, the same at every member; the first message has number 1.
    pub number: u64,
    /// The member at which it was broadcast.
    pub from: SocketAddr,
    message: Arc<ByteBuf>,
}

impl Delivery {
    /// What was broadcast.
    pub fn message(&self) -> &[u8] {
        &self.message
    }
}

/// One life of a member, from its start to its end. It counts its messages from 0, so a member that
/// comes back, and does not know how far it had come, must not be mistaken for its former self.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) member: ReplicaID,
    /// Drawn at random.
    pub(crate) life: u64,
}

/// A message on its way into the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Post {
    pub(crate) origin: Origin,
    pub(crate) sequence: u64,
    /// Shared by all who hold it: outbox, log and deliveries.
    pub(crate) message: Arc<ByteBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transition {
    NoOp,
    Post(Post),
}

impl StateMachineTransition for Transition {
    // Nobody asks what became of one copy of a post: it is sent again until it is delivered.
    type TransitionID = ();

    fn get_id(&self) {}
}

/// One member's copy of the order.
pub(crate) struct Order {
    own: Origin,
    /// The members' addresses, by id.
    addresses: Arc<Vec<SocketAddr>>,
    /// How many messages are delivered, of everybody and of each origin.
    delivered: u64,
    delivered_of: HashMap<Origin, u64>,
    /// What came to this member, which may or may not lead.
    pending: Receiver<Post>,
    outbox: Arc<Outbox>,
    /// A token on this says that the outbox has room for more to be underway.
    outgoing: Sender<()>,
    /// Unbounded, since what is in the order cannot be dropped. The messages are in the log anyway;
    /// one that waits here takes a few words more.
    deliveries: Sender<Delivery>,
}

impl Order {
    pub(crate) fn new(
        own: Origin, addresses: Arc<Vec<SocketAddr>>, pending: Receiver<Post>, outbox: Arc<Outbox>,
        outgoing: Sender<()>, deliveries: Sender<Delivery>,
    ) -> Order {
        let (delivered, delivered_of) = Default::default();
        Order { own, addresses, delivered, delivered_of, pending, outbox, outgoing, deliveries }
    }

    fn delivered_of(&self, origin: Origin) -> u64 {
        self.delivered_of.get(&origin).copied().unwrap_or_default()
    }
}

impl StateMachine<Transition, ()> for Order {
    fn register_transition_state(&mut self, _id: (), _state: TransitionState) {}

    /// Delivers a post if it is the next of its origin. A number below that is a copy of what was
    /// delivered; one above it has overtaken a post that was lost, and both will be sent again. So
    /// one number for each origin is enough to deliver every message once, and those of an origin in
    /// the order in which they were broadcast.
    fn apply_transition(&mut self, transition: Transition) {
        let Transition::Post(Post { origin, sequence, message }) = transition else { return };
        let Some(from) = self.addresses.get(origin.member).copied() else { return };
        if sequence != self.delivered_of(origin) {
            return;
        }
        self.delivered_of.insert(origin, sequence + 1);
        self.delivered += 1;
        if origin == self.own {
            self.outbox.delivered(sequence);
            let _ = self.outgoing.try_send(());
        }
        // Whoever has let go of the receiving end does not want to know.
        let _ = self.deliveries.send(Delivery { number: self.delivered, from, message });
    }

    fn get_pending_transitions(&mut self) -> Vec<Transition> {
        // No more than now lie there; what comes later brings a notification of its own.
        let posts = self.pending.try_iter().take(self.pending.len());
        // A copy that is known to be late need not go into the log.
        let posts = posts.filter(|post| post.sequence >= self.delivered_of(post.origin));
        posts.map(Transition::Post).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};

    fn order() -> (Order, Sender<Post>, Receiver<Delivery>) {
        let addresses = Arc::new(vec!["127.0.0.1:1".parse().unwrap(); 2]);
        let own = Origin { member: 0, life: 7 };
        let ((post, pending), (deliveries, delivered)) = (bounded(9), unbounded());
        let outgoing = bounded(1).0;
        let order = Order::new(own, addresses, pending, Arc::default(), outgoing, deliveries);
        (order, post, delivered)
    }

    fn post(member: usize, life: u64, sequence: u64) -> Post {
        let message = Arc::new(ByteBuf::from(format!("{member} {life} {sequence}")));
        Post { origin: Origin { member, life }, sequence, message }
    }

    #[test]
    fn copies_and_gaps_are_not_delivered_and_lives_are_told_apart() {
        let (mut order, _, delivered) = order();
        let posts = [(1, 5, 0), (1, 5, 0), (1, 5, 2), (1, 6, 0), (1, 5, 1), (1, 5, 0), (0, 5, 0)];
        for (member, life, sequence) in posts {
            order.apply_transition(Transition::Post(post(member, life, sequence)));
            order.apply_transition(Transition::NoOp);
        }
        order.apply_transition(Transition::Post(post(2, 5, 0))); // No such member.
        let delivered: Vec<_> = delivered.try_iter().collect();
        let texts: Vec<_> =
            delivered.iter().map(|it| String::from_utf8_lossy(it.message())).collect();
        assert_eq!(texts, ["1 5 0", "1 6 0", "1 5 1", "0 5 0"]);
        assert!(delivered.iter().map(|it| it.number).eq(1..=4));
    }

    #[test]
    fn late_copies_are_not_proposed() {
        let (mut order, pending, _delivered) = order();
        order.apply_transition(Transition::Post(post(1, 5, 0)));
        (0..2).for_each(|sequence| pending.send(post(1, 5, sequence)).unwrap());
        assert_eq!(order.get_pending_transitions(), [Transition::Post(post(1, 5, 1))]);
        assert_eq!(order.get_pending_transitions(), []);
    }
}

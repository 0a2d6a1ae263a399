//! The user's side of communication: how messages travel, and what a replica tells about itself.

use crate::*;

/// Carries messages between replicas "be it over the network or pigeon post".
///
/// Every method is called from the thread that runs [`Replica::start`], with
/// the cluster's mutex held and no other. None may block.
pub trait Cluster<T: StateMachineTransition, D: Clone = Vec<u8>> {
    /// Sends a message to another replica. It may silently fail, deliver late, twice or out of
    /// order: Raft exists to reach consensus in spite of failures.
    fn send_message(&mut self, to_id: usize, message: Message<T, D>);

    /// The messages that have arrived, each returned once. Called only after a notification on
    /// `recv_msg`. Requests of the user ([`Message::change_membership`],
    /// [`Message::transfer_leadership`]) enter here too.
    fn receive_messages(&mut self) -> Vec<Message<T, D>>;

    /// Whether the replica should stop. Looked at every turn and at least once per heartbeat
    /// timeout.
    fn halt(&self) -> bool;

    /// Called whenever this replica learns of another leader, or loses sight of one. Only the
    /// leader accepts transitions.
    fn register_leader(&mut self, leader_id: Option<ReplicaID>);

    /// Called on every change of role, term, leader or configuration, and once per heartbeat
    /// timeout.
    fn register_status(&mut self, _status: Status) {}
}

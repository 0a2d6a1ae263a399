//! Little Raft
pub mod cluster;
mod election;
mod log;
mod membership;
pub mod message;
pub mod raft;
mod reads;
pub mod replica;
mod replication;
pub mod state_machine;
pub mod storage;
pub use cluster::Cluster;
pub use membership::Membership;
pub use message::{Body, Entries, Index, LogId, Message, Request, Round, Run, Term};
pub use raft::{Activity, Config, Outputs, PeerStatus, Raft, Role, Status};
pub use replica::{Replica, ReplicaID};
pub use state_machine::{
    ReadState, Snapshot, StateMachine, StateMachineTransition, TransitionAbandonedReason,
    TransitionState,
};
pub use storage::{Change, MemoryStorage, Saved, Storage};

//! Little Raft
mod election;
mod log;
mod membership;
mod reads;
mod replication;

pub mod cluster;
pub mod message;
pub mod raft;
pub mod replica;
pub mod state_machine;
pub mod storage;

pub use cluster::Cluster;
pub use membership::Membership;
pub use message::{Body, Index, LogId, Message, Request, Round, Run, Term};
pub use raft::{Config, Outputs, Raft, Role, Status};
pub use replica::{Replica, ReplicaID};
pub use replication::{Activity, Progress};
pub use state_machine::{ReadState, Snapshot, StateMachine, StateMachineTransition};
pub use state_machine::{TransitionAbandonedReason, TransitionState};
pub use storage::{Change, MemoryStorage, Storage};

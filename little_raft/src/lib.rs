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

pub use {cluster::*, membership::*, message::*, raft::*, replica::*};
pub use {replication::*, state_machine::*, storage::*};

pub(crate) use ::log::{info, warn};

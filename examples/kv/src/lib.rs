//! A replicated key-value database on [Little Raft](little_raft).
//!
//! To be read in this order:
//!
//! 1. [`command`]: what clients ask for, and what becomes of it;
//! 2. [`store`]: the state that is replicated, and nothing else;
//! 3. `machine`: the store at the replica's end, with who waits for what;
//! 4. [`snapshots`] and `disk`: what survives;
//! 5. `wire`, `transport`, `server` and `fetch`: how nodes speak to each other, in [`proto`];
//!    [`identity`]: to whom;
//! 6. [`node`]: all of it together, with `start`, `status` and `members`;
//! 7. [`http`]: what clients see of it.
//!
//! The replica is one thread that never waits for anybody. Everything around it is async, and speaks
//! with it through queues that drop or refuse what does not fit.

pub mod command;
pub mod config;
pub mod http;
pub mod identity;
pub mod node;
pub mod snapshots;
pub mod store;

mod disk;
mod fetch;
mod machine;
mod members;
mod report;
mod server;
mod start;
mod status;
mod tallies;
mod transport;
mod wire;

/// What nodes say to each other, made from `proto/kv.proto`, where it is explained.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("kv");
}

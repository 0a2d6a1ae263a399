//! What the blocking shell promises to its user, promise by promise, on real threads.
//!
//! Nothing in here sleeps and hopes: every test waits for a condition, and gives up only after a
//! deadline that is generous enough for a busy machine. Where a promise is about *not* doing
//! something too often, it is counted in turns (calls of `halt`), not in time.
//!
//! Most tests run one replica and speak for its peers, by [`support::Puppet`], so that exactly one
//! thing happens. `chaos` runs whole clusters over a network that loses, repeats, delays and
//! reorders.

mod channels;
mod chaos;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod idle;
mod locks;
mod pressure;
mod published;
mod reads;
mod requests;
mod starting;
mod status;
mod stopping;
mod support;
mod timer;
mod transitions;

//! Total-order broadcast over TCP: whatever any member broadcasts, every member delivers, and all of
//! them in one order.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let addresses = ["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"].map(|it| it.parse().unwrap());
//! let member = dinner::Broadcast::join(&addresses, addresses[0], "/var/lib/dinner")?;
//! member.broadcast(b"noodles?".to_vec())?;
//! for delivery in member.deliveries() {
//!     println!("{}. {:?} from {}", delivery.number, delivery.message(), delivery.from);
//! }
//! # Ok(()) }
//! ```
//!
//! To read, top to bottom: `order` is the state machine, `outbox` keeps what a member has broadcast
//! until it is delivered, `frame` is what travels, `network` how it travels, and `broadcast` puts
//! them together with a replica and a disk.

mod broadcast;
mod frame;
mod loopback;
mod network;
mod order;
mod outbox;

pub use broadcast::Broadcast;
pub use loopback::free_addresses;
pub use order::{Delivery, MAX_MESSAGE};

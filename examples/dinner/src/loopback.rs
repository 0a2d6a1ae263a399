//! Addresses for members on one machine.

use rand::RngExt;
use std::io::Result;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Below those that systems give to outgoing connections, one of which could else take the port of a
/// member that is down for a moment.
const PORTS: Range<u16> = 15_000..32_000;

/// As many loopback addresses, on which nobody listens now.
///
/// # Errors
/// What the system said about the last of many attempts.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    // They are held until all are found, lest one be found twice.
    let listeners = (0..count).map(|_| {
        let mut attempts = 100;
        loop {
            let port = rand::rng().random_range(PORTS);
            attempts -= 1;
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                Err(_) if attempts > 0 => {}
                result => return result,
            }
        }
    });
    let listeners = listeners.collect::<Result<Vec<_>>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

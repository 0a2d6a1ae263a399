//! Companies of members in one process.

use dinner::{Broadcast, Delivery, free_addresses};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing takes nearly as long, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Company {
    pub(crate) addresses: Vec<SocketAddr>,
    directory: TempDir,
}

impl Company {
    pub(crate) fn new(members: usize) -> Company {
        let (addresses, directory) =
            (free_addresses(members).unwrap(), tempfile::tempdir().unwrap());
        Company { addresses, directory }
    }

    pub(crate) fn join(&self, member: usize) -> Broadcast {
        let directory = self.directory.path().join(member.to_string());
        Broadcast::join(&self.addresses, self.addresses[member], directory).unwrap()
    }

    pub(crate) fn join_all(&self) -> Vec<Broadcast> {
        (0..self.addresses.len()).map(|member| self.join(member)).collect()
    }
}

/// What a member delivers, up to where it is enough.
pub(crate) fn hear(member: &Broadcast, is_enough: impl Fn(&[Delivery]) -> bool) -> Vec<Delivery> {
    let (deadline, mut heard) = (Instant::now() + DEADLINE, Vec::new());
    while !is_enough(&heard) {
        let delivery = member.deliveries().recv_deadline(deadline);
        heard.push(delivery.unwrap_or_else(|_| panic!("only {} were delivered", heard.len())));
    }
    heard
}

/// Which member leads. All the others must say the same.
#[allow(dead_code)] // Not every test asks.
pub(crate) fn leader(members: &[Broadcast]) -> usize {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let leaders: Vec<_> = members.iter().map(Broadcast::leader).collect();
        let place = members.iter().position(|it| Some(it.address()) == leaders[0]);
        if let Some(place) = place.filter(|_| leaders.iter().all(|it| *it == leaders[0])) {
            return place;
        }
        assert!(Instant::now() < deadline, "they follow {leaders:?}");
        std::thread::yield_now();
    }
}

/// Broadcasts numbers as text.
pub(crate) fn say(member: &Broadcast, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| member.broadcast(number.to_string().into_bytes()).unwrap());
}

/// What was heard of each member. Checks that the order is numbered without a gap, and that each
/// member is heard from 0 on without a gap, which excludes losses and duplicates.
pub(crate) fn by_member(heard: &[Delivery]) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    for (number, delivery) in (1..).zip(heard) {
        assert_eq!(delivery.number, number);
        let count = counts.entry(delivery.from).or_insert(0);
        assert_eq!(delivery.message(), count.to_string().as_bytes(), "from {}", delivery.from);
        *count += 1;
    }
    counts
}

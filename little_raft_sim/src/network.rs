//! Messages underway, and the links they travel on.

use crate::clock::{Time, nanos};
use crate::counters::Counters;
use crate::{Faults, Random};
use little_raft::{Message, ReplicaID};
use rand::RngExt;

pub(crate) type Packet<T, D> = (ReplicaID, ReplicaID, Message<T, D>);

/// What has become of a message when its time is there.
pub(crate) enum Arrival<T, D> {
    Lost,
    Cut(Packet<T, D>),
    Came(Packet<T, D>),
}

pub(crate) struct Network<T, D> {
    /// Which links are cut, by sender and receiver.
    cut: Vec<Vec<bool>>,
    packets: Vec<Option<Packet<T, D>>>,
    free: Vec<usize>,
    /// Whether faults have ended.
    pub(crate) quiet: bool,
}

impl<T: Clone, D: Clone> Network<T, D> {
    pub(crate) fn new(replicas: usize) -> Self {
        let cut = vec![vec![false; replicas]; replicas];
        Network { cut, packets: Vec::new(), free: Vec::new(), quiet: false }
    }

    /// Accepts a message. Returns when each of its copies arrives, and the ticket of each.
    pub(crate) fn send(
        &mut self, now: Time, packet: Packet<T, D>, faults: &Faults, random: &mut Random,
        counters: &mut Counters,
    ) -> [Option<(Time, usize)>; 2] {
        let (from, to, _) = packet;
        let chance =
            |random: &mut Random, of: u32| of > 0 && random.random_range(0..1_000_000) < of;
        if self.cut[from][to] || (!self.quiet && chance(random, faults.lost)) {
            counters.lost += 1;
            return [None, None];
        }
        let copy = !self.quiet && chance(random, faults.duplicated);
        let copy = copy.then(|| packet.clone());
        counters.duplicated += u64::from(copy.is_some());
        let mut post = |packet| {
            let late = !self.quiet && chance(random, faults.late);
            let longest = if late { 8_000_000_000 } else { 2 * nanos(faults.delay.1) };
            counters.late += u64::from(late);
            let delay = nanos(faults.delay.0) + random.random_range(0..=longest);
            (now + delay, self.put(packet))
        };
        [Some(post(packet)), copy.map(post)]
    }

    fn put(&mut self, packet: Packet<T, D>) -> usize {
        match self.free.pop() {
            Some(ticket) => {
                self.packets[ticket] = Some(packet);
                ticket
            }
            None => {
                self.packets.push(Some(packet));
                self.packets.len() - 1
            }
        }
    }

    /// A message arrives, unless its link was cut meanwhile.
    pub(crate) fn arrive(&mut self, ticket: usize) -> Arrival<T, D> {
        self.free.push(ticket);
        match self.packets[ticket].take() {
            None => Arrival::Lost,
            Some(packet) if self.cut[packet.0][packet.1] => Arrival::Cut(packet),
            Some(packet) => Arrival::Came(packet),
        }
    }

    pub(crate) fn underway(&self) -> impl Iterator<Item = &Message<T, D>> {
        self.packets.iter().flatten().map(|(.., message)| message)
    }

    /// Has a message that is underway come once more.
    pub(crate) fn copy(&mut self, ticket: usize) -> Option<usize> {
        let packet = self.packets[ticket].clone()?;
        Some(self.put(packet))
    }

    /// Loses what is underway, but for what is to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Message<T, D>) -> bool) {
        for packet in &mut self.packets {
            *packet = packet.take().filter(|(.., message)| keep(message));
        }
    }

    pub(crate) fn cut(&mut self, from: ReplicaID, to: ReplicaID, one_way: bool) {
        self.cut[from][to] = true;
        self.cut[to][from] |= !one_way;
    }

    pub(crate) fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|cut| *cut = false);
    }
}

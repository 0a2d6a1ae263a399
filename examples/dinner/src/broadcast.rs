//! A member: a replica with its disk, its network and its outbox.

use crate::frame::{Frames, Packet, RaftMessage};
use crate::network::{Listener, dial};
use crate::order::{Delivery, MAX_MESSAGE, Order, Origin, Post, Transition};
use crate::outbox::Outbox;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use little_raft::{Cluster, Replica, ReplicaID};
use little_raft_redb::RedbStorage;
use log::error;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const HEARTBEAT: Duration = Duration::from_millis(50);
/// Several heartbeats, so that a lost one starts no election, and a wide range, so that two members
/// seldom stand at once.
const ELECTION: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(600));
/// Raft messages, and posts, that may wait for the replica. More are dropped.
const INBOX: usize = 4096;

/// A member of a company that agrees on the order of everything its members broadcast.
///
/// Dropping it stops it, as [`leave`](Broadcast::leave) does. A member that stops, even by `kill`,
/// may join again with the same arguments.
pub struct Broadcast {
    own: Origin,
    addresses: Arc<Vec<SocketAddr>>,
    outbox: Arc<Outbox>,
    wires: Arc<Wires>,
    deliveries: Receiver<Delivery>,
    /// The disconnection of this tells the threads that send to end.
    stop: Option<Sender<()>>,
    listener: Option<Listener>,
    senders: Vec<JoinHandle<()>>,
    replica: Option<JoinHandle<Result<()>>>,
}

/// What the threads of a member have in common.
struct Wires {
    leader: Mutex<Option<ReplicaID>>,
    halt: Mutex<bool>,
    /// Tokens: there are Raft messages, there are posts to propose, there are posts to send.
    messages: Sender<()>,
    proposals: Sender<()>,
    outgoing: Sender<()>,
}

impl Wires {
    fn get<V: Copy>(mutex: &Mutex<V>) -> V {
        *Wires::lock(mutex)
    }

    fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The replica's end of the network.
struct Link {
    wires: Arc<Wires>,
    peers: BTreeMap<ReplicaID, Sender<Packet>>,
    inbox: Receiver<RaftMessage>,
}

impl Cluster<Transition, ()> for Link {
    fn send_message(&mut self, to_id: usize, message: RaftMessage) {
        // A full queue drops it.
        let peer = self.peers.get(&to_id);
        peer.into_iter().for_each(|peer| _ = peer.try_send(Packet::Raft(message.clone())));
    }

    fn receive_messages(&mut self) -> Vec<RaftMessage> {
        self.inbox.try_iter().take(INBOX).collect()
    }

    fn halt(&self) -> bool {
        Wires::get(&self.wires.halt)
    }

    fn register_leader(&mut self, leader_id: Option<ReplicaID>) {
        *Wires::lock(&self.wires.leader) = leader_id;
        let _ = self.wires.outgoing.try_send(());
    }
}

impl Broadcast {
    /// Joins the company of the members at these addresses, as the one that listens on `own`, with
    /// what it keeps in `directory`. All members must be told the same addresses, in any order.
    ///
    /// # Errors
    /// `InvalidInput` if `own` is not among the addresses, one is there twice, or the directory
    /// belongs to another member or company; what the system said, if it cannot listen or start a
    /// thread; and those of [`little_raft_redb::Options::open`].
    pub fn join(
        addresses: &[SocketAddr], own: SocketAddr, directory: impl AsRef<Path>,
    ) -> Result<Broadcast> {
        let sorted: Vec<_> =
            addresses.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let member = sorted.binary_search(&own).ok().filter(|_| sorted.len() == addresses.len());
        let Some(member) = member else {
            let text = format!("{own} must be one of {addresses:?}, and none of them there twice");
            return Err(Error::new(ErrorKind::InvalidInput, text));
        };
        let company = sorted.iter().map(|it| format!("{it} ")).collect::<String>();
        let options = RedbStorage::options().replica_id(member).cluster_id(company);
        Broadcast::start(member, Arc::new(sorted), options.open(directory)?)
    }

    fn start(
        member: ReplicaID, addresses: Arc<Vec<SocketAddr>>, storage: RedbStorage,
    ) -> Result<Broadcast> {
        let own = Origin { member, life: rand::random() };
        let ((messages, recv_msg), (proposals, recv_transition)) = (bounded(1), bounded(1));
        let ((outgoing, recv_outgoing), (stop, stopped)) = (bounded(1), bounded(0));
        let ((to_inbox, inbox), (to_pending, pending)) = (bounded(INBOX), bounded(INBOX));
        let ((deliver, deliveries), outbox) = (unbounded(), Arc::new(Outbox::default()));
        let (guests, posted) = (addresses.clone(), outbox.clone());
        let order = Order::new(own, guests, pending, posted, outgoing.clone(), deliver);
        let (leader, halt) = Default::default();
        let wires = Arc::new(Wires { leader, halt, messages, proposals, outgoing });
        // From here on an error drops this, which ends the threads there are.
        let mut broadcast = Broadcast {
            own,
            addresses,
            outbox: outbox.clone(),
            wires: wires.clone(),
            deliveries,
            stop: Some(stop),
            listener: None,
            senders: Vec::new(),
            replica: None,
        };
        let sort = sorter(wires.clone(), to_inbox, to_pending.clone());
        let peers = broadcast.connect(sort, &stopped)?;
        let link = Link { wires: wires.clone(), peers: peers.clone(), inbox };
        let courier = Courier { member, outbox, wires, peers, to_pending };
        let courier = move || courier.carry(&recv_outgoing, &stopped);
        broadcast.senders.push(thread::Builder::new().name("courier".into()).spawn(courier)?);
        let replica = replica(member, link, order, storage);
        let life = move || replica(recv_msg, recv_transition);
        let thread = thread::Builder::new().name(format!("member {member}"));
        broadcast.replica = Some(thread.spawn(life)?);
        Ok(broadcast)
    }

    /// Listens, and has a queue to each of the others.
    fn connect(
        &mut self, deliver: impl Fn(Packet) + Clone + Send + 'static, stopped: &Receiver<()>,
    ) -> Result<BTreeMap<ReplicaID, Sender<Packet>>> {
        let frames = Frames::new(&self.addresses);
        self.listener = Some(Listener::start(self.address(), frames, deliver)?);
        let mut peers = BTreeMap::new();
        for (id, address) in self.addresses.iter().enumerate() {
            if id != self.own.member {
                let (queue, thread) = dial(*address, frames, stopped.clone())?;
                peers.insert(id, queue);
                self.senders.push(thread);
            }
        }
        Ok(peers)
    }

    /// Has every member, this one included, deliver a message. It does not wait for that.
    ///
    /// The message is sent to whoever leads until it is delivered here, and it is delivered once. If
    /// this member stops before it has delivered the message itself, nobody may ever deliver it.
    /// Messages of one member are delivered in the order in which it broadcast them.
    ///
    /// # Errors
    /// `InvalidInput` if the message is longer than [`MAX_MESSAGE`]; `WouldBlock` if too many
    /// messages wait to be delivered, as they do while no majority of the members is there;
    /// `BrokenPipe` if the replica has failed, which [`leave`](Self::leave) tells more about.
    pub fn broadcast(&self, message: Vec<u8>) -> Result<()> {
        if message.len() > MAX_MESSAGE {
            let text = format!("{} bytes are too long, at most {MAX_MESSAGE}", message.len());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        } else if self.replica.as_ref().is_none_or(JoinHandle::is_finished) {
            let text = "the replica has failed; leave tells why";
            return Err(Error::new(ErrorKind::BrokenPipe, text));
        }
        self.outbox.put(self.own, message)?;
        let _ = self.wires.outgoing.try_send(());
        Ok(())
    }

    /// Where messages are delivered, from the very first on, whenever this member joined: the log on
    /// disk is read again. Disconnected if the replica has failed.
    pub fn deliveries(&self) -> &Receiver<Delivery> {
        &self.deliveries
    }

    /// The address of this member.
    pub fn address(&self) -> SocketAddr {
        self.addresses[self.own.member]
    }

    /// The member that leads, as far as this one knows.
    pub fn leader(&self) -> Option<SocketAddr> {
        Wires::get(&self.wires.leader).map(|id| self.addresses[id])
    }

    /// Stops this member, and waits until all its threads have ended.
    ///
    /// # Errors
    /// What the replica failed with, if it has: a full disk, for example.
    pub fn leave(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        *Wires::lock(&self.wires.halt) = true;
        let _ = self.wires.messages.try_send(());
        // The replica first: it lets go of the queues for which the others wait.
        let replica = self.replica.take().map_or(Ok(Ok(())), JoinHandle::join);
        self.stop = None;
        let _ = self.wires.outgoing.try_send(());
        self.listener = None;
        self.senders.drain(..).for_each(|thread| _ = thread.join());
        replica.unwrap_or_else(|_| Err(Error::other("the replica's thread has panicked")))
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        // Whoever wants to know calls `leave`.
        let _ = self.end();
    }
}

/// What runs a replica.
fn replica(
    id: ReplicaID, link: Link, order: Order, storage: RedbStorage,
) -> impl FnOnce(Receiver<()>, Receiver<()>) -> Result<()> {
    let wires = link.wires.clone();
    let peers = link.peers.keys().copied().collect();
    let (link, order) = (Arc::new(Mutex::new(link)), Arc::new(Mutex::new(order)));
    let replica = Replica::new(id, peers, link, order, Transition::NoOp, HEARTBEAT, ELECTION);
    let mut replica = replica.with_storage(storage);
    move |recv_msg, recv_transition| {
        let result = replica.start(recv_msg, recv_transition);
        *Wires::lock(&wires.leader) = None;
        result.inspect_err(|error| error!("member {id} has failed: {error}"))
    }
}

/// Puts every packet where it belongs.
fn sorter(
    wires: Arc<Wires>, inbox: Sender<RaftMessage>, pending: Sender<Post>,
) -> impl Fn(Packet) + Clone + Send + 'static {
    move |packet| match packet {
        Packet::Raft(message) => {
            let _ = inbox.try_send(message);
            let _ = wires.messages.try_send(());
        }
        // If this member does not lead, its replica abandons the post. The sender will learn who
        // leads, and send it there.
        Packet::Post(post) => {
            let _ = pending.try_send(post);
            let _ = wires.proposals.try_send(());
        }
        Packet::Ping => {}
    }
}

/// Carries what is in the outbox to whoever leads.
struct Courier {
    member: ReplicaID,
    outbox: Arc<Outbox>,
    wires: Arc<Wires>,
    peers: BTreeMap<ReplicaID, Sender<Packet>>,
    to_pending: Sender<Post>,
}

impl Courier {
    fn carry(self, outgoing: &Receiver<()>, stopped: &Receiver<()>) {
        // Nothing is ever sent through `stopped`: it is empty or disconnected.
        while stopped.try_recv().is_err_and(|error| error.is_empty()) {
            // A token says that there is something new, time tells that something got lost.
            let _ = outgoing.recv_timeout(HEARTBEAT);
            let Some(leader) = Wires::get(&self.wires.leader) else { continue };
            for post in self.outbox.due(leader, Instant::now()) {
                match self.peers.get(&leader) {
                    Some(peer) => _ = peer.try_send(Packet::Post(post)),
                    None => _ = self.to_pending.try_send(post),
                }
            }
            if leader == self.member {
                let _ = self.wires.proposals.try_send(());
            }
        }
    }
}

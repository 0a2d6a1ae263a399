//! Three replicas in one process, each with a storage of its own on the same disk.

use crate::disk::Disk;
use crate::{ENTRY, Entry, fresh};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use little_raft::{Cluster, Message, Replica, StateMachine, StateMachineTransition};
use little_raft::{TransitionAbandonedReason, TransitionState};
use little_raft_redb::RedbStorage;
use std::fs::File;
use std::io::{Error, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(10);

impl StateMachineTransition for Entry {
    type TransitionID = ();

    fn get_id(&self) {}
}

/// What a replica is reached by.
#[derive(Clone)]
struct Mailbox {
    inbox: Sender<Message<Entry>>,
    wake: Sender<()>,
}

struct Node {
    id: usize,
    mailboxes: Vec<Mailbox>,
    inbox: Receiver<Message<Entry>>,
    leader: Arc<AtomicUsize>,
    halt: Arc<AtomicBool>,
}

impl Cluster<Entry> for Node {
    fn send_message(&mut self, to_id: usize, message: Message<Entry>) {
        let mailbox = &self.mailboxes[to_id];
        // A replica that has ended needs no messages, a full channel no second token.
        let _ = mailbox.inbox.send(message);
        let _ = mailbox.wake.try_send(());
    }

    fn receive_messages(&mut self) -> Vec<Message<Entry>> {
        self.inbox.try_iter().collect()
    }

    fn halt(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        if leader_id == Some(self.id) {
            self.leader.store(self.id, Ordering::Relaxed);
        }
    }
}

/// Proposes as many entries as the leader has applied, so that always so many are underway. The
/// others learn of a commit with the next entries or heartbeat, which may be long after it.
struct Load {
    id: usize,
    leader: Arc<AtomicUsize>,
    pending: Arc<Mutex<Vec<Entry>>>,
    done: Sender<()>,
}

impl StateMachine<Entry> for Load {
    fn register_transition_state(&mut self, _: (), state: TransitionState) {
        let lost = TransitionState::Abandoned(TransitionAbandonedReason::ConflictWithLeader);
        assert!(state != lost, "the leader changed: measure on a quieter machine");
    }

    fn apply_transition(&mut self, entry: Entry) {
        if !entry.0.is_empty() && self.leader.load(Ordering::Relaxed) == self.id {
            let _ = self.done.send(());
        }
    }

    fn get_pending_transitions(&mut self) -> Vec<Entry> {
        std::mem::take(&mut *self.pending.lock().expect("no thread has panicked"))
    }
}

/// Commits entries with so many underway, and syncs as many bytes in batches of that size.
pub(crate) fn run(directory: &Path, outstanding: usize, disk: Disk) -> Result<()> {
    let path = fresh(directory, "cluster")?;
    let before = plain(&path, outstanding, disk)?;
    let (leader, halt) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicBool::default()));
    let channels: Vec<_> = (0..3).map(|_| (unbounded(), bounded(1), bounded(1))).collect();
    let mailboxes: Vec<_> = channels
        .iter()
        .map(|(inbox, wake, _)| Mailbox { inbox: inbox.0.clone(), wake: wake.0.clone() })
        .collect();
    let (pending, (done, applied)) = (Arc::new(Mutex::new(Vec::new())), unbounded());
    let committed = std::thread::scope(|scope| {
        for (id, (inbox, wake, propose)) in channels.iter().enumerate() {
            let (leader, halt, inbox) = (leader.clone(), halt.clone(), inbox.1.clone());
            let (pending, done) = (pending.clone(), done.clone());
            let load = Load { id, leader: leader.clone(), pending, done };
            let node = Node { id, mailboxes: mailboxes.clone(), inbox, leader, halt };
            let path = path.join(id.to_string());
            let storage = move || disk.open(&path);
            scope.spawn(move || replica(node, load, storage, wake.1.clone(), propose.1.clone()));
        }
        let end = Instant::now() + LONG;
        while leader.load(Ordering::Relaxed) == usize::MAX && Instant::now() < end {
            std::thread::yield_now();
        }
        let propose = channels.get(leader.load(Ordering::Relaxed)).map(|channel| &channel.2.0);
        let result = propose
            .ok_or(Error::other("no leader"))
            .and_then(|propose| measure(outstanding, &pending, propose, &applied));
        halt.store(true, Ordering::Relaxed);
        result
    })?;
    let synced = (before + plain(&path, outstanding, disk)?) / 2.0;
    println!(
        "{outstanding} underway: {committed:.0} committed a second; one loop of append and sync: \
         {synced:.0} entries a second; ratio {:.2}",
        committed / synced
    );
    Ok(())
}

fn replica(
    node: Node, load: Load, storage: impl FnOnce() -> Result<RedbStorage>, wake: Receiver<()>,
    propose: Receiver<()>,
) {
    let (id, peers) = (node.id, (0..3).filter(|peer| *peer != node.id).collect());
    let (node, load) = (Arc::new(Mutex::new(node)), Arc::new(Mutex::new(load)));
    let noop = Entry(Vec::new());
    let (heartbeat, timeouts) = (100, (1000, 2000));
    let timeouts = (Duration::from_millis(timeouts.0), Duration::from_millis(timeouts.1));
    let heartbeat = Duration::from_millis(heartbeat);
    let replica = Replica::new(id, peers, node, load, noop, heartbeat, timeouts);
    let ended = storage().and_then(|storage| replica.with_storage(storage).start(wake, propose));
    if let Err(error) = ended {
        eprintln!("replica {id}: {error}");
    }
}

/// How many entries are committed a second.
fn measure(
    outstanding: usize, pending: &Mutex<Vec<Entry>>, propose: &Sender<()>, applied: &Receiver<()>,
) -> Result<f64> {
    let put = |count| {
        let entries = (0..count).map(|_| Entry(vec![7; ENTRY]));
        pending.lock().expect("no thread has panicked").extend(entries);
        let _ = propose.try_send(());
    };
    put(outstanding);
    let (mut count, began) = (0, Instant::now());
    while began.elapsed() < LONG {
        applied.recv_timeout(LONG).map_err(Error::other)?;
        let more = 1 + applied.try_iter().count();
        count += more;
        put(more);
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// How many entries a second a loop syncs that appends so many at a time.
fn plain(directory: &Path, batch: usize, disk: Disk) -> Result<f64> {
    let (mut file, bytes) = (File::create(directory.join("plain"))?, vec![7; ENTRY * batch]);
    let (mut count, began) = (0, Instant::now());
    while began.elapsed() < LONG / 4 {
        disk.append(&mut file, &bytes)?;
        count += batch;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

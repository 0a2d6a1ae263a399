//! A node: a replica with its disk, its peers and its clients.
//!
//! Everything in here that may wait is async; the replica itself runs in a thread of its own and
//! never waits for anybody.

use crate::command::{
    Action, ClientId, Command, CommandId, Outcome, Revision, Session, Transaction,
};
use crate::config::{Config, NodeConfig};
use crate::machine::{Fate, Machine, Pending};
use crate::proto::WriteRequest;
use crate::server::Desk;
use crate::snapshots::{sync_directory, write_store};
use crate::store::Store;
use crate::tallies::Tallies;
use crate::transport::{Network, locked};
use crate::wire::{RaftMessage, stamp};
use bytes::Bytes;
use crossbeam_channel::Sender;
use little_raft::{Message, ReplicaID, Role, Status};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

pub use crate::report::*;

/// How long an attempt waits for a connection to the leader.
const CONNECTION: Duration = Duration::from_secs(1);
/// How often leadership is asked to go somewhere before that is given up.
const ATTEMPTS: usize = 3;
/// Changes that are told at once.
const BATCH: usize = 256;
/// Bytes of a backup in one chunk.
const CHUNK: usize = 64 * 1024;

/// A node that runs. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts of a node have in common.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) own: NodeConfig,
    pub(crate) directory: PathBuf,
    pub(crate) network: Arc<Network>,
    pub(crate) machine: Arc<Mutex<Machine>>,
    pub(crate) pending: Arc<Mutex<Pending>>,
    /// A token says that there are proposals or reads.
    pub(crate) proposals: Sender<()>,
    /// What is asked of the cluster at the replica's next look.
    pub(crate) requests: Arc<Mutex<VecDeque<RaftMessage>>>,
    pub(crate) halt: Arc<AtomicBool>,
    /// How the replica is, once it runs.
    pub(crate) raft: watch::Receiver<Option<Status>>,
    pub(crate) status: watch::Sender<Arc<NodeStatus>>,
    pub(crate) elections: Mutex<VecDeque<Election>>,
    pub(crate) tallies: Arc<Tallies>,
    pub(crate) writes: Arc<Semaphore>,
    pub(crate) bytes: Arc<Semaphore>,
    pub(crate) reads: Arc<Semaphore>,
    /// No more requests are taken.
    pub(crate) stopping: AtomicBool,
    /// That the replica has ended, and what it failed with.
    pub(crate) ended: watch::Receiver<Option<Option<String>>>,
    /// Other nodes are served no more.
    pub(crate) served: watch::Sender<bool>,
    pub(crate) started: Instant,
    /// What this life's commands have in common.
    pub(crate) life: u64,
    pub(crate) next_command: AtomicU64,
}

impl Node {
    /// Starts the node of this name. It runs until [`shutdown`](Self::shutdown) or
    /// [`halt`](Self::halt), whether or not somebody holds it.
    ///
    /// # Errors
    /// If the name is not in the configuration, the address cannot be listened on, the directory is
    /// another node's or is damaged. The error says what to do.
    pub async fn start(config: Config, name: &str) -> Result<Node, StartError> {
        crate::start::start(config, name).await
    }

    /// Begins the directory of a node, which must be empty, with a backup. To be done for **every**
    /// node of a new cluster, with the same backup, before the first is started.
    ///
    /// # Errors
    /// If the directory is not empty, or the backup is damaged.
    pub fn restore(
        config: &Config, name: &str, backup: impl io::Read,
    ) -> Result<BackupReport, StartError> {
        crate::start::restore(config, name, backup)
    }

    /// The configuration that it was started with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Opens a session, for requests that must be done once however often they are sent.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub async fn open_session(&self) -> Result<ClientId, WriteError> {
        // Opened twice does no harm: nobody knows of one of them.
        match self.inner.count(self.inner.perform(Action::OpenSession, true)).await? {
            Outcome::SessionOpened { client } => Ok(client),
            _ => Err(WriteError::OutcomeUnknown),
        }
    }

    /// Carries out a transaction, wherever the leader is.
    ///
    /// # Errors
    /// See [`WriteError`]. With a session a request whose outcome is not known is sent again until
    /// it is, or until the configuration's `request_timeout` has passed.
    pub async fn write(
        &self, session: Option<Session>, transaction: Transaction,
    ) -> Result<Outcome, WriteError> {
        self.inner.check(&transaction)?;
        let action = Action::Write { session, transaction };
        self.inner.count(self.inner.perform(action, session.is_some())).await
    }

    /// Reads from the state machine, which does not change while `query` looks at it.
    ///
    /// # Errors
    /// See [`ReadError`]; a stale read never fails.
    pub async fn read<R>(
        &self, consistency: Consistency, query: impl FnOnce(&Store) -> R,
    ) -> Result<R, ReadError> {
        Tallies::add(&self.inner.tallies.reads, 1);
        let store = match consistency {
            Consistency::Stale => locked(&self.inner.machine).store(),
            Consistency::Linearizable | Consistency::Lease => {
                self.inner.confirmed_store().await.inspect_err(|_| {
                    Tallies::add(&self.inner.tallies.reads_failed, 1);
                })?
            }
        };
        Ok(query(&store))
    }

    /// How this node and its cluster are.
    pub fn status(&self) -> NodeStatus {
        self.inner.node_status()
    }

    /// The status whenever it is new: at each change of role, term, leader or configuration, and
    /// once per heartbeat.
    pub fn watch_status(&self) -> watch::Receiver<Arc<NodeStatus>> {
        self.inner.status.subscribe()
    }

    /// What has happened since this node has started.
    pub fn counters(&self) -> Counters {
        self.inner.counters()
    }

    /// Makes these the members of the cluster: new voters are added as learners, brought up to date,
    /// and promoted; who is no longer named is removed. It may be asked for again at any time, and
    /// goes on from where it is. Dropping the receiver stops it before its next step.
    pub fn change_members(&self, change: MembersChange) -> mpsc::Receiver<MembersStep> {
        crate::members::change_anywhere(self.inner.clone(), change)
    }

    /// Hands leadership to a voter, or to the one that is furthest. Returns the new leader's id.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer(&self, to: Option<usize>) -> Result<usize, TransferError> {
        self.inner.transfer(to).await
    }

    /// Writes the state machine, as it is here now, to a file in this node's directory. It is a
    /// backup: when the log is compacted is for the replica to decide.
    ///
    /// # Errors
    /// What the system says.
    pub async fn snapshot(&self) -> io::Result<BackupReport> {
        let (store, directory) =
            (locked(&self.inner.machine).store(), self.inner.directory.join("backups"));
        let write = move || write_backup(&store, &directory);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }

    /// The state machine as a stream of bytes, with everything in it that was acknowledged before.
    ///
    /// # Errors
    /// Those of a linearizable [`read`](Self::read).
    pub async fn backup(&self) -> Result<Backup, ReadError> {
        let store = self.read(Consistency::Linearizable, Store::clone).await?;
        let (revision, (sender, chunks)) = (store.revision(), mpsc::channel(4));
        tokio::task::spawn_blocking(move || {
            let out = BufWriter::with_capacity(CHUNK, Chunks(sender.clone()));
            // If nobody takes the chunks any more nobody wants to know about the error either.
            if let Err(error) = write_store(&store, out) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(Backup { revision, chunks })
    }

    /// The changes of keys with this prefix, from a revision on; without one, from now on. They are
    /// what this node knows of, in order and without gaps.
    ///
    /// # Errors
    /// [`WatchError::Forgotten`] if the revision lies too far back.
    pub fn watch(&self, from: Option<Revision>, prefix: &str) -> Result<Watch, WatchError> {
        let machine = locked(&self.inner.machine);
        let after = from.map_or(machine.store().revision(), |from| from.saturating_sub(1));
        machine.changes_after(after, prefix, 0)?;
        let (inner, revision) = (self.inner.clone(), machine.watch_revision());
        Ok(Watch { inner, revision, after, prefix: prefix.to_string() })
    }

    /// Hands leadership over if this node leads, then stops. Returns when all has ended.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stopping.store(true, Ordering::Release);
        let patience = inner.config.timing.election_timeout.1 * 2;
        if inner.current_leader() == Some(inner.own.id) && inner.ended.borrow().is_none() {
            match timeout(patience, inner.hand_to(None)).await {
                Ok(Ok(to)) => log::info!("node {}: node {to} leads now", inner.own.id),
                // It is alone.
                Ok(Err(TransferError::NotAVoter { .. })) => {}
                Ok(Err(_)) | Err(_) => {
                    log::warn!("node {}: stops though nobody took over", inner.own.id);
                }
            }
            // What is underway becomes known from the new leader.
            let _ = timeout(patience, inner.nothing_underway()).await;
        }
        self.halt().await;
    }

    /// Stops at once, as a crash would.
    pub async fn halt(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.halt.store(true, Ordering::Release);
        self.inner.network.inbox.wake();
        let _ = self.ended().await;
        self.inner.network.stop();
        // So that the address is free; but a node that hangs must not keep this one.
        let mut served = self.inner.served.subscribe();
        let _ = timeout(CONNECTION, served.wait_for(|served| *served)).await;
    }

    /// Waits until the replica has ended: with nothing if it was stopped, else with what it failed
    /// with, such as a full disk.
    pub async fn ended(&self) -> Option<String> {
        let mut ended = self.inner.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().flatten(),
            Err(_) => None,
        }
    }
}

impl Inner {
    fn is_ending(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.ended.borrow().is_some()
    }

    /// Refuses a transaction that is too large or makes no sense.
    fn check(&self, transaction: &Transaction) -> Result<(), WriteError> {
        let limits = &self.config.limits;
        let too_large = |what: &str, found: usize, limit: usize, name: &str| {
            let reason = format!(
                "{what} of {found} is more than the {limit} that {name} in the configuration allows"
            );
            Err(WriteError::TooLarge { reason })
        };
        let invalid = |reason: &str| Err(WriteError::Invalid { reason: reason.to_string() });
        let steps = transaction.conditions.len() + transaction.operations.len();
        if steps > limits.transaction_steps {
            return too_large(
                "a number of steps",
                steps,
                limits.transaction_steps,
                "transaction_steps",
            );
        }
        if transaction.operations.is_empty() {
            return invalid("a transaction without operations does nothing; name at least one");
        }
        for key in transaction.keys() {
            if key.is_empty() {
                return invalid("a key must not be empty");
            }
            if key.len() > limits.key_bytes {
                return too_large("a key with a length", key.len(), limits.key_bytes, "key_bytes");
            }
        }
        let longest = transaction.values().map(Bytes::len).max().unwrap_or_default();
        if longest > limits.value_bytes {
            return too_large("a value with a length", longest, limits.value_bytes, "value_bytes");
        }
        if transaction.size() > limits.transaction_bytes {
            let (size, limit) = (transaction.size(), limits.transaction_bytes);
            return too_large("a transaction with a size", size, limit, "transaction_bytes");
        }
        Ok(())
    }

    /// Counts a write and how it ends.
    async fn count(
        &self, write: impl Future<Output = Result<Outcome, WriteError>>,
    ) -> Result<Outcome, WriteError> {
        Tallies::add(&self.tallies.writes, 1);
        let result = write.await;
        match &result {
            Err(WriteError::Busy { .. }) => Tallies::add(&self.tallies.writes_busy, 1),
            Err(WriteError::OutcomeUnknown) => Tallies::add(&self.tallies.writes_unknown, 1),
            Err(WriteError::NoLeader) => Tallies::add(&self.tallies.writes_no_leader, 1),
            _ => {}
        }
        result
    }

    /// Has a command applied, wherever the leader is. One that may be applied twice without harm is
    /// sent again as long as nobody knows what has become of it.
    pub(crate) async fn perform(
        &self, action: Action, repeatable: bool,
    ) -> Result<Outcome, WriteError> {
        let deadline = Instant::now() + self.config.timing.request_timeout;
        let (action, mut unknown) = (Arc::new(action), false);
        loop {
            let known = |error| Err(if unknown { WriteError::OutcomeUnknown } else { error });
            if self.is_ending() {
                return known(WriteError::ShuttingDown);
            }
            let Some(leader) = self.leader(deadline).await else {
                return known(WriteError::NoLeader);
            };
            let fate = tokio::select! {
                fate = self.submit(leader, &action, deadline) => fate,
                () = self.led_by_another(leader), if repeatable => Fate::Unknown,
            };
            match fate {
                Fate::Applied(outcome) => return Ok(outcome),
                Fate::Unknown if !repeatable => return Err(WriteError::OutcomeUnknown),
                Fate::Unknown => unknown = true,
                Fate::Busy if !unknown => {
                    return Err(WriteError::Busy { retry_after: self.config.timing.heartbeat });
                }
                Fate::NotDone | Fate::Busy => {}
            }
            // Who leads is told by heartbeats.
            sleep_until(deadline.min(Instant::now() + self.config.timing.heartbeat / 4)).await;
        }
    }

    /// Who leads, as far as this node knows or will before the deadline.
    async fn leader(&self, deadline: Instant) -> Option<ReplicaID> {
        let mut raft = self.raft.clone();
        let known = |status: &Option<Status>| status.as_ref().is_some_and(|it| it.leader.is_some());
        let status = timeout_at(deadline, raft.wait_for(known)).await.ok()?.ok()?;
        if Instant::now() >= deadline {
            return None;
        }
        status.as_ref().and_then(|status| status.leader)
    }

    /// Who leads, as far as this node knows now.
    pub(crate) fn current_leader(&self) -> Option<ReplicaID> {
        self.raft.borrow().as_ref().and_then(|status| status.leader)
    }

    /// Waits until this node knows of another leader.
    async fn led_by_another(&self, leader: ReplicaID) {
        let mut raft = self.raft.clone();
        let another = |status: &Option<Status>| {
            status.as_ref().and_then(|it| it.leader).is_some_and(|id| id != leader)
        };
        if raft.wait_for(another).await.is_err() {
            // The replica has ended, and with it everybody's wait.
            std::future::pending().await
        }
    }

    /// Takes a command to the leader, and waits for its fate.
    async fn submit(&self, leader: ReplicaID, action: &Arc<Action>, deadline: Instant) -> Fate {
        if leader == self.own.id {
            return self.propose(action.clone(), deadline).await;
        }
        Tallies::add(&self.tallies.writes_forwarded, 1);
        let patience = deadline.saturating_duration_since(Instant::now());
        let Some(mut client) = self.network.client(leader, patience.min(CONNECTION)).await else {
            return Fate::NotDone;
        };
        let Ok(request) = postcard::to_allocvec(&**action) else { return Fate::NotDone };
        let milliseconds = patience.as_millis() as u64;
        let request = WriteRequest { request: request.into(), milliseconds };
        let call = client.write(stamp(&self.network.own, leader, request));
        match timeout_at(deadline, call).await {
            // It refused the call.
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => Fate::NotDone,
            Ok(Ok(answer)) => {
                postcard::from_bytes(&answer.into_inner().answer).unwrap_or(Fate::Unknown)
            }
            Ok(Err(_)) | Err(_) => Fate::Unknown,
        }
    }

    /// Proposes a command here, and waits for its fate.
    async fn propose(&self, action: Arc<Action>, deadline: Instant) -> Fate {
        let size = match &*action {
            Action::Write { transaction, .. } => transaction.size(),
            Action::NoOp | Action::OpenSession | Action::Introduce { .. } => 0,
        };
        let size = (size + 64).min(self.config.limits.bytes_in_flight);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let (writes, bytes) = (self.writes.clone(), self.bytes.clone());
        let permits = (writes.try_acquire_owned(), bytes.try_acquire_many_owned(size));
        let (Ok(write), Ok(bytes)) = permits else { return Fate::Busy };
        let command = Command { id: self.next_id(), action };
        if self.is_ending() {
            return Fate::NotDone;
        }
        let fate = locked(&self.pending).propose(command, [write, bytes]);
        let _ = self.proposals.try_send(());
        match timeout_at(deadline, fate).await {
            Ok(Ok(fate)) => fate,
            Ok(Err(_)) | Err(_) => Fate::Unknown,
        }
    }

    fn next_id(&self) -> CommandId {
        let number = self.next_command.fetch_add(1, Ordering::Relaxed);
        CommandId { start: self.life, number }
    }

    /// A store that has everything that was acknowledged before.
    async fn confirmed_store(&self) -> Result<Store, ReadError> {
        let Ok(_permit) = self.reads.try_acquire() else {
            return Err(ReadError::Busy { retry_after: self.config.timing.heartbeat });
        };
        let deadline = Instant::now() + self.config.timing.request_timeout;
        loop {
            if self.is_ending() {
                return Err(ReadError::ShuttingDown);
            }
            if self.leader(deadline).await.is_none() {
                return Err(ReadError::NoLeader);
            }
            let answer = locked(&self.pending).ask(self.next_id());
            let _ = self.proposals.try_send(());
            match timeout_at(deadline, answer).await {
                Ok(Ok(Some(store))) => return Ok(store),
                Ok(Ok(None) | Err(_)) => sleep(self.config.timing.heartbeat / 4).await,
                Err(_) => return Err(ReadError::NoLeader),
            }
        }
    }

    /// Asks something of the cluster.
    pub(crate) fn request(&self, request: RaftMessage) {
        locked(&self.requests).push_back(request);
        self.network.inbox.wake();
    }

    async fn nothing_underway(&self) {
        while self.counters().writes_in_flight > 0 && self.ended.borrow().is_none() {
            sleep(self.config.timing.heartbeat / 4).await;
        }
    }

    async fn transfer(&self, to: Option<ReplicaID>) -> Result<ReplicaID, TransferError> {
        if self.is_ending() {
            return Err(TransferError::ShuttingDown);
        }
        let times = &self.config.timing;
        let patience = times.request_timeout.max(times.election_timeout.1 * 2);
        if self.leader(Instant::now() + patience).await.is_none() {
            return Err(TransferError::NoLeader);
        }
        timeout(patience, self.hand_to(to)).await.unwrap_or(Err(TransferError::TimedOut))
    }

    /// Asks for another leader until there is one.
    async fn hand_to(&self, wanted: Option<ReplicaID>) -> Result<ReplicaID, TransferError> {
        let mut raft = self.raft.clone();
        let current = |status: &Option<Status>| status.as_ref().and_then(|status| status.leader);
        let former = current(&raft.borrow());
        // While it is underway, nothing is written: somebody who is down must not stop everything.
        for _ in 0..ATTEMPTS {
            let status = raft.borrow().clone().ok_or(TransferError::NoLeader)?;
            let to = wanted.or_else(|| furthest(&status));
            let to = to.filter(|to| status.membership.voters.contains(to));
            let voters = status.membership.voters.clone();
            let to = to.ok_or(TransferError::NotAVoter { voters })?;
            if wanted.is_none() && status.leader.is_some() && status.leader != former {
                return Ok(status.leader.unwrap_or(to));
            }
            if status.leader != Some(to) {
                self.request(Message::transfer_leadership(to));
            }
            let there = |status: &Option<Status>| {
                let leader = current(status);
                leader == Some(to) || wanted.is_none() && leader.is_some() && leader != former
            };
            // A request may get lost, or be refused while another is underway.
            let patience = self.config.timing.election_timeout.1;
            match timeout(patience, raft.wait_for(there)).await {
                Ok(Ok(status)) => return Ok(current(&status).unwrap_or(to)),
                Ok(Err(_)) => return Err(TransferError::ShuttingDown),
                Err(_) => {}
            }
        }
        Err(TransferError::TimedOut)
    }
}

/// The voter that would be the best next leader, as far as this node knows.
fn furthest(status: &Status) -> Option<ReplicaID> {
    let others = status.membership.voters.iter().copied();
    let others = others.filter(|id| Some(*id) != status.leader);
    let rank = |id: &ReplicaID| status.peers.get(id).map(|peer| (peer.matched, peer.heard));
    others.max_by_key(rank)
}

#[tonic::async_trait]
impl Desk for Inner {
    async fn write(&self, action: Action, patience: Duration) -> Fate {
        let leads = |status: &Status| status.role == Role::Leader;
        if self.is_ending() || !self.raft.borrow().as_ref().is_some_and(leads) {
            return Fate::NotDone;
        }
        let patience = patience.min(self.config.timing.request_timeout);
        self.propose(Arc::new(action), Instant::now() + patience).await
    }

    fn change_members(self: Arc<Self>, change: MembersChange) -> mpsc::Receiver<MembersStep> {
        crate::members::change_here(self, change)
    }
}

/// Changes from a revision on: see [`Node::watch`].
pub struct Watch {
    inner: Arc<Inner>,
    revision: watch::Receiver<Revision>,
    after: Revision,
    prefix: String,
}

impl Watch {
    /// The next changes, at least one. Cancel safe.
    ///
    /// # Errors
    /// [`WatchError::Forgotten`] if this watch has fallen too far behind.
    pub async fn next(&mut self) -> Result<Vec<Change>, WatchError> {
        let mut ended = self.inner.ended.clone();
        loop {
            if self.inner.is_ending() {
                return Err(WatchError::ShuttingDown);
            }
            self.revision.mark_unchanged();
            let changes =
                locked(&self.inner.machine).changes_after(self.after, &self.prefix, BATCH)?;
            self.after = changes.1;
            if !changes.0.is_empty() {
                return Ok(changes.0);
            }
            tokio::select! {
                _ = self.revision.changed() => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
        }
    }
}

/// Sends what is written in chunks.
struct Chunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a store to a file, as a whole or not at all.
fn write_backup(store: &Store, directory: &std::path::Path) -> io::Result<BackupReport> {
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let written = write_store(store, BufWriter::new(file.as_file_mut()))?;
    file.as_file().sync_all()?;
    let path = directory.join(format!("revision-{}.kv", written.revision));
    let _: File = file.persist(&path)?;
    sync_directory(directory)?;
    let path = path.display().to_string();
    let (revision, keys, bytes) = (written.revision, written.keys, written.length);
    Ok(BackupReport { path, revision, keys, bytes })
}

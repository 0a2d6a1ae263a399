//! openraft on tokio, each replica in a runtime and a thread of its own, or all in one.
//!
//! Tuned: a batch goes in by one `client_write_many`; the network hands requests straight to the
//! other replica and keeps the stream of appends open, so that they are pipelined; limits on
//! batches are above what is outstanding; memory stays bounded by snapshots, which are a copy of a
//! small state. The client does not ask for a response to every command, which would cost more
//! than the rest: the leader's state machine tells it how many it has applied.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    BasicNode, Config, EntryPayload, LogState, OptionalSend, Raft, RaftLogReader, RaftMetrics,
    RaftNetworkFactory, RaftNetworkV2, RaftSnapshotBuilder, RaftTypeConfig, ServerState,
    SnapshotPolicy, StoredMembership, TokioRuntime,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use super::{Kind, System, with_command};
use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::REPLICAS;
use crate::scenario::{Place, Setup};
use crate::threads::settle;

pub fn system() -> System {
    System {
        name: "openraft",
        kind: Kind::Library,
        about: "`client_write_many` without responses, a tokio runtime for each replica",
        package: Some("openraft"),
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure(setup)),
    }
}

type Node<C> = Raft<Types<C>, Machine<C>>;
type Nodes<C> = Arc<OnceLock<Vec<Node<C>>>>;

fn measure<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    let runtimes = start_runtimes(setup.scenario.place)?;
    let nodes: Nodes<C> = Arc::default();
    let mut started = Vec::new();
    let mut states = Vec::new();
    for (id, runtime) in runtimes.iter().enumerate() {
        let (state, applied) = watch::channel(State::default());
        states.push(applied);
        let machine = Machine::<C>::new(state);
        let network = Network(nodes.clone());
        let config = Arc::new(config());
        started.push(run_on(runtime, async move {
            Raft::new(id as u64, config, network, Log::default(), machine).await
        })?);
    }
    let started = started.into_iter().collect::<Result<Vec<_>, _>>().map_err(to_text)?;
    let leader = started[0].clone();
    nodes.set(started).map_err(|_| "the nodes are known already")?;
    run_on(&runtimes[0], elect(leader.clone()))??;
    let client = serve(leader, states[0].clone(), Client::new(setup));
    let client = match setup.scenario.place {
        Place::OnItsOwn => new_runtime()?.block_on(client),
        Place::WithLeader | Place::AllInOne => run_on(&runtimes[0], client)?,
    }?;
    let read = || states.iter().map(|state| *state.borrow()).collect();
    let states = settle(client.proposed(), read);
    client.measurement(states)
}

fn config() -> Config {
    Config {
        heartbeat_interval: 100,
        election_timeout_min: 2000,
        election_timeout_max: 3000,
        max_payload_entries: 16 * 1024,
        max_append_entries: Some(16 * 1024),
        api_batch_capacity: 16 * 1024,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(20_000),
        max_in_snapshot_log_to_keep: 20_000,
        purge_batch_size: 10_000,
        ..Config::default()
    }
}

fn new_runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.map_err(|error| format!("cannot start tokio: {error}"))
}

/// A runtime for each replica, or the same one for all.
fn start_runtimes(place: Place) -> Result<Vec<Handle>, String> {
    let threads = if place == Place::AllInOne { 1 } else { REPLICAS };
    let mut handles = Vec::new();
    for _ in 0..threads {
        let runtime = new_runtime()?;
        handles.push(runtime.handle().clone());
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    }
    Ok(handles.into_iter().cycle().take(REPLICAS).collect())
}

/// Waits, outside of any runtime, for what a future in a runtime comes to.
fn run_on<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move {
        // Fails only if the measurement was given up.
        let _ = sender.send(future.await);
    });
    receiver.recv().map_err(|_| "a task of openraft panicked".into())
}

async fn elect<C: Command>(leader: Node<C>) -> Result<(), String> {
    let members = (0..REPLICAS as u64).map(|id| (id, BasicNode::default()));
    leader
        .initialize(members.collect::<std::collections::BTreeMap<_, _>>())
        .await
        .map_err(to_text)?;
    // It is named the leader before it takes commands: only when the blank entry of its term, which
    // comes after the one for the membership, is applied, it does.
    let patience = Some(Duration::from_secs(5));
    let leads = |metrics: &RaftMetrics<Types<C>>| {
        metrics.state == ServerState::Leader && metrics.last_applied.is_some_and(|id| id.index > 0)
    };
    leader.wait(patience).metrics(leads, "replica 0 leads").await.map_err(to_text)?;
    Ok(())
}

/// The client, wherever it runs: proposes what it may, then waits until more is applied.
async fn serve<C: Command>(
    leader: Node<C>,
    mut applied: watch::Receiver<State>,
    mut client: Client,
) -> Result<Client, String> {
    loop {
        let count = applied.borrow_and_update().count;
        let numbers = client.next(count);
        if client.is_finished() {
            return Ok(client);
        }
        if !numbers.is_empty() {
            let commands = numbers.map(|number| Proposal(C::numbered(number)));
            // What is returned would be the responses.
            drop(leader.client_write_many(commands).await.map_err(to_text)?);
        }
        applied.changed().await.map_err(to_text)?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_text(error: impl Display) -> String {
    error.to_string()
}

#[derive(Clone, Debug)]
pub struct Proposal<C>(C);

impl<C> Display for Proposal<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a command")
    }
}

/// The types that openraft is to work with, for one type of commands.
pub struct Types<C>(PhantomData<fn() -> C>);

impl<C: Command> RaftTypeConfig for Types<C> {
    type D = Proposal<C>;
    type R = ();
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Self::D, u64, BasicNode>;
    type Entry =
        openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

// What a type of types has to have. Derived, they would ask the same of the commands.
impl<C> Clone for Types<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Types<C> {}
impl<C> Default for Types<C> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<C> Debug for Types<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Types")
    }
}
impl<C> PartialEq for Types<C> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<C> Eq for Types<C> {}
impl<C> PartialOrd for Types<C> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<C> Ord for Types<C> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// A log in memory, shared by the writer and its readers.
struct Log<C: Command>(Arc<Mutex<Entries<C>>>);

struct Entries<C: Command> {
    vote: Option<VoteOf<Types<C>>>,
    purged: Option<LogIdOf<Types<C>>>,
    entries: VecDeque<<Types<C> as RaftTypeConfig>::Entry>,
}

impl<C: Command> Default for Log<C> {
    fn default() -> Self {
        let entries = Entries { vote: None, purged: None, entries: VecDeque::new() };
        Self(Arc::new(Mutex::new(entries)))
    }
}

impl<C: Command> Entries<C> {
    /// Where the entry with this index is, or would be.
    fn position(&self, index: u64) -> usize {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        index.saturating_sub(first) as usize
    }
}

impl<C: Command> RaftLogReader<Types<C>> for Log<C> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<<Types<C> as RaftTypeConfig>::Entry>, io::Error> {
        let log = lock(&self.0);
        let from = match range.start_bound() {
            Bound::Included(index) => log.position(*index),
            Bound::Excluded(index) => log.position(*index + 1),
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(index) => log.position(*index + 1),
            Bound::Excluded(index) => log.position(*index),
            Bound::Unbounded => log.entries.len(),
        };
        let until = until.min(log.entries.len());
        Ok(log.entries.range(from.min(until)..until).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types<C>>>, io::Error> {
        Ok(lock(&self.0).vote)
    }
}

impl<C: Command> RaftLogStorage<Types<C>> for Log<C> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<C>>, io::Error> {
        let log = lock(&self.0);
        let last = log.entries.back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        Self(self.0.clone())
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types<C>>) -> Result<(), io::Error> {
        lock(&self.0).vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<Types<C>>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = <Types<C> as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        lock(&self.0).entries.extend(entries);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types<C>>>) -> Result<(), io::Error> {
        let mut log = lock(&self.0);
        let kept = last.map_or(0, |last| log.position(last.index + 1));
        log.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, until: LogIdOf<Types<C>>) -> Result<(), io::Error> {
        let mut log = lock(&self.0);
        let gone = log.position(until.index + 1).min(log.entries.len());
        log.entries.drain(..gone);
        log.purged = Some(until);
        Ok(())
    }
}

/// The state machine; a snapshot of it is a copy.
struct Machine<C: Command> {
    state: watch::Sender<State>,
    applied: Option<LogIdOf<Types<C>>>,
    membership: StoredMembershipOf<Types<C>>,
}

impl<C: Command> Machine<C> {
    fn new(state: watch::Sender<State>) -> Self {
        Self { state, applied: None, membership: StoredMembership::default() }
    }

    fn snapshot(&self) -> SnapshotOf<Types<C>, State> {
        let meta = SnapshotMetaOf::<Types<C>> {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        SnapshotOf::<Types<C>, State> { meta, snapshot: *self.state.borrow() }
    }
}

/// A snapshot taken when it was asked for.
struct Taken<C: Command>(SnapshotOf<Types<C>, State>);

impl<C: Command> RaftSnapshotBuilder<Types<C>> for Taken<C> {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types<C>, State>, io::Error> {
        Ok(self.0.clone())
    }
}

impl<C: Command> RaftStateMachine<Types<C>> for Machine<C> {
    type SnapshotData = State;
    type SnapshotBuilder = Taken<C>;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types<C>>>, StoredMembershipOf<Types<C>>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types<C>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut state = *self.state.borrow();
        while let Some((entry, responder)) = entries.try_next().await? {
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Proposal(command)) => state.apply(command.as_slice()),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                }
            }
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        self.state.send_replace(state);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Taken<C> {
        Taken(self.snapshot())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types<C>>,
        snapshot: State,
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state.send_replace(snapshot);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types<C>, State>>, io::Error> {
        Ok(self.applied.map(|_| self.snapshot()))
    }
}

struct Network<C: Command>(Nodes<C>);

struct Connection<C: Command> {
    nodes: Nodes<C>,
    target: u64,
}

impl<C: Command> RaftNetworkFactory<Types<C>> for Network<C> {
    type Network = Connection<C>;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Connection<C> {
        Connection { nodes: self.0.clone(), target }
    }
}

impl<C: Command> Connection<C> {
    fn target(&self) -> Result<&Node<C>, RPCError<Types<C>>> {
        let node = self.nodes.get().and_then(|nodes| nodes.get(self.target as usize));
        node.ok_or_else(|| unreachable(&io::Error::other("the replica has not started")))
    }
}

fn unreachable<C: Command>(error: &(impl std::error::Error + 'static)) -> RPCError<Types<C>> {
    RPCError::Unreachable(Unreachable::new(error))
}

impl<C: Command> RaftNetworkV2<Types<C>> for Connection<C> {
    type SnapshotData = State;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<C>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<C>>, RPCError<Types<C>>> {
        self.target()?.append_entries(request).await.map_err(|error| unreachable(&error))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        _: RPCOption,
    ) -> futures_util::future::BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<Types<C>>, RPCError<Types<C>>>>,
            RPCError<Types<C>>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types<C>>> + OptionalSend + Unpin + 'static,
    {
        let answers = self.target().map(|target| target.stream_append(requests));
        let answers = answers.map(|answers| {
            answers.map(|answer| answer.map_err(|error| unreachable(&error))).boxed()
        });
        Box::pin(std::future::ready(answers))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<C>>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types<C>>, RPCError<Types<C>>> {
        self.target()?.vote(request).await.map_err(|error| unreachable(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types<C>>,
        snapshot: SnapshotOf<Types<C>, State>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types<C>>, StreamingError<Types<C>>> {
        let target = self.target().map_err(|error| Unreachable::new(&error))?;
        let installed = target.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map_err(|error| Unreachable::new(&error))?)
    }
}

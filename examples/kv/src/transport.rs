//! How messages get to the other nodes: over one stream of gRPC each, which is opened when there is
//! something to say and opened again when it breaks.
//!
//! Nothing in here keeps the replica waiting. What does not get through in time is dropped: Raft
//! sends again what matters.

use crate::command::{Address, Command};
use crate::config::{Config, Tls};
use crate::fetch::Fetcher;
use crate::identity::{Acquaintances, Identity};
use crate::proto::node_client::NodeClient;
use crate::proto::{Envelope, Welcome};
use crate::snapshots::{Handle, Snapshots};
use crate::tallies::Tallies;
use crate::wire::{MAX_MESSAGE, RaftMessage, check_origin, encode, stamp};
use crossbeam_channel::{Receiver, Sender, bounded};
use little_raft::{Body, Cluster, ReplicaID, Status};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, ServerTlsConfig};

/// Messages that may wait to be sent to one node. More are dropped.
const QUEUE: usize = 1024;
/// Messages that may wait for the replica, and their bytes. More are dropped.
const INBOX: (usize, usize) = (4096, 128 * 1024 * 1024);
/// How long it may take to open a stream.
const CONNECT: Duration = Duration::from_secs(1);
/// The pause after the first failed attempt to connect, and after the last of many.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a connection is asked for a sign of life, and how long that may take.
pub(crate) const KEEP_ALIVE: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(4));
/// How much may be underway in a stream, and in a connection.
pub(crate) const WINDOWS: (u32, u32) = (4 * 1024 * 1024, 8 * 1024 * 1024);

/// The calls that one node can make at another.
pub(crate) type Client = NodeClient<Channel>;

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has arrived for the replica.
#[derive(Debug)]
pub(crate) struct Inbox {
    sender: Sender<(RaftMessage, usize)>,
    receiver: Receiver<(RaftMessage, usize)>,
    bytes: AtomicUsize,
    /// A token says that there is something.
    token: Sender<()>,
}

impl Inbox {
    /// An inbox, and where its tokens come out.
    pub(crate) fn new() -> (Inbox, Receiver<()>) {
        let ((sender, receiver), (token, tokens)) = (bounded(INBOX.0), bounded(1));
        (Inbox { sender, receiver, bytes: AtomicUsize::new(0), token }, tokens)
    }

    /// Takes in a message of so many bytes, unless there is no room.
    pub(crate) fn put(&self, message: RaftMessage, bytes: usize) -> bool {
        let room = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= INBOX.1;
        let taken = room && self.sender.try_send((message, bytes)).is_ok();
        if !taken {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.wake();
        taken
    }

    /// Has the replica look.
    pub(crate) fn wake(&self) {
        let _ = self.token.try_send(());
    }

    fn take(&self) -> Vec<RaftMessage> {
        let all = self.receiver.try_iter().take(INBOX.0);
        let counted = all.inspect(|(_, bytes)| {
            self.bytes.fetch_sub(*bytes, Ordering::Relaxed);
        });
        counted.map(|(message, _)| message).collect()
    }
}

/// How the connection to a node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    pub(crate) connected: bool,
    pub(crate) problem: Option<String>,
}

/// The way to one node.
struct Link {
    queue: mpsc::Sender<RaftMessage>,
    /// Has a connection opened though there is no message.
    wanted: Arc<Notify>,
    /// Ends the pause after a failed attempt.
    retry: Arc<Notify>,
    client: watch::Receiver<Option<Client>>,
    state: Arc<Mutex<LinkState>>,
}

/// What a network needs to know of what is around it.
pub(crate) struct Around<'a> {
    pub(crate) config: &'a Config,
    pub(crate) tls: Option<&'a Certificates>,
    pub(crate) raft: watch::Receiver<Option<Status>>,
    pub(crate) tallies: Arc<Tallies>,
}

/// This node among the others.
pub(crate) struct Network {
    pub(crate) own: Identity,
    pub(crate) inbox: Inbox,
    pub(crate) snapshots: Snapshots,
    pub(crate) tallies: Arc<Tallies>,
    pub(crate) fetcher: Fetcher,
    addresses: watch::Sender<BTreeMap<ReplicaID, Address>>,
    acquaintances: Mutex<Acquaintances>,
    links: Mutex<HashMap<ReplicaID, Link>>,
    /// The snapshots that others may fetch, by who may.
    offered: Mutex<HashMap<ReplicaID, Handle>>,
    tls: Option<ClientTlsConfig>,
    runtime: runtime::Handle,
    /// How the replica is, once it runs.
    raft: watch::Receiver<Option<Status>>,
    stopped: watch::Sender<bool>,
}

impl Network {
    /// A network in which nothing happens before something is sent. Needs a runtime around it.
    pub(crate) fn new(
        own: Identity, acquaintances: Acquaintances, snapshots: Snapshots, around: Around<'_>,
    ) -> (Arc<Network>, Receiver<()>) {
        let Around { config, tls, raft, tallies } = around;
        let (inbox, tokens) = Inbox::new();
        let addresses = config.nodes.iter().map(|node| (node.id, node.address())).collect();
        let network = Network {
            own,
            inbox,
            snapshots,
            tallies,
            fetcher: Fetcher::default(),
            addresses: watch::channel(addresses).0,
            acquaintances: Mutex::new(acquaintances),
            links: Mutex::default(),
            offered: Mutex::default(),
            tls: tls.map(Certificates::client),
            runtime: runtime::Handle::current(),
            raft,
            stopped: watch::channel(false).0,
        };
        (Arc::new(network), tokens)
    }

    /// Where all nodes are.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.addresses.borrow().values().cloned().collect()
    }

    /// Adds to what is known of where nodes are, or replaces it.
    pub(crate) fn introduce(&self, nodes: &[Address]) {
        self.addresses.send_if_modified(|addresses| {
            let new = |node: &&Address| addresses.get(&node.id) != Some(node);
            let new: Vec<_> = nodes.iter().filter(new).cloned().collect();
            let modified = !new.is_empty();
            addresses.extend(new.into_iter().map(|node| (node.id, node)));
            modified
        });
    }

    /// Whether somebody may take part under an id with this disk.
    ///
    /// # Errors
    /// If not, why and what to do.
    pub(crate) fn admit(&self, who: &Identity) -> Result<(), String> {
        if !self.addresses.borrow().contains_key(&who.id) {
            return Err(format!(
                "node {} is not known here; add it to the members, with its addresses",
                who.id
            ));
        }
        let status = self.raft.borrow();
        let is_member = status.as_ref().is_some_and(|it| it.membership.members().contains(&who.id));
        drop(status);
        locked(&self.acquaintances).admit(who.id, &who.identity, is_member)
    }

    /// Forgets the disks of those who are no longer members.
    pub(crate) fn forget(&self, gone: impl Fn(ReplicaID) -> bool) {
        locked(&self.acquaintances).forget(gone);
    }

    /// How the connection to a node is.
    pub(crate) fn link_state(&self, id: ReplicaID) -> LinkState {
        let state = locked(&self.links).get(&id).map(|link| link.state.clone());
        state.map_or(LinkState::default(), |state| locked(&state).clone())
    }

    /// Where tasks run.
    pub(crate) fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }

    /// Becomes true when this node stops.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    /// Ends all connections and what belongs to them.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
        self.fetcher.stop();
        locked(&self.links).clear();
    }

    /// Puts a message where it will be sent from, if there is room.
    pub(crate) fn send(self: &Arc<Self>, to: ReplicaID, message: RaftMessage) {
        if let Body::InstallSnapshot { snapshot, .. } = &message.body {
            locked(&self.offered).insert(to, snapshot.data.clone());
        }
        let sent = self.with_link(to, |link| link.queue.try_send(message).is_ok());
        let counter =
            if sent { &self.tallies.messages_sent } else { &self.tallies.messages_dropped };
        Tallies::add(counter, 1);
    }

    /// The snapshot that a node was offered.
    pub(crate) fn offered(&self, to: ReplicaID) -> Option<Handle> {
        locked(&self.offered).get(&to).cloned()
    }

    /// A node has fetched what it was offered.
    pub(crate) fn taken(&self, by: ReplicaID, handle: &Handle) {
        let mut offered = locked(&self.offered);
        if offered.get(&by) == Some(handle) {
            offered.remove(&by);
        }
    }

    /// What calls a node, once there is a connection.
    pub(crate) async fn client(
        self: &Arc<Self>, to: ReplicaID, patience: Duration,
    ) -> Option<Client> {
        let (mut client, wanted) =
            self.with_link(to, |link| (link.client.clone(), link.wanted.clone()));
        wanted.notify_one();
        let connected = timeout(patience, client.wait_for(Option::is_some)).await;
        connected.ok()?.ok()?.clone()
    }

    fn with_link<R>(self: &Arc<Self>, to: ReplicaID, work: impl FnOnce(&Link) -> R) -> R {
        let mut links = locked(&self.links);
        let link = links.entry(to).or_insert_with(|| {
            let ((queue, messages), (publish, client)) =
                (mpsc::channel(QUEUE), watch::channel(None));
            let (wanted, retry) = <(Arc<Notify>, Arc<Notify>)>::default();
            let (network, state) = (self.clone(), Arc::<Mutex<LinkState>>::default());
            let dialer = Dialer {
                network,
                to,
                messages,
                publish,
                wanted: wanted.clone(),
                retry: retry.clone(),
                state: state.clone(),
            };
            let mut stopped = self.stopped();
            self.runtime.spawn(async move {
                tokio::select! {
                    () = dialer.run() => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
            Link { queue, wanted, retry, client, state }
        });
        work(link)
    }

    /// A node has called: there is no reason any more to wait before it is called.
    pub(crate) fn heard(self: &Arc<Self>, from: ReplicaID) {
        self.with_link(from, |link| link.retry.notify_one());
    }
}

/// Keeps a stream to one node.
struct Dialer {
    network: Arc<Network>,
    to: ReplicaID,
    messages: mpsc::Receiver<RaftMessage>,
    publish: watch::Sender<Option<Client>>,
    wanted: Arc<Notify>,
    retry: Arc<Notify>,
    state: Arc<Mutex<LinkState>>,
}

impl Dialer {
    async fn run(mut self) {
        let mut pause = BACK_OFF.0;
        loop {
            let first = tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => Some(message),
                    None => return,
                },
                () = self.wanted.notified() => None,
            };
            let problem = match self.connect().await {
                Ok(stream) => {
                    pause = BACK_OFF.0;
                    self.pump(stream, first).await
                }
                Err(problem) => problem,
            };
            self.publish.send_replace(None);
            self.disconnected(problem);
            let retried = self.retry.notified();
            let _ = timeout(pause.mul_f64(rand::random_range(0.5..1.0)), retried).await;
            pause = (pause * 2).min(BACK_OFF.1);
            // It is stale by now.
            while self.messages.try_recv().is_ok() {
                Tallies::add(&self.network.tallies.messages_dropped, 1);
            }
        }
    }

    /// Takes note of why there is no connection, and says so if it is news.
    fn disconnected(&self, problem: String) {
        let mut state = locked(&self.state);
        if state.problem.as_ref() != Some(&problem) {
            log::info!(
                "node {}: no connection to node {}: {problem}",
                self.network.own.id,
                self.to
            );
        }
        *state = LinkState { connected: false, problem: Some(problem) };
    }

    /// Opens a stream to the right node.
    async fn connect(&self) -> Result<Stream, String> {
        let opening = async {
            let address = self.network.addresses.borrow().get(&self.to).cloned();
            let address = address.ok_or("its address is not known here")?;
            let channel = endpoint(&address, self.network.tls.as_ref())?;
            let channel = channel.connect().await.map_err(|error| reasons(&error))?;
            let mut client = NodeClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            let (envelopes, outgoing) = mpsc::channel(1);
            let request = stamp(&self.network.own, self.to, ReceiverStream::new(outgoing));
            let answer = client.exchange(request).await;
            let mut answers = answer.map_err(|status| status.message().to_string())?.into_inner();
            let welcome = answers.message().await.map_err(|status| status.message().to_string())?;
            self.check(welcome.ok_or("it hung up")?)?;
            self.publish.send_replace(Some(client));
            Ok(Stream { envelopes, answers, address })
        };
        timeout(CONNECT, opening).await.unwrap_or_else(|_| Err("it does not answer".to_string()))
    }

    fn check(&self, welcome: Welcome) -> Result<(), String> {
        let Welcome { cluster, id, identity, origin } = welcome;
        let own = &self.network.own;
        if (cluster.as_str(), id) != (own.cluster.as_str(), self.to as u64) {
            return Err(format!("there is node {id} of cluster {cluster:?}; check the addresses"));
        }
        let origin = Some(origin).filter(|origin| !origin.is_empty());
        check_origin(own, origin.as_deref())?;
        self.network.admit(&Identity { cluster, id: self.to, identity, origin })
    }

    /// Sends what there is until the stream breaks. Returns why it did.
    async fn pump(&mut self, mut stream: Stream, first: Option<RaftMessage>) -> String {
        *locked(&self.state) = LinkState { connected: true, problem: None };
        log::info!("node {}: connected to node {}", self.network.own.id, self.to);
        let mut addresses = self.network.addresses.subscribe();
        let mut next = first;
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => tokio::select! {
                    message = self.messages.recv() => match message {
                        Some(message) => message,
                        None => return "this node stops".to_string(),
                    },
                    problem = stream.broken() => return problem,
                    _ = addresses.changed() => {
                        if addresses.borrow().get(&self.to) != Some(&stream.address) {
                            return "it has moved".to_string();
                        }
                        continue;
                    }
                },
            };
            let envelopes = match encode(&message) {
                Ok(envelopes) => envelopes,
                Err(problem) => {
                    log::warn!("node {}: to node {}: {problem}", self.network.own.id, self.to);
                    continue;
                }
            };
            for message in envelopes {
                let envelopes = stream.envelopes.clone();
                tokio::select! {
                    sent = envelopes.send(Envelope { message }) => if sent.is_err() {
                        return stream.broken().await;
                    },
                    problem = stream.broken() => return problem,
                }
            }
        }
    }
}

/// A stream that is open.
struct Stream {
    envelopes: mpsc::Sender<Envelope>,
    answers: tonic::Streaming<Welcome>,
    /// Where it leads.
    address: Address,
}

impl Stream {
    /// Waits until it is broken. Cancel safe.
    async fn broken(&mut self) -> String {
        loop {
            match self.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "it hung up".to_string(),
                Err(status) => return status.message().to_string(),
            }
        }
    }
}

/// An error and what it comes from.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn endpoint(address: &Address, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", address.raft))
        .map_err(|error| format!("{:?} is no address: {error}", address.raft))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    match tls {
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(|error| reasons(&error)),
        None => Ok(endpoint),
    }
}

/// What a node proves who it is with.
pub(crate) struct Certificates {
    authority: Certificate,
    identity: tonic::transport::Identity,
    server_name: Option<String>,
}

impl Certificates {
    /// Reads the files for the node of this name.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(crate) fn load(tls: &Tls, name: &str) -> Result<Certificates, String> {
        let read = |path: &std::path::Path| {
            let path = path.to_string_lossy().replace("{name}", name);
            std::fs::read(&path).map_err(|error| {
                format!("{path}: {error}; check the paths under tls in the configuration")
            })
        };
        let authority = Certificate::from_pem(read(&tls.authority)?);
        let (certificate, key) = (read(&tls.certificate)?, read(&tls.key)?);
        let identity = tonic::transport::Identity::from_pem(certificate, key);
        Ok(Certificates { authority, identity, server_name: tls.server_name.clone() })
    }

    fn client(&self) -> ClientTlsConfig {
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.authority.clone())
            .identity(self.identity.clone())
            .assume_http2(true);
        match &self.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        }
    }

    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authority.clone())
            .timeout(CONNECT)
    }
}

/// The replica's end of the network.
pub(crate) struct Wires {
    pub(crate) network: Arc<Network>,
    pub(crate) halt: Arc<AtomicBool>,
    pub(crate) status: watch::Sender<Option<Status>>,
    /// What users ask of the cluster.
    pub(crate) requests: Arc<Mutex<VecDeque<RaftMessage>>>,
}

impl Cluster<Command, Handle> for Wires {
    fn send_message(&mut self, to_id: usize, message: RaftMessage) {
        self.network.send(to_id, message);
    }

    fn receive_messages(&mut self) -> Vec<RaftMessage> {
        let mut messages: Vec<_> = locked(&self.requests).drain(..).collect();
        messages.extend(self.network.inbox.take());
        messages
    }

    fn halt(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    fn register_leader(&mut self, _leader_id: Option<ReplicaID>) {}

    fn register_status(&mut self, status: Status) {
        self.status.send_replace(Some(status));
    }
}

//! How a node comes to life: directory, identity, network, replica, in this order.

use crate::command::Command;
use crate::config::{Config, NodeConfig};
use crate::disk::Disk;
use crate::identity::{Acquaintances, Identity};
use crate::machine::{Machine, Pending};
use crate::node::{Inner, Node};
use crate::report::{BackupReport, StartError};
use crate::server::serve;
use crate::snapshots::{Handle, Snapshots, Written, read_store};
use crate::store::Store;
use crate::tallies::Tallies;
use crate::transport::{Around, Certificates, Network, Wires, locked};
use crate::wire::RaftMessage;
use crossbeam_channel::{Receiver, Sender, bounded};
use little_raft::{Change, LogId, Membership, Replica, Snapshot, Status, Storage};
use little_raft_redb::RedbStorage;
use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Where a node's state machine begins if it begins from a backup: as if one command had made it.
const RESTORED: LogId = LogId { term: 1, index: 1 };

type KvReplica = Replica<Machine, Command, Wires, Handle>;

/// What a node keeps in its directory.
struct Kept {
    directory: PathBuf,
    identity: Identity,
    acquaintances: Acquaintances,
    snapshots: Snapshots,
    log: RedbStorage,
}

/// Opens a node's directory, or begins it.
fn open(config: &Config, own: &NodeConfig) -> io::Result<Kept> {
    let directory = config.data_directory.join(&own.name);
    std::fs::create_dir_all(&directory)?;
    let identity = Identity::load(&directory, &config.cluster, own.id)?;
    let log = open_log(config, own, &directory, identity.is_some())?;
    let snapshots = Snapshots::open(&directory.join("snapshots"))?;
    let identity = match identity {
        Some(identity) => identity,
        None => {
            // Only now: without a log a directory that has an identity is a damaged one.
            let origin = (!own.joining).then(|| "empty".to_string());
            let identity = Identity::new(&config.cluster, own.id, origin);
            identity.save(&directory)?;
            identity
        }
    };
    let acquaintances = Acquaintances::load(&directory)?;
    Ok(Kept { directory, identity, acquaintances, snapshots, log })
}

fn open_log(
    config: &Config, own: &NodeConfig, directory: &Path, existing: bool,
) -> io::Result<RedbStorage> {
    let options = RedbStorage::options().replica_id(own.id).cluster_id(&config.cluster);
    let options = if existing { options.existing() } else { options };
    options.open(directory.join("log"))
}

pub(crate) async fn start(config: Config, name: &str) -> Result<Node, StartError> {
    let own = config.node(name).map_err(|error| StartError::new(error.to_string()))?.clone();
    let explain = |error: io::Error| {
        let directory = config.data_directory.join(&own.name);
        StartError::new(format!("node {name}: {}: {error}", directory.display()))
    };
    let tls = config.tls.as_ref().map(|tls| Certificates::load(tls, name)).transpose();
    let tls = tls.map_err(StartError::new)?;
    let listener = TcpListener::bind(&own.raft).await.map_err(|error| {
        StartError::new(format!(
            "node {name}: cannot listen on {}: {error}; is it running already, or is the address \
             another machine's?",
            own.raft
        ))
    })?;
    let opening = (config.clone(), own.clone());
    let kept = tokio::task::spawn_blocking(move || open(&opening.0, &opening.1)).await;
    let kept = kept.map_err(|error| StartError::new(error.to_string()))?.map_err(explain)?;
    let node = assemble(config.clone(), own.clone(), kept, tls.as_ref()).map_err(explain)?;
    let inner = node.inner.clone();
    let serving = serve(inner.network.clone(), inner.clone(), listener, tls);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            log::error!("node {}: cannot serve other nodes: {error}", inner.own.id);
        }
        inner.served.send_replace(true);
    });
    tokio::spawn(crate::status::report(node.inner.clone()));
    Ok(node)
}

/// A replica that runs, as others see it.
struct Running {
    proposals: Sender<()>,
    requests: Arc<Mutex<VecDeque<RaftMessage>>>,
    halt: Arc<AtomicBool>,
    ended: watch::Receiver<Option<Option<String>>>,
}

/// Puts the parts together, and starts the replica.
fn assemble(
    config: Config, own: NodeConfig, kept: Kept, tls: Option<&Certificates>,
) -> io::Result<Node> {
    let Kept { directory, identity, acquaintances, snapshots, log } = kept;
    let (tallies, (status, raft)) = (Arc::new(Tallies::default()), watch::channel(None));
    let disk = Disk { log, snapshots: snapshots.clone(), tallies: tallies.clone(), last: 0 };
    let around = Around { config: &config, tls, raft: raft.clone(), tallies: tallies.clone() };
    let (network, recv_msg) = Network::new(identity, acquaintances, snapshots.clone(), around);
    let pending = Arc::new(Mutex::new(Pending::default()));
    let machine = Machine::new(pending.clone(), snapshots, &config, tallies.clone());
    let machine = Arc::new(Mutex::new(machine));
    let ends = (network.clone(), recv_msg, status);
    let running = run(&config, &own, ends, (machine.clone(), pending.clone()), disk)?;
    let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
    let inner = Inner {
        writes: permits(config.limits.writes_in_flight),
        bytes: permits(config.limits.bytes_in_flight),
        reads: permits(config.limits.reads_in_flight),
        config,
        own,
        directory,
        network,
        machine,
        pending,
        proposals: running.proposals,
        requests: running.requests,
        halt: running.halt,
        raft,
        status: watch::channel(Arc::default()).0,
        elections: Mutex::default(),
        tallies,
        stopping: AtomicBool::new(false),
        ended: running.ended,
        served: watch::channel(false).0,
        started: Instant::now(),
        life: rand::random(),
        next_command: 0.into(),
    };
    Ok(Node { inner: Arc::new(inner) })
}

fn replica(
    config: &Config, own: &NodeConfig, wires: Wires, machine: Arc<Mutex<Machine>>, disk: Disk,
) -> KvReplica {
    let founders = config.nodes.iter().filter(|node| !node.joining && node.id != own.id);
    let (peers, times) = (founders.map(|node| node.id).collect(), config.timing);
    let wires = Arc::new(Mutex::new(wires));
    let (heartbeat, election) = (times.heartbeat, times.election_timeout);
    let replica =
        Replica::new(own.id, peers, wires, machine, Command::no_op(), heartbeat, election)
            .with_storage(disk)
            .with_snapshots(config.snapshot_interval);
    let replica = match times.clock_drift {
        Some(drift) => replica.with_lease_reads(drift),
        None => replica,
    };
    if own.joining { replica.joining() } else { replica }
}

/// The ends of the network at which a replica sits.
type Ends = (Arc<Network>, Receiver<()>, watch::Sender<Option<Status>>);

/// Runs a replica in a thread of its own until it is halted or fails, and tells everybody.
fn run(
    config: &Config, own: &NodeConfig, ends: Ends,
    machine: (Arc<Mutex<Machine>>, Arc<Mutex<Pending>>), disk: Disk,
) -> io::Result<Running> {
    let ((network, recv_msg, status), (machine, pending)) = (ends, machine);
    let ((proposals, recv_transition), (end, ended)) = (bounded(1), watch::channel(None));
    let (halt, requests) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<_>>::default());
    let running = Running { proposals, requests: requests.clone(), halt: halt.clone(), ended };
    let wires = Wires { network, halt, status, requests };
    let (mut replica, id) = (replica(config, own, wires, machine, disk), own.id);
    let life = move || {
        let result = catch_unwind(AssertUnwindSafe(|| replica.start(recv_msg, recv_transition)));
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(text(panic)),
        };
        if let Some(failure) = &failure {
            log::error!("node {id}: its replica has failed: {failure}");
        }
        // The directory is free before anybody can hear of it.
        drop(replica);
        locked(&pending).end();
        end.send_replace(Some(failure));
    };
    thread::Builder::new().name(format!("replica {id}")).spawn(life)?;
    Ok(running)
}

fn text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref().copied().unwrap_or("it has panicked").to_string(),
    }
}

pub(crate) fn restore(
    config: &Config, name: &str, backup: impl io::Read,
) -> Result<BackupReport, StartError> {
    let own = config.node(name).map_err(|error| StartError::new(error.to_string()))?;
    let directory = config.data_directory.join(&own.name);
    if own.joining {
        return Err(StartError::new(format!(
            "node {name} joins a cluster that runs, which gives it everything; restore the backup \
             only at the nodes that the cluster begins with"
        )));
    }
    let explain = |error: io::Error| {
        StartError::new(format!("node {name}: {}: {error}", directory.display()))
    };
    let (store, written) = read_store(BufReader::new(backup)).map_err(|error| {
        StartError::new(format!("the backup cannot be restored: {error}; use another one"))
    })?;
    std::fs::create_dir_all(&directory).map_err(explain)?;
    if std::fs::read_dir(&directory).map_err(explain)?.next().is_some() {
        return Err(StartError::new(format!(
            "node {name}: {} is not empty; a backup is restored where a node has never been: move \
             the directory away, at every node of the cluster",
            directory.display()
        )));
    }
    begin_with(config, own, &store, written).map_err(explain)?;
    let (revision, keys, bytes) = (written.revision, written.keys, written.length);
    Ok(BackupReport { path: String::new(), revision, keys, bytes })
}

/// Begins a node's directory with a state, as if the log up to there had been compacted.
fn begin_with(
    config: &Config, own: &NodeConfig, store: &Store, written: Written,
) -> io::Result<()> {
    let directory = config.data_directory.join(&own.name);
    let snapshots = Snapshots::open(&directory.join("snapshots"))?;
    let data = snapshots.write(store, None, (RESTORED.index, RESTORED.term));
    data.failure().map_or(Ok(()), Err)?;
    let founders = config.nodes.iter().filter(|node| !node.joining).map(|node| node.id);
    let membership = Membership { voters: founders.collect(), ..Membership::default() };
    let (last_included_index, last_included_term) = (RESTORED.index, RESTORED.term);
    let snapshot = Snapshot { last_included_index, last_included_term, data };
    let change: Change<Command, Handle> = Change {
        term: RESTORED.term,
        compacted: RESTORED,
        snapshot: Some(snapshot),
        membership: Some(membership),
        ..Change::default()
    };
    let mut log = open_log(config, own, &directory, false)?;
    let _: Change<Command, Handle> = log.load()?;
    log.save(change)?;
    let origin = format!("backup {:08x}-{}", written.checksum, written.length);
    Identity::new(&config.cluster, own.id, Some(origin)).save(&directory)
}

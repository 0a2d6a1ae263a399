//! How nodes speak to each other, and that nobody else can: strangers, liars, wiped disks, messages
//! that are none, and connections that break at any moment.

mod common;

use common::proxy::Proxy;
use common::*;
use kv::command::*;
use kv::config::Tls;
use kv::node::*;
use kv::proto::node_client::NodeClient;
use kv::proto::{Envelope, MembersRequest, SnapshotRequest, WriteRequest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_stream::iter;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// What a call says about who makes it.
#[derive(Clone, Copy)]
struct Caller {
    cluster: &'static str,
    from: &'static str,
    to: &'static str,
    identity: &'static str,
    origin: &'static str,
}

const NODE2: Caller =
    Caller { cluster: "test", from: "2", to: "1", identity: "abc", origin: "empty" };

impl Caller {
    fn call<T>(self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let metadata = request.metadata_mut();
        metadata.insert("kv-cluster", self.cluster.parse().unwrap());
        metadata.insert("kv-from", self.from.parse().unwrap());
        metadata.insert("kv-to", self.to.parse().unwrap());
        metadata.insert("kv-identity", self.identity.parse().unwrap());
        metadata.insert("kv-origin", self.origin.parse().unwrap());
        request
    }
}

/// One node of a cluster of two, the other of which is played by the test.
async fn lonely() -> (Cluster, NodeClient<Channel>) {
    let directory = tempfile::TempDir::new().unwrap();
    let config = config(2, &directory);
    let mut cluster = Cluster { config, nodes: vec![None, None], directory };
    cluster.restart(0).await;
    until(cluster.node(0), "knowing of the other", |status| status.voters.len() == 2).await;
    let address = format!("http://{}", cluster.config.nodes[0].raft);
    (cluster, NodeClient::connect(address).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_who_they_should_be_is_refused_with_a_sentence() {
    let (cluster, mut client) = lonely().await;
    // The first to come under an id is believed.
    client.exchange(NODE2.call(iter([]))).await.unwrap();
    let cases = [
        (Caller { cluster: "other", ..NODE2 }, "belongs to cluster \"test\""),
        (Caller { from: "9", ..NODE2 }, "node 9 is not known here"),
        (Caller { from: "nine", ..NODE2 }, "no node id"),
        (Caller { to: "2", ..NODE2 }, "this is node 1, the caller wants node 2"),
        (Caller { identity: "xyz", ..NODE2 }, "another disk than before"),
        (Caller { origin: "backup 1", ..NODE2 }, "restore the same backup"),
    ];
    for (caller, reason) in cases {
        let write = || WriteRequest { request: vec![].into(), milliseconds: 100 };
        let snapshot = || SnapshotRequest { name: "../identity.json".into(), offset: 0 };
        let members = || MembersRequest { change: "{}".into() };
        let refusals: [Status; 4] = [
            client.exchange(caller.call(iter([]))).await.err().unwrap(),
            client.write(caller.call(write())).await.err().unwrap(),
            client.fetch_snapshot(caller.call(snapshot())).await.err().unwrap(),
            client.change_members(caller.call(members())).await.err().unwrap(),
        ];
        for status in refusals {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert!(status.message().contains(reason), "{status}");
        }
    }
    let bare = client.exchange(Request::new(iter([]))).await.err().unwrap();
    assert!(bare.message().contains("this port is for nodes"), "{bare}");
    assert!(cluster.node(0).counters().callers_refused >= 25);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wiped_disk_is_remembered_over_a_restart() {
    let (mut cluster, mut client) = lonely().await;
    client.exchange(NODE2.call(iter([]))).await.unwrap();
    cluster.kill(0).await;
    cluster.restart(0).await;
    let address = format!("http://{}", cluster.config.nodes[0].raft);
    let mut client = NodeClient::connect(address).await.unwrap();
    let other = Caller { identity: "xyz", ..NODE2 };
    assert!(client.exchange(other.call(iter([]))).await.is_err());
    assert!(client.exchange(NODE2.call(iter([]))).await.is_ok());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_the_stream_and_nothing_else() {
    let (cluster, mut client) = lonely().await;
    // A message of node 3, as the library's types are encoded: sender, term, answer.
    let in_the_name_of_another = vec![3, 1, 1, 0, 1];
    // A user's request for a transfer, which would be obeyed if it got through.
    let request = [&[255; 9][..], &[1, 0, 9, 2]].concat();
    let long = vec![0; 40_000_000];
    for garbage in [vec![], vec![255; 1000], in_the_name_of_another, request, long] {
        let length = garbage.len();
        let envelope = Envelope { message: garbage.into() };
        let mut answers = client.exchange(NODE2.call(iter([envelope]))).await.unwrap().into_inner();
        let ended = async {
            loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        let status = timeout(PATIENCE, ended).await.unwrap();
        assert!(status.is_none_or(|it| it.code() != Code::Ok), "{length} bytes");
    }
    let nonsense = WriteRequest { request: vec![9; 9].into(), milliseconds: 100 };
    let status = client.write(NODE2.call(nonsense)).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let nonsense = MembersRequest { change: "nonsense".into() };
    let status = client.change_members(NODE2.call(nonsense)).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let elsewhere = SnapshotRequest { name: "../identity.json".into(), offset: 0 };
    let status = client.fetch_snapshot(NODE2.call(elsewhere)).await.err().unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert_eq!(cluster.node(0).status().failure, None);
    assert!(cluster.node(0).counters().callers_refused >= 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_gets_through_connections_that_break_again_and_again() {
    let mut cluster = Cluster::start_with(3, |config| config.snapshot_interval = 40).await;
    let follower = (cluster.leader().await + 1) % 3;
    cluster.kill(follower).await;
    let leader = cluster.leader().await;
    let session = session(cluster.node(leader)).await;
    for sequence in 1..=120 {
        let session = Session { sequence, ..session };
        let value: Vec<u8> = (0..50_000_u32).map(|byte| (byte ^ sequence as u32) as u8).collect();
        let transaction = Transaction::put(format!("key{}", sequence % 60), value);
        write(cluster.node(leader), Some(session), transaction).await;
    }
    // The follower reaches the others only through proxies, which cut every connection after a
    // fraction of the snapshot of three megabytes.
    let mut through = cluster.config.clone();
    let mut proxies = Vec::new();
    for place in (0..3).filter(|place| *place != follower) {
        let proxy = Proxy::start(through.nodes[place].raft.clone()).await;
        proxy.harm.cut_after.store(600_000, Ordering::Relaxed);
        through.nodes[place].raft = proxy.address.to_string();
        proxies.push(proxy);
    }
    let name = through.nodes[follower].name.clone();
    let node = Node::start(through, &name).await.unwrap();
    until(&node, "a snapshot", |status| status.counters.snapshots_received > 0).await;
    let connections: usize =
        proxies.iter().map(|proxy| proxy.harm.connections.load(Ordering::Relaxed)).sum();
    assert!(connections >= 5, "it went on {connections} times");
    assert_eq!(node.counters().snapshots_received, 1);
    for proxy in &proxies {
        proxy.harm.cut_after.store(0, Ordering::Relaxed);
    }
    let all = node.read(Consistency::Linearizable, |store| {
        store
            .list("key", None, 100)
            .entries
            .iter()
            .map(|(_, it)| it.value.len())
            .collect::<Vec<_>>()
    });
    assert_eq!(all.await.unwrap(), vec![50_000; 60]);
    node.halt().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hanging_node_does_not_take_is_dropped_and_sent_again_later() {
    // Node 3 is reached through a proxy that takes nothing any more for a while.
    let directory = tempfile::TempDir::new().unwrap();
    let config = config(3, &directory);
    let proxy = Proxy::start(config.nodes[2].raft.clone()).await;
    let mut through = config.clone();
    through.nodes[2].raft = proxy.address.to_string();
    let mut nodes = Vec::new();
    for place in 0..3 {
        let config = if place == 2 { &config } else { &through };
        let node = Node::start(config.clone(), &config.nodes[place].name).await;
        nodes.push(Some(node.unwrap()));
    }
    let cluster = Cluster { config: through, nodes, directory };
    let leader = cluster.leader().await;
    if leader == 2 {
        cluster.node(2).transfer(Some(1)).await.unwrap();
    }
    put(cluster.node(0), "before", "value").await;
    until(cluster.node(2), "the key", |status| status.keys == 1).await;
    proxy.harm.hangs.store(true, Ordering::Relaxed);
    // The others go on meanwhile, however much there is to say.
    let (writer, value) = (cluster.node(0), vec![1; 100_000]);
    let session = session(writer).await;
    for sequence in 1..=40 {
        let session = Session { sequence, ..session };
        let transaction = Transaction::put(format!("key{sequence}"), value.clone());
        write(writer, Some(session), transaction).await;
    }
    let dropped = async {
        while cluster.running().all(|node| node.counters().messages_dropped == 0) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, dropped).await.expect("messages to be dropped");
    assert_eq!(cluster.node(2).status().keys, 1);
    proxy.harm.hangs.store(false, Ordering::Relaxed);
    until(cluster.node(2), "catching up", |status| status.keys == 41).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_one_message_travels_in_several() {
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    cluster.kill(follower).await;
    // All of it is in the log, and would be in one message if nobody cut it.
    let leader = cluster.leader().await;
    for number in 0..12 {
        let session = session(cluster.node(leader)).await;
        let transaction = Transaction::put(format!("key{number}"), vec![number; 600_000]);
        write(cluster.node(leader), Some(session), transaction).await;
    }
    cluster.restart(follower).await;
    let read = cluster.node(follower).read(Consistency::Linearizable, |store| {
        store.list("", None, 99).entries.iter().map(|(_, it)| it.value[0]).collect::<Vec<_>>()
    });
    let mut found = read.await.unwrap();
    found.sort_unstable();
    assert_eq!(found, (0..12).collect::<Vec<u8>>());
    assert_eq!(cluster.node(follower).counters().snapshots_received, 0);
    cluster.stop().await;
}

/// Certificates for nodes on loopback addresses, signed by an authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes what a node needs, by its name.
    fn issue(&self, directory: &Path, name: &str) {
        std::fs::create_dir_all(directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let write = |file: &str, text: String| std::fs::write(directory.join(file), text).unwrap();
        write("authority.pem", self.0.pem());
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

fn tls(directory: &Path) -> Tls {
    Tls {
        authority: directory.join("authority.pem"),
        certificate: directory.join("{name}.pem"),
        key: directory.join("{name}.key"),
        server_name: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_right_authority_are_needed_and_enough() {
    let certificates = tempfile::TempDir::new().unwrap();
    let (ours, theirs) = (certificates.path().join("ours"), certificates.path().join("theirs"));
    let (right, wrong) = (Authority::new(), Authority::new());
    for name in ["node1", "node2", "node3"] {
        right.issue(&ours, name);
    }
    wrong.issue(&theirs, "node3");
    let directory = tempfile::TempDir::new().unwrap();
    let mut config = config(3, &directory);
    config.tls = Some(tls(&ours));
    let mut cluster = Cluster { config, nodes: vec![None, None, None], directory };
    cluster.restart(0).await;
    cluster.restart(1).await;
    put(cluster.node(0), "key", "value").await;
    assert_eq!(get(cluster.node(1), "key").await.as_deref(), Some("value"));

    // Another authority's certificate, and none at all.
    let mut foreign = cluster.config.clone();
    foreign.tls = Some(tls(&theirs));
    let mut bare = cluster.config.clone();
    bare.tls = None;
    for config in [foreign, bare] {
        let node = Node::start(config, "node3").await.unwrap();
        let leader = cluster.leader().await;
        let fails = |status: &NodeStatus| {
            let peer = status.peers.iter().find(|peer| peer.id == 3);
            peer.is_some_and(|peer| !peer.connected && peer.problem.is_some())
        };
        until(cluster.node(leader), "no connection to node 3", fails).await;
        // Nor does it get through by itself, though it stands for election.
        let stands = |status: &NodeStatus| status.role == "pre_candidate";
        until(&node, "standing for election", stands).await;
        sleep(Duration::from_millis(500)).await;
        let status = node.status();
        assert_eq!((status.keys, status.counters.messages_received, status.leader), (0, 0, None));
        node.halt().await;
    }
    cluster.restart(2).await;
    assert_eq!(get(cluster.node(2), "key").await.as_deref(), Some("value"));
    let plain = NodeClient::connect(format!("http://{}", cluster.config.nodes[0].raft)).await;
    if let Ok(mut client) = plain {
        assert!(client.exchange(NODE2.call(iter([]))).await.is_err());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_missing_is_named() {
    let directory = tempfile::TempDir::new().unwrap();
    let mut config = config(1, &directory);
    config.tls = Some(tls(&directory.path().join("none")));
    let error = Node::start(config, "node1").await.err().unwrap().to_string();
    assert!(error.contains("authority.pem") && error.contains("under tls"), "{error}");
}
